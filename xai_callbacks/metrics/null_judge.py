"""`NullJudge`: what heatmaps are read beside, so that a large share in a region is not taken for evidence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from xai_callbacks.metrics.judge import KeyedMaps
from xai_callbacks.metrics.localization import area_fraction, relevance, relevance_mass
from xai_callbacks.metrics.nulls import permuted_mask_null, shift_null, signed_share, sobel_magnitude
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet

__all__ = ["REFERENCE", "NullJudge"]

REFERENCE = "reference"
"""Last part of the key of what models with random weights do, as in `gradcam/why/relevance_lift/spurious/reference`."""


class NullJudge:
    """Judges the heatmaps of one probe set by nulls.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `<map>/shift_p/<region>` | rank of the mass in the region among all shifts of the map | (0, 1] | .5 |
    | `<map>/permuted_mass/<region>` | mass in the region of the other probes: a habit of place | [0, 1] | area |
    | `<map>/signed_share/<region>` | evidence for minus against inside the region, over all of it | [-1, 1] | 0 |
    | `edges/relevance_mass/<region>` | mass of an edge filter, which has learned nothing | [0, 1] | area |

    `<map>` is `<explainer>/<question>`, such as `gradcam/why`. Read `shift_p` with `permuted_mass`: shifts do not
    know that maps may favour a place whatever the image.

    Args:
        probes: The probe set.
        images: The probes as they are displayed, `(N, C, H, W)` in [0, 1], for the edges.
    """

    def __init__(self, probes: ProbeSet, images: Tensor) -> None:
        self.probes = probes
        self._size = (probes.images.shape[-2], probes.images.shape[-1])
        # Image by image: sums over masks take eight bytes a pixel.
        rows = range(len(probes))
        self._areas = {
            region: torch.stack([area_fraction(masks[row]) for row in rows]) for region, masks in probes.masks.items()
        }
        self._edges = {
            f"edges/relevance_mass/{region}": PerProbe(
                torch.cat([relevance_mass(sobel_magnitude(images[[row]]), masks[[row]]) for row in rows]),
                self._areas[region],
            )
            for region, masks in probes.masks.items()
        }

    def judge(self, given: Iterable[KeyedMaps], chunk_size: int) -> dict[str, PerProbe]:
        """All nulls of one audit.

        Args:
            given: Heatmaps of each explainer.
            chunk_size: Heatmaps enlarged to the size of the images at a time.
        """
        judged = dict(self._edges)
        rows = [row for each in given for row in zip(each.keys, each.heatmaps, strict=True)]
        for question, maps in rows:
            for region, masks in self.probes.masks.items():
                found = torch.cat(list(self._chunks(maps, masks, chunk_size)), dim=1)
                applies = self._areas[region]
                half, zero = (torch.full_like(applies, level).where(~applies.isnan(), torch.nan) for level in (0.5, 0))
                for name, values, chance in zip(
                    ("shift_p", "permuted_mass", "signed_share"), found, (half, applies, zero), strict=True
                ):
                    judged[f"{question}/{name}/{region}"] = PerProbe(values, chance)
        return judged

    def _chunks(self, maps: Tensor, masks: Tensor, chunk_size: int) -> Iterator[Tensor]:
        """`(3, n)` float64 for each chunk."""
        for start in range(0, len(maps), chunk_size):
            chunk = slice(start, start + chunk_size)
            positive = relevance(maps[chunk], self._size)
            yield torch.stack(
                [
                    shift_null(positive, masks[chunk]).p,
                    permuted_mask_null(positive, masks[chunk], pool=masks),
                    signed_share(maps[chunk], masks[chunk], self._size),
                ]
            )
