"""Regions that a heatmap stands out in: a threshold, connected components, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_choice, require_number
from xai_callbacks.metrics.localization import relevance

ThresholdKind = Literal["fraction", "quantile", "value", "otsu"]


@dataclass(frozen=True)
class Threshold:
    """How high a map must be to be found.

    | kind | found is what exceeds | level |
    |---|---|---|
    | `fraction` | a share of the largest value | [0, 1) |
    | `quantile` | a quantile of the pixels | [0, 1) |
    | `value` | a number in the unit of the map, such as .5 of a probability | any |
    | `otsu` | what parts the pixels into two groups that vary least in themselves (Otsu 1979) | not used |

    All but `value` are of each map by itself, and find something in every map that is not constant: in one of an image
    without an object, too.

    Raises a `ConfigurationError` if the kind is unknown, or the level out of range.
    """

    kind: ThresholdKind = "fraction"
    level: float = 0.5
    min_area: float = 0.002  # of a region, as a share of the image; smaller ones are dropped

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(ThresholdKind))
        require_number("level", self.level, *((0, 1) if self.kind in ("fraction", "quantile") else ()))
        require_number("min_area", self.min_area, 0, 1)

    def of(self, values: NDArray[np.floating]) -> float:
        """The threshold of finite values of any shape."""
        if self.kind == "fraction":
            return self.level * float(values.max())
        if self.kind == "quantile":
            return float(np.quantile(values, self.level))
        return self.level if self.kind == "value" else otsu(values)


class FoundRegion(NamedTuple):
    """One connected region of a map `(H, W)`."""

    mask: Tensor  # (H, W) bool
    box: tuple[int, int, int, int]  # first row and column, and those after the last
    area: int  # pixels
    mean: float  # of the map in the region
    peak: float  # its largest value there
    place: tuple[int, int]  # row and column of the peak; of several, that nearest to their middle


def found_regions(values: Tensor, threshold: Threshold | None = None) -> tuple[FoundRegion, ...]:
    """Regions in which a map exceeds a threshold, those of the highest peaks first; none in a map that is not finite.

    Pixels that touch at a corner are of one region.

    Args:
        values: `(H, W)`; of signed heatmaps what `relevance` gives.
        threshold: See `Threshold`; None for half of the largest value.

    Raises a `ConfigurationError` if the map is not `(H, W)`.
    """
    from scipy import ndimage

    if values.ndim != 2:
        raise ConfigurationError(f"Expected a map (H, W), but got {tuple(values.shape)}.")
    array = values.detach().cpu().double().numpy()
    if array.size == 0 or not np.isfinite(array).all():
        return ()
    threshold = threshold or Threshold()
    above, smallest = array > threshold.of(array), round(threshold.min_area * array.size)
    labels, _ = ndimage.label(above, structure=np.ones((3, 3)))
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels == number
        inside = array[mask]
        if inside.size >= smallest:
            peaks = np.argwhere(mask & (array == inside.max()))
            row, column = peaks[((peaks - peaks.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist()
            regions.append(
                FoundRegion(
                    torch.from_numpy(mask),
                    (rows.start, columns.start, rows.stop, columns.stop),
                    inside.size,
                    float(inside.mean()),
                    float(inside.max()),
                    (row, column),
                )
            )
    return tuple(sorted(regions, key=lambda region: -region.peak))


def found_on(
    heatmap: Tensor, size: tuple[int, int], threshold: Threshold | None = None, *, peak: float = 0.0
) -> tuple[FoundRegion, ...]:
    """Regions that a signed heatmap `(h, w)` finds on an image `size`, by its positive part, enlarged as `relevance`.

    Args:
        heatmap: A map that is empty beside `peak` finds nothing.
        size: Height and width.
        threshold: See `Threshold`.
        peak: Largest magnitude of a map seen in the run.
    """
    if not float(heatmap.max()) > torch.finfo(torch.float32).eps * peak:
        return ()
    return found_regions(relevance(heatmap, size), threshold)


def otsu(values: NDArray[np.floating]) -> float:
    """The value at or below which lies the lower of two groups with the largest variance between them.

    Of all values, without a histogram; of a constant map its value, above which there is nothing.
    """
    ordered = np.sort(values, axis=None)
    count, total = np.arange(1, ordered.size), np.cumsum(ordered - ordered[0])
    cuts = np.flatnonzero(np.diff(ordered))
    if not cuts.size:
        return float(ordered[0])
    below, above = count[cuts], ordered.size - count[cuts]
    apart = total[cuts] / below - (total[-1] - total[cuts]) / above
    return float(ordered[cuts[np.argmax(below * above * apart**2)]])


def found_iou(regions: tuple[FoundRegion, ...], mask: Tensor) -> tuple[float, float]:
    """Intersection over union of a mask `(H, W)` and the found region that fits best, and its chance level; [0, 1].

    Chance: the mean over all shifts of the found regions, which wrap around. 0 where nothing was found; NaN for an
    empty mask.
    """
    area = int(mask.sum())
    if area == 0:
        return torch.nan, torch.nan
    if not regions:
        return 0.0, 0.0
    spectrum, best = torch.fft.rfft2(mask.double()), torch.zeros((), dtype=torch.float64, device=mask.device)
    for region in regions:
        found = region.mask.to(mask.device)
        both = torch.fft.irfft2(torch.fft.rfft2(found.double()).conj() * spectrum, s=mask.shape).round().clamp_min(0)
        best = torch.maximum(best, both / (found.sum() + area - both))  # by shift; the first is none
    return float(best[0, 0]), float(best.mean())
