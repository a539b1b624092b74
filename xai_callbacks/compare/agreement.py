"""Agreement of the heatmaps of two audits, and what each says of the probes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from xai_callbacks.compare.differences import NOTHING
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.agreement import resampled, ssim, top_overlap
from xai_callbacks.metrics.nulls import explanation_drift
from xai_callbacks.metrics.trust import map_similarity
from xai_callbacks.record import AuditRecord, MapSet

TOP = 0.1  # share of the cells that `overlap` is about
_EXPECTED = 0.95  # quantile of what the maps of two seeds differ by


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement:
    """Heatmaps of one question by one explainer, of two models; each `(N,)` float64, NaN where none can be compared.

    Attributes:
        key: What keys of these heatmaps begin with, such as `gradcam/why`.
        grid: Cells `(h, w)` on which the maps are compared.
        resampled: Whether that is not the grid of both.
        same: Whether both were asked about the same class, `(N,)` bool; only these maps are compared.
        rank_correlation: Spearman's correlation of the cells, in [-1, 1].
        ssim: Structural similarity, in [-1, 1].
        overlap: Share of the tenth of the cells with most positive heat that is the same, in [0, 1].
        distance: Cosine distance: 0 the same, 1 unrelated, 2 reversed.
        expected: 95 % quantile of the distance between seeds of one training; None without seeds.
    """

    key: str
    grid: tuple[int, int]
    resampled: bool
    same: Tensor
    rank_correlation: Tensor
    ssim: Tensor
    overlap: Tensor
    distance: Tensor
    expected: float | None = None


def agreements(a: AuditRecord, b: AuditRecord, expected: Mapping[str, float] | None = None) -> dict[str, Agreement]:
    """Agreement of all heatmaps that both audits have, by what their keys begin with."""
    found = {}
    for key, first, second, same in _pairs(a, b):
        # Two empty maps are no agreement, unless the models are the same.
        known = (first != 0).flatten(1).any(dim=1) | (bool(a.weights) and a.weights == b.weights)
        alike, known = (first == second).flatten(1).all(dim=1) & known, same & known
        values = {
            "rank_correlation": map_similarity(first, second).where(~alike, 1.0),
            "ssim": ssim(first, second).where(~alike, 1.0),
            "overlap": top_overlap(first, second, TOP).where(~alike, 1.0),
            "distance": explanation_drift(first, second).where(~alike, 0.0),
        }
        explainer = key.partition("/")[0]
        found[key] = Agreement(
            key=key,
            grid=(int(first.shape[-2]), int(first.shape[-1])),
            resampled=a.maps[explainer].heatmaps.shape[-2:] != b.maps[explainer].heatmaps.shape[-2:],
            same=same,
            expected=(expected or {}).get(key),
            **{name: each.where(known, torch.nan) for name, each in values.items()},
        )
    return found


def difference_maps(a: AuditRecord, b: AuditRecord, key: str) -> Tensor:
    """Signed heatmaps of `b` less those of `a`, `(N, h, w)` on their common grid; NaN where they cannot be compared.

    Where cells are parts of a logit, this is the heatmap of `logit_b - logit_a`: by linearity its cells are parts of
    that difference. Relative maps are divided by their largest magnitude in their run first.
    """
    first, second, same = _pair(a, b, key)
    return (second - first).where(same[:, None, None], torch.nan)


def mean_difference_map(a: AuditRecord, b: AuditRecord, key: str) -> Tensor:
    """Mean of `difference_maps` over the probes that can be compared, `(h, w)`; NaN if there is none.

    Below 1e-5 of the largest magnitude of the maps it is rounding, and 0.
    """
    first, second, same = _pair(a, b, key)
    mean = (second - first)[same].mean(dim=0)
    size = max(float(each[same].abs().nan_to_num(0, 0, 0).amax()) for each in (first, second)) if same.any() else 0.0
    return mean.where(~(mean.abs() < NOTHING * size), 0)


def says(a: AuditRecord, b: AuditRecord) -> Tensor:
    """How far two models differ in what they say of each probe, `(N,)` float64 in [0, 1].

    Total variation of the probabilities of classes; mean difference of those of labels; of values the difference over
    the sum of it and the spread of what the baseline says.
    """
    if a.outputs is None or b.outputs is None or a.predictions is None or a.outputs.shape != b.outputs.shape:
        return torch.full((len(a.names),), torch.nan, dtype=torch.float64)
    first, second = a.outputs.double(), b.outputs.double()
    if a.predictions.dtype == torch.bool:
        return (first.sigmoid() - second.sigmoid()).abs().mean(dim=1)
    if a.predictions.dtype == torch.int64 and first.shape[1] > 1:
        return (first.softmax(dim=1) - second.softmax(dim=1)).abs().sum(dim=1) / 2
    if a.predictions.dtype == torch.int64:
        return (first.sigmoid() - second.sigmoid()).abs()[:, 0]
    change = (first - second).abs()
    spread = first.std(dim=0, correction=0)
    return (change / (change + spread).clamp_min(torch.finfo(torch.float64).tiny)).mean(dim=1)


def _pairs(a: AuditRecord, b: AuditRecord) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Key, maps `(N, h, w)` of both on a common grid, and for which probes they answer the same question."""
    for explainer, first in a.maps.items():
        second = b.maps.get(explainer)
        if second is None:
            continue
        grid = tuple(min(sides) for sides in zip(first.heatmaps.shape[-2:], second.heatmaps.shape[-2:], strict=True))
        if first.about == "image":
            same = torch.ones(len(a.names), dtype=torch.bool)
            yield explainer, _on(first, 0, grid), _on(second, 0, grid), same
            continue
        for row, question in enumerate(a.questions):
            if question in b.questions:
                other = b.questions.index(question)
                asked = ((a.facts, b.facts), (a.foils, b.foils))
                same = torch.stack([x[row] == y[other] for x, y in asked if x is not None and y is not None])
                yield f"{explainer}/{question}", _on(first, row, grid), _on(second, other, grid), same.all(dim=0)


def _pair(a: AuditRecord, b: AuditRecord, key: str) -> tuple[Tensor, Tensor, Tensor]:
    for name, first, second, same in _pairs(a, b):
        if name == key:
            return first, second, same
    known = ", ".join(each for each, *_ in _pairs(a, b)) or "none"
    raise ConfigurationError(f"Expected `key` to be of heatmaps that both audits have ({known}), but got {key!r}.")


def _on(given: MapSet, row: int, grid: tuple[int, ...]) -> Tensor:
    maps = resampled(given.heatmaps[row].double(), (grid[0], grid[1]), given.units)
    return maps / given.peaks[row] if given.units == "relative" and given.peaks and given.peaks[row] else maps


def expected_distances(seeds: Sequence[AuditRecord]) -> Mapping[str, float]:
    """What maps of the same answer by two seeds rarely differ by: the 95 % quantile, by what their keys begin with."""
    found: dict[str, list[Tensor]] = {}
    for a, b in combinations(seeds, 2):
        for key, first, second, same in _pairs(a, b):
            found.setdefault(key, []).append(explanation_drift(first, second)[same])
    pooled = {key: torch.cat(parts) for key, parts in found.items()}
    known = {key: values[values.isfinite()] for key, values in pooled.items()}
    return {key: float(values.quantile(_EXPECTED)) for key, values in known.items() if len(values)}
