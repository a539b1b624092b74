"""`FoundRegions`: the regions that heatmaps stand out in, held against those of the probes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import require_instance
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, keys_of_maps
from xai_callbacks.metrics.found import Threshold, found_iou, found_on
from xai_callbacks.record import AuditRecord, Key, Measured, PerProbe


class FoundRegions(Measure):
    """Circles what the model found: regions in which the positive relevance of a heatmap exceeds a threshold.

    Maps are enlarged to the image. Those that are not finite have no value; in an empty one nothing is found.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `<map>/found/count` | number of regions | [0, inf) | - |
    | `<map>/found/area` | share of the image in them | [0, 1] | - |
    | `<map>/found/iou/<region>` | overlap (IoU) of the region and the found one that fits best | [0, 1] | shifts |

    Cost: for each map one enlargement and one labelling, and a Fourier transform a found region and region.

    Args:
        threshold: See `Threshold`; None for half of the largest value of each map. For maps of probabilities, as of
            `SlidingWindow`, take `Threshold("value", 0.5)`.
    """

    def __init__(self, threshold: Threshold | None = None) -> None:
        self.threshold = Threshold() if threshold is None else threshold
        require_instance("threshold", self.threshold, Threshold, 'a Threshold such as Threshold("otsu")')

    def keys(self, context: Context) -> Sequence[Key]:
        """Two for each map, and one for each region."""
        found = []
        for name in context.maps:
            found.append(Key(f"{name}/found/count", "number of found regions", 0.0))
            found.append(Key(f"{name}/found/area", "share of the image in found regions", 0.0, 1.0))
            for region in context.probes.masks:
                words = f"overlap of {region} with the found region that fits best"
                found.append(Key(f"{name}/found/iou/{region}", words, 0.0, 1.0, "shifts"))
        return found

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge all heatmaps of the record."""
        found: dict[str, PerProbe] = {}
        for name, given in record.maps.items():
            peaks = given.peaks or (0.0,) * len(given.heatmaps)
            for key, maps, peak in zip(keys_of_maps(record, name), given.heatmaps, peaks, strict=True):
                found |= self._judged(key, maps, peak, context)
        return found

    def _judged(self, key: str, maps: Tensor, peak: float, context: Context) -> dict[str, PerProbe]:
        """Judge the maps `(N, h, w)` of one question; `peak` is the largest magnitude of the run."""
        height, width = context.probes.images.shape[-2:]
        known, rows = maps.isfinite().all(dim=(1, 2)), []
        for index, each in enumerate(maps):  # regions are masks of the size of the image: those of one at a time
            regions = found_on(each, (height, width), self.threshold, peak=peak)
            overlaps = [found_iou(regions, masks[index]) for masks in context.probes.masks.values()]
            area = sum(region.area for region in regions) / (height * width)
            rows.append([len(regions), area, *(number for pair in overlaps for number in pair)])
        counts, areas, *pairs = torch.tensor(rows, dtype=torch.float64).T
        values = {f"{key}/found/count": counts, f"{key}/found/area": areas}
        judged = {name: PerProbe(each.where(known, torch.nan)) for name, each in values.items()}
        for region, iou, chance in zip(context.probes.masks, pairs[::2], pairs[1::2], strict=True):
            judged[f"{key}/found/iou/{region}"] = PerProbe(iou.where(known, torch.nan), chance)
        return judged

    def __repr__(self) -> str:
        return f"FoundRegions({self.threshold!r})"
