"""Records as pictures: which probes are drawn, what is written on them, and in which units the maps are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.render import ColorScale, Frame, Tile, Verdict, render_filmstrip, render_panel
from xai_callbacks.sinks.film import FilmFrame

__all__ = ["PictureBook", "caption", "color_scale", "density", "truth"]


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
        maps = density(record.heatmaps[:, index])
        tiles = [Tile("Image", None)]
        tiles += [Tile(titles[index], maps[question]) for question, titles in enumerate(record.titles)]
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
            Frame(f"step {frame.step}", frame.captions[position], list(density(frame.heatmaps[:, position])))
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
    if probes.task == "regression":
        return f"{float(record.predictions[index]):.3g}"
    return f"{probes.class_name(int(record.predictions[index]))} ({float(record.confidences[index]):.2f})"


def truth(probes: ProbeSet, index: int) -> str:
    """What is known of one probe, such as "true: cat"; empty if nothing is."""
    if probes.labels is not None:
        return f"true: {probes.class_name(int(probes.labels[index]))}"
    if probes.targets is not None:
        return f"true: {float(probes.targets[index]):.3g}"
    return ""


def density(heatmaps: Tensor) -> np.ndarray:
    """Heatmaps `(..., h, w)` in logits: each cell times the number of cells.

    A cell then reads "the score, if the whole image looked like this spot", and the mean over the cells is the score
    itself for a net that ends in global average pooling. Maps of different grids become comparable.
    """
    return (heatmaps * (heatmaps.shape[-2] * heatmaps.shape[-1])).numpy()


def color_scale(probes: ProbeSet) -> ColorScale:
    """The colour scale of a probe set: fixed for all epochs, runs and checkpoints.

    Logits have an absolute meaning, so classifiers share one scale. For regression it reaches the power of ten above
    the range of the targets.
    """
    if probes.targets is None:
        return ColorScale()
    low, high = float(probes.targets.min()), float(probes.targets.max())
    spread = high - low or abs(high) or 1.0
    return ColorScale(limit=10.0 ** math.ceil(math.log10(spread)), unit="target units")


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
    if record.truth is None or record.truth.is_floating_point():
        return "unknown"
    return "right" if int(record.predictions[index]) == int(record.truth[index]) else "wrong"
