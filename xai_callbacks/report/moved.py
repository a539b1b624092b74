"""Where a model finds more evidence than the baseline, over all probes that answer the same question."""

from typing import Any, Final

from xai_callbacks.compare import Comparison
from xai_callbacks.gallery.words import plural
from xai_callbacks.metrics import found_on
from xai_callbacks.probes import ProbeSet
from xai_callbacks.report.pictures import layer_by_itself, layer_size, where

REGIONS: Final = 3  # that are framed, highest peak first


def moved(comparison: Comparison, name: str, probes: ProbeSet) -> list[dict[str, Any]]:
    """A layer, frames `(x, y, width, height)` and words for each kind of heat of which there is a difference region."""
    height, width = size = int(probes.pixels.shape[1]), int(probes.pixels.shape[2])
    found = []
    for key, agreement in comparison.differences[name].agreements.items():
        mean = comparison.mean_difference_map(name, key)
        regions = found_on(mean, size)  # as `Comparison.difference_regions`, without reading the audits again
        if regions:
            share = 100 * regions[0].area / (height * width)
            count = plural(int(agreement.same.sum()), "probe")
            boxes = [each.box for each in regions[:REGIONS]]
            found.append({
                "key": key,
                "image": layer_by_itself(mean.numpy(), layer_size(1, height, width)),
                "frames": [(left, top, right - left, bottom - top) for top, left, bottom, right in boxes],
                "words": f"{count}: most at the {where(regions[0].place, size)}, on {share:.2g}\u00a0% of the image",
            })  # fmt: skip
    return found
