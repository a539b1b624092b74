"""`Estimate` and `summarize`: one number for many probes, with its uncertainty and its chance level."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.record import Estimate, PerProbe

__all__ = ["FEWEST_FOR_INTERVAL", "Estimate", "PerProbe", "resampled_means", "summarize"]

FEWEST_FOR_INTERVAL = 30
"""With fewer valid probes an interval would promise more than it knows, and none is given."""

# Resample weights held at once: 8 MB, whatever the number of probes.
_BLOCK = 2**20


def summarize(
    values: Tensor, *, chance: Tensor | None = None, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Mean over probes with a percentile bootstrap interval.

    Probes are resampled, with the ones that have no value among them, so that equal N and seed give equal resamples at
    every audit: estimates of two epochs are paired. PyTorch's global random state is neither read nor advanced.

    Args:
        values: One value a probe, `(N,)`; NaN or inf where there is none. Such probes are counted, never averaged in.
        chance: Chance level of each probe, `(N,)`; NaN where the metric does not apply (the probe has no such region),
            which keeps that probe out of `degenerate`.
        confidence: Level of the interval, in (0, 1).
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ConfigurationError: Shapes differ, or an argument is out of range.
    """
    _check(values, chance, confidence, resamples)
    values = values.detach().to("cpu", torch.float64)
    valid = torch.isfinite(values)
    count = int(valid.sum())
    low, high = None, None
    if count >= FEWEST_FOR_INTERVAL:
        means = resampled_means(values, valid, resamples, seed)
        tail = (1 - confidence) / 2
        low, high = torch.nanquantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    missing, level = ~valid, None
    if chance is not None:
        chance = chance.detach().to("cpu", torch.float64)
        missing, level = missing & ~torch.isnan(chance), float(chance[valid].mean())
    return Estimate(float(values[valid].mean()), low, high, level, count, int(missing.sum()))


def resampled_means(values: Tensor, valid: Tensor, resamples: int = 1000, seed: int = 0) -> Tensor:
    """Means of bootstrap resamples of probes, `(..., resamples)`; those of equal N and seed are paired.

    Args:
        values: `(..., N)` float64.
        valid: Which probes count, `(N,)` bool; the mean of a resample without any is NaN.
        resamples: How many resamples.
        seed: Seed of the resampling.
    """
    probes = values.shape[-1]
    blocks = _kept_weights if probes * resamples <= _BLOCK else _weights
    values, once = torch.where(valid, values, 0.0), valid.double()
    return torch.cat([values @ weights.T / (weights @ once) for weights in blocks(probes, resamples, seed)], dim=-1)


def _weights(probes: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each resample holds each probe, `(block, N)` float64, in blocks of bounded memory."""
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _BLOCK // probes)
    for start in range(0, resamples, block):
        drawn = torch.randint(probes, (min(block, resamples - start), probes), generator=generator)
        once = torch.ones((), dtype=torch.float64).expand_as(drawn)
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, once)


@lru_cache(maxsize=1)
def _kept_weights(probes: int, resamples: int, seed: int) -> tuple[Tensor, ...]:
    """The same, kept: an audit asks for them once a metric, and drawing is most of the cost."""
    return tuple(_weights(probes, resamples, seed))


def _check(values: Tensor, chance: Tensor | None, confidence: float, resamples: int) -> None:
    if values.ndim != 1:
        raise ConfigurationError(f"Expected `values` to be (N,), one a probe, but got shape {tuple(values.shape)}.")
    if chance is not None and chance.shape != values.shape:
        raise ConfigurationError(
            f"Expected `chance` to have the shape of `values`, {tuple(values.shape)}, but got {tuple(chance.shape)}."
        )
    if not 0 < confidence < 1:
        raise ConfigurationError(f"Expected `confidence` to be between 0 and 1, but got {confidence}.")
    if resamples < 1:
        raise ConfigurationError(f"Expected `resamples` to be 1 or more, but got {resamples}.")
