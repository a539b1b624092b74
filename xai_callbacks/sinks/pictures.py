"""Records as pictures: which probes are drawn, what is written on them, and in which units the maps are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.render import ColorScale, Frame, Tile, Verdict, render_filmstrip, render_panel, upsample
from xai_callbacks.sinks.film import FilmFrame
from xai_callbacks.tasks import UNKNOWN, Task

__all__ = ["PictureBook", "caption", "color_scale", "density", "truth"]

# Cells a side on which maps at the pixels are shown.
_NEIGHBOURHOODS = 16
# Labels or values written on a picture.
_LABELS = 3


class PictureBook:
    """Draws panels and filmstrips of a probe set.

    Args:
        probes: The probe set.
        max_panels: Most probes drawn; beyond, probes evenly spaced through the set, which `ProbeSet.from_dataset`
            orders by class.
        scale: Colour scale of all heatmaps; None for `color_scale(probes)`.
    """

    def __init__(self, probes: ProbeSet, max_panels: int, scale: ColorScale | None = None) -> None:
        self.probes = probes
        self.scale = color_scale(probes) if scale is None else scale
        count = min(max_panels, len(probes))
        self.drawn = sorted({round(index) for index in np.linspace(0, len(probes) - 1, count)}) if count else []

    def panel(self, record: AuditRecord, index: int) -> np.ndarray:
        """The panel of one probe in one audit, `(H, W, 3)` uint8."""
        tiles = [Tile("Image", None), *_map_tiles(record, index)]
        tiles += _novelty_tiles(record, index)
        return render_panel(
            self.probes.pixels[index].numpy(),
            tiles,
            title=f"{self.probes.names[index]} | step {record.step}",
            subtitle="\n".join(filter(None, (self._verdict_line(record, index), _unusual_layer(record, index)))),
            verdict=_verdict(record, index),
            regions=self._regions(index),
            scale=self.scale,
        )

    def filmstrip(self, frames: Sequence[FilmFrame], rows: Sequence[str], position: int) -> np.ndarray:
        """The filmstrip of the probe at `position` among the drawn ones, `(H, W, 3)` uint8.

        Args:
            frames: Past audits, oldest first.
            rows: The questions, with P and Q for classes that change from audit to audit.
            position: Index into `drawn`.
        """
        index = self.drawn[position]
        columns = [
            Frame(
                f"step {frame.step}",
                frame.captions[position],
                list(density(frame.heatmaps[:, position], pixels=not frame.kind[1])),
            )
            for frame in frames
        ]
        return render_filmstrip(
            self.probes.pixels[index].numpy(),
            rows,
            columns,
            title=self.probes.names[index],
            subtitle=truth(self.probes, index),
            regions=self._regions(index),
            scale=self.scale,
        )

    def caption(self, record: AuditRecord, index: int) -> str:
        """What the model answered, such as "cat (0.93)"."""
        return caption(self.probes, record, index)

    def _verdict_line(self, record: AuditRecord, index: int) -> str:
        parts = (truth(self.probes, index), f"predicted: {self.caption(record, index)}")
        return " | ".join(part for part in parts if part)

    def _regions(self, index: int) -> dict[str, np.ndarray]:
        return {name: mask[index].numpy() for name, mask in self.probes.masks.items()}


def caption(probes: ProbeSet, record: AuditRecord, index: int) -> str:
    """What the model answered about one probe, such as "cat (0.93)"."""
    task, outputs = probes.task, record.outputs[index]
    if not task.classifies:
        return _values(task, outputs)
    chances, most = task.probabilities(outputs[None])[0], int(outputs.argmax())
    said = record.predictions[index].nonzero()[:, 0].tolist() if task.kind == "multi-label" else [most]
    if not said:
        # Of a picture with none of the labels, the likeliest is still worth knowing.
        return f"none, at most {task.name(most)} ({float(chances[most]):.2f})"
    return _listed([f"{task.name(each)} ({float(chances[each]):.2f})" for each in said])


def truth(probes: ProbeSet, index: int) -> str:
    """What is known of one probe, such as "true: cat"; empty if nothing is."""
    if probes.truth is None:
        return ""
    known, task = probes.truth[index], probes.task
    if not task.classifies:
        return f"true: {_values(task, known.reshape(-1))}"
    if known.ndim == 0:
        return f"true: {task.name(int(known))}"
    if bool((known == UNKNOWN).all()):
        return ""
    names = [task.name(each) for each in (known == 1).nonzero()[:, 0].tolist()]
    nothing = "none of the known labels" if bool((known == UNKNOWN).any()) else "none of the labels"
    return f"true: {_listed(names) or nothing}"


def _values(task: Task, values: Tensor) -> str:
    """Such as "0.58", or "blur 0.58, noise 0.1"."""
    if len(values) == 1:
        return f"{float(values[0]):.3g}"
    return _listed([f"{task.name(index)} {float(value):.3g}" for index, value in enumerate(values)])


def _listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - _LABELS} more" if len(names) > _LABELS else ""
    return ", ".join(names[:_LABELS]) + more


def _map_tiles(record: AuditRecord, index: int) -> list[Tile]:
    """One tile for each explainer and question; the explainer is named where there are several."""
    tiles = []
    for name, given in record.maps.items():
        by = f"\n({name})" if len(record.maps) > 1 else ""
        for question, heatmap in enumerate(density(given.heatmaps[:, index], pixels=not given.layer)):
            title = f"{record.titles[question][index]}{by}" if given.about == "question" else name
            tiles.append(Tile(title, heatmap))
    return tiles


def density(heatmaps: Tensor, *, pixels: bool = False) -> np.ndarray:
    """Heatmaps `(Q, h, w)` in logits: each cell times the number of cells.

    A cell then reads "the score, if the whole image looked like this spot", and the mean over the cells is the score
    itself for a net that ends in global average pooling. Maps of different grids become comparable.

    Args:
        heatmaps: As a record has them.
        pixels: Whether they were computed at the pixels, whose neighbours may differ wildly: each spot is then the mean
            over a neighbourhood, on at most 16 cells a side, so that one colour scale suits all explainers.
    """
    height, width = heatmaps.shape[-2:]
    spots = (heatmaps * (height * width)).numpy()
    if not pixels or max(height, width) <= _NEIGHBOURHOODS:
        return spots
    size = [max(1, round(side * _NEIGHBOURHOODS / max(height, width))) for side in (height, width)]
    return np.stack([upsample(spot, (size[0], size[1])) for spot in spots])


def color_scale(probes: ProbeSet) -> ColorScale:
    """The colour scale of a probe set: fixed for all epochs, runs and checkpoints.

    Logits have an absolute meaning, so classifiers share one scale. For regression it reaches the power of ten above
    the range of the targets.
    """
    if probes.targets is None:
        return ColorScale()
    low, high = float(probes.targets.min()), float(probes.targets.max())
    spread = high - low or abs(high) or 1.0
    return ColorScale(limit=10.0 ** math.ceil(math.log10(spread)), unit="units of the score")


def _novelty_tiles(record: AuditRecord, index: int) -> list[Tile]:
    """Where a probe is novel, in spreads of the score over the probes, so that it fits the scale of the logits."""
    return [
        Tile(
            f"What makes it novel?\n({name}, in spreads)",
            density(maps[index] / (float(record.scores[name].std(correction=0)) or 1.0)),
        )
        for name, maps in record.novelty_maps.items()
        if name in record.scores
    ]


def _unusual_layer(record: AuditRecord, index: int) -> str:
    """The layer whose share of the gradient is further above its usual one than that of any other; empty if unknown."""
    excess = {name: float(shares[index] - shares.nanmedian()) for name, shares in record.layer_shares.items()}
    known = [name for name, value in excess.items() if math.isfinite(value)]
    if not known:
        return ""
    name = max(known, key=lambda layer: excess[layer])
    shares = record.layer_shares[name]
    share, usual = float(shares[index]), float(shares.nanmedian())
    return f"asks to change {name}: {share:.0%} of the gradient, usually {usual:.0%}"


def _verdict(record: AuditRecord, index: int) -> Verdict:
    right = float(record.correct[index])
    return "unknown" if math.isnan(right) else "right" if right == 1 else "wrong"
