"""How well does a novelty score tell novel images from known ones?

Scores are one number an image, larger = more novel. `known` are the scores of familiar images, `novel` those of images
that should stand out, `(N,)` and `(M,)` of any floating type, taken as float64. Only the order of the scores counts:
any strictly increasing transform leaves every number as it is.

| judgement | best | chance | question |
|---|---|---|---|
| `novelty_auroc` | 1 | .5 | how often is a novel image ranked above a known one? |
| `novelty_aupr`, positive "novel" or "known" | 1 | M / (N + M), N / (N + M) | how pure is what is picked out first? |
| `fpr_at_95tpr_id` | 0 | .95 | share of novel images let in when 95 % of the known ones are |
| `fpr_at_95tpr_ood` | 0 | .95 | share of known images flagged when 95 % of the novel ones are |

The last two are both called FPR@95 in publications and differ: MSP, ODIN and energy papers report the first, OpenOOD
and pytorch-ood compute the second. AUPR depends on the share of novel images, so compare it between equal probe sets
only; chance levels of AUPR and FPR@95 are those of many images.

Errors: `ConfigurationError` for a malformed or empty group; `AuditError` for scores that are NaN or infinite, which
have no place in an order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from xai_callbacks.errors import AuditError, ConfigurationError, require_integer
from xai_callbacks.metrics.summary import FEWEST_FOR_INTERVAL, Estimate

__all__ = [
    "Positive",
    "fpr_at_95tpr_id",
    "fpr_at_95tpr_ood",
    "novelty_aupr",
    "novelty_auroc",
    "rank_correlation",
    "separate",
    "separation",
]

Positive = Literal["novel", "known"]
"""Which images are to be found: the novel ones (AUPR-OUT), or the known ones (AUPR-IN)."""

# In the order of `_judge`.
_NAMES = ("auroc", "aupr_novel", "aupr_known", "fpr_at_95tpr_id", "fpr_at_95tpr_ood")

# Drawn images held at once: 8 MB, whatever the number of images.
_BLOCK = 2**20


def novelty_auroc(known: Tensor, novel: Tensor) -> float:
    """Chance that a novel image is scored above a known one, ties counting half; in [0, 1]. Chance: .5.

    Args:
        known: Scores of familiar images, `(N,)`.
        novel: Scores of novel images, `(M,)`.
    """
    return float(_auroc(_counts(known, novel)))


def novelty_aupr(known: Tensor, novel: Tensor, positive: Positive = "novel") -> float:
    """Average precision, in (0, 1]. Chance: the share of the positive images.

    Step-wise, `sum (recall step) * precision` over distinct scores; the trapezoids of some publications are optimistic.

    Args:
        known: Scores of familiar images, `(N,)`.
        novel: Scores of novel images, `(M,)`.
        positive: What is to be found; "known" looks at the smallest scores first.
    """
    if positive not in get_args(Positive):
        raise ConfigurationError(f"Expected `positive` to be 'novel' or 'known', but got {positive!r}.")
    counts = _counts(known, novel)
    return float(_average_precision(counts if positive == "known" else counts.novel_first()))


def fpr_at_95tpr_id(known: Tensor, novel: Tensor) -> float:
    """Share of novel images accepted as known when 95 % of the known ones are accepted; in [0, 1]. Chance: .95.

    The threshold is the lowest score that accepts at least 95 % of the known images; nothing is interpolated.

    Args:
        known: Scores of familiar images, `(N,)`.
        novel: Scores of novel images, `(M,)`.
    """
    return float(_fpr_at_95tpr(_counts(known, novel)))


def fpr_at_95tpr_ood(known: Tensor, novel: Tensor) -> float:
    """Share of known images flagged as novel when 95 % of the novel ones are flagged; in [0, 1]. Chance: .95.

    The threshold is the highest score that flags at least 95 % of the novel images; nothing is interpolated.

    Args:
        known: Scores of familiar images, `(N,)`.
        novel: Scores of novel images, `(M,)`.
    """
    return float(_fpr_at_95tpr(_counts(known, novel).novel_first()))


def rank_correlation(before: Tensor, after: Tensor) -> float:
    """Spearman's correlation of the scores of the same images at two times: whether the same images are the novel ones.

    Args:
        before: Scores at the earlier time, `(N,)`.
        after: Scores of the same images at the later time, `(N,)`.

    Returns:
        In [-1, 1]; ties count with their mean rank. NaN where all scores of one time are equal, or N is 1. Chance: 0.

    Raises:
        ConfigurationError: The lengths differ.
    """
    before, after = _checked(before, "before"), _checked(after, "after")
    if before.shape != after.shape:
        raise ConfigurationError(
            f"Expected `before` and `after` to hold scores of the same images, but got {len(before)} and {len(after)}."
        )
    ranks = torch.stack([_mean_ranks(before), _mean_ranks(after)])
    first, second = ranks - ranks.mean(dim=1, keepdim=True)
    # 0 / 0 where a side has no order.
    return float(first @ second / (first.square().sum() * second.square().sum()).sqrt())


def _mean_ranks(scores: Tensor) -> Tensor:
    """Place in ascending order, `(N,)` float64, equal scores sharing the mean of theirs."""
    _, group, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks: Tensor = (sizes.cumsum(dim=0) - (sizes - 1) / 2).double()
    return mean_ranks[group]


def separation(known: Tensor, novel: Tensor) -> dict[str, float]:
    """All judgements: `auroc`, `aupr_novel`, `aupr_known`, `fpr_at_95tpr_id` and `fpr_at_95tpr_ood`.

    Args:
        known: Scores of familiar images, `(N,)`.
        novel: Scores of novel images, `(M,)`.
    """
    return dict(zip(_NAMES, _judge(_counts(known, novel)).tolist(), strict=True))


def separate(
    known: Tensor, novel: Tensor, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """All judgements of `separation` with their intervals and chance levels.

    Percentile intervals from a bootstrap within each group. DeLong's interval would serve the AUROC alone, and leaves
    [0, 1] near perfect scores; one set of resamples serves all judgements, and equal sizes and seed draw the same
    images at every audit: the estimates of two epochs, or of two scores, are paired. PyTorch's global random state is
    neither read nor advanced.

    On normal scores, intervals of level .95 held the true AUROC and FPR@95 in 92 to 96 % of 600 trials, the true AUPR
    in 88 % with 30 images a group and in 92 to 95 % with 100 or more. Where no novel image is scored below a known one,
    the interval is a point: these probes overlap nowhere, which does not say that no image would.

    Args:
        known: Scores of familiar images, `(N,)`.
        novel: Scores of novel images, `(M,)`.
        confidence: Level of the intervals, in (0, 1).
        resamples: Number of bootstrap resamples; the cost is that of drawing `resamples * (N + M)` numbers.
        seed: Seed of the resampling.

    Returns:
        Estimates without an interval if a group has fewer than `FEWEST_FOR_INTERVAL` images.
    """
    _check_interval(confidence, resamples)
    ranks = _ranks(known, novel)
    sizes = (len(ranks.known), len(ranks.novel))
    values = _judge(ranks.counts())
    ends: list[list[float | None]] = [[None] * len(values), [None] * len(values)]
    if min(sizes) >= FEWEST_FOR_INTERVAL:
        drawn = torch.cat([_judge(counts) for counts in _resampled(ranks, resamples, seed)], dim=1)
        tail = (1 - confidence) / 2
        ends = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1).tolist()
    share = sizes[1] / sum(sizes)
    chances = (0.5, share, 1 - share, 0.95, 0.95)
    return {
        name: Estimate(float(value), low, high, chance, sum(sizes), 0)
        for name, value, low, high, chance in zip(_NAMES, values, *ends, chances, strict=True)
    }


class _Counts(NamedTuple):
    """How many images have each distinct score, both `(..., U)` float64, in the order in which images are picked."""

    wanted: Tensor
    others: Tensor

    def novel_first(self) -> _Counts:
        """The other way round: novel images are wanted, and the largest scores come first."""
        return _Counts(self.others.flip(-1), self.wanted.flip(-1))


class _Ranks(NamedTuple):
    """Place of each image's score among the distinct scores, ascending."""

    known: Tensor
    novel: Tensor
    distinct: int

    def counts(self) -> _Counts:
        """Known images are wanted, and the smallest scores come first."""
        known, novel = (torch.bincount(ranks, minlength=self.distinct).double() for ranks in self[:2])
        return _Counts(known, novel)


def _ranks(known: Tensor, novel: Tensor) -> _Ranks:
    known, novel = _checked(known, "known"), _checked(novel, "novel")
    distinct, places = torch.unique(torch.cat([known, novel]), return_inverse=True)
    return _Ranks(places[: len(known)], places[len(known) :], len(distinct))


def _counts(known: Tensor, novel: Tensor) -> _Counts:
    return _ranks(known, novel).counts()


def _resampled(ranks: _Ranks, resamples: int, seed: int) -> Iterator[_Counts]:
    """Counts of each resample, `(block, U)`, in blocks of bounded memory."""
    # A stream for each group: which known images are drawn does not depend on how many novel ones there are.
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    streams = [torch.Generator().manual_seed(each) for each in seeds]
    block = max(1, _BLOCK // (len(ranks.known) + len(ranks.novel)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        wanted, others = (
            _drawn(places, ranks.distinct, rows, stream) for places, stream in zip(ranks[:2], streams, strict=True)
        )
        yield _Counts(wanted, others)


def _drawn(places: Tensor, distinct: int, rows: int, stream: torch.Generator) -> Tensor:
    """Images drawn with replacement, counted at their distinct score, `(rows, U)`."""
    drawn = places[torch.randint(len(places), (rows, len(places)), generator=stream)]
    once = torch.ones((), dtype=torch.float64).expand_as(drawn)
    return torch.zeros(rows, distinct, dtype=torch.float64).scatter_add_(1, drawn, once)


def _judge(known_first: _Counts) -> Tensor:
    """All judgements in the order of `_NAMES`, `(5, ...)`."""
    novel_first = known_first.novel_first()
    return torch.stack(
        [
            _auroc(known_first),
            _average_precision(novel_first),
            _average_precision(known_first),
            _fpr_at_95tpr(known_first),
            _fpr_at_95tpr(novel_first),
        ]
    )


def _auroc(counts: _Counts) -> Tensor:
    """Wanted images before each other one, those at the same score counted half: what average ranks amount to."""
    before = counts.wanted.cumsum(-1) - counts.wanted / 2
    pairs = counts.wanted.sum(-1) * counts.others.sum(-1)
    return (before * counts.others).sum(-1) / pairs


def _average_precision(counts: _Counts) -> Tensor:
    hits = counts.wanted.cumsum(-1)
    # A resample may hold no image at the first scores: nothing is picked, and nothing is added below.
    picked = (hits + counts.others.cumsum(-1)).clamp(min=1)
    return (counts.wanted * hits / picked).sum(-1) / hits[..., -1]


def _fpr_at_95tpr(counts: _Counts) -> Tensor:
    hits, false = counts.wanted.cumsum(-1), counts.others.cumsum(-1)
    # In whole numbers: 19 of 20 are 95 %, whatever 0.95 is in binary.
    enough = 20 * hits >= 19 * hits[..., -1:]
    first = enough.int().argmax(dim=-1, keepdim=True)  # the first of equal maxima
    return (false.gather(-1, first) / false[..., -1:]).squeeze(-1)


def _checked(scores: Tensor, name: str) -> Tensor:
    if scores.ndim != 1 or len(scores) == 0:
        raise ConfigurationError(
            f"Expected `{name}` to be the scores of one image or more, (N,), but got shape {tuple(scores.shape)}. "
            "Telling novel images from known ones takes some of each."
        )
    scores = scores.detach().to("cpu", torch.float64)
    wrong = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if wrong:
        raise AuditError(
            f"Expected `{name}` to be finite scores, but got {len(wrong)} of {len(scores)} NaN or infinite, the first "
            f"at index {wrong[0]}. Look at what the score makes of that image."
        )
    return scores


def _check_interval(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ConfigurationError(f"Expected `confidence` to be between 0 and 1, but got {confidence}.")
    require_integer("resamples", resamples, minimum=1)
