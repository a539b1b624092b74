"""Heatmaps in the unit of the colour scale."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, MapSet
from xai_callbacks.render import ColorScale, Line, upsample

Pixels = NDArray[np.uint8]
_NEIGHBOURHOODS = 16  # cells a side on which maps at the pixels are shown


def heat(given: MapSet, rows: Sequence[int], scale: ColorScale) -> NDArray[np.float32]:
    """Heatmaps of some probes, `(Q, len(rows), h, w)`, in the unit of the scale.

    Relative maps are shown as a share of the strongest of the run, which stands at the limit.
    """
    maps = given.heatmaps
    if given.units == "relative":
        peaks = maps.new_tensor(given.peaks) if given.peaks else maps.abs().nan_to_num(0, 0, 0).amax(dim=(1, 2, 3))
        cells = maps.shape[-2] * maps.shape[-1]
        maps = maps * (scale.limit / cells / peaks.clamp_min(1e-30))[:, None, None, None]
    return np.stack([density(each, pixels=not given.layer) for each in maps[:, list(rows)]])


def density(heatmaps: Tensor, *, pixels: bool = False) -> NDArray[np.float32]:
    """Heatmaps `(N, h, w)` in logits: each cell times the number of cells.

    A cell then reads "the score, if the whole image looked like this spot", and the mean over the cells is the score
    itself for a net that ends in global average pooling. Maps of different grids become comparable. Neighbours of maps
    at the `pixels` may differ wildly: each spot is then the mean over a neighbourhood, on at most 16 cells a side, so
    that one colour scale suits all explainers.
    """
    height, width = heatmaps.shape[-2:]
    spots: NDArray[np.float32] = (heatmaps.float() * (height * width)).numpy()
    share = _NEIGHBOURHOODS / max(height, width)
    if not pixels or share >= 1:
        return spots
    size = max(1, round(height * share)), max(1, round(width * share))
    return np.stack([upsample(spot, size) for spot in spots])


def color_scale(probes: ProbeSet) -> ColorScale:
    """The colour scale of a probe set, fixed for all epochs, runs and checkpoints.

    All classifiers share one; for regression it reaches the power of ten above the range of the targets.
    """
    if probes.targets is None:
        return ColorScale()
    low, high = float(probes.targets.min()), float(probes.targets.max())
    spread = high - low or abs(high) or 1.0
    return ColorScale(limit=10.0 ** math.ceil(math.log10(spread)), unit="score")


def first_answer(record: AuditRecord) -> str | None:
    """Name of the first explainer that answers questions; None if there is none."""
    return next((name for name, given in record.maps.items() if given.about == "question"), None)


def doubts(record: AuditRecord, explainer: str) -> list[str]:
    """How each row of heatmaps failed its tests, such as "fails the deletion test"; empty for one that did not."""
    if record.maps[explainer].about == "image":
        return [record.doubt(explainer)]
    return [record.doubt(f"{explainer}/{question}") for question in record.questions]


def grey_line(doubted: Iterable[str]) -> Line:
    """What is said of heat that is drawn grey; nothing where none is."""
    said = ", or ".join(dict.fromkeys(filter(None, doubted)))
    return Line(f"grey heat {said}" if said else "", "watch", rows=4)
