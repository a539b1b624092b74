"""Judgements of answers to images of which a part was changed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correct", "spread"]


def correct(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 where logits `(N, K)` are largest for the label, else 0; NaN where a logit is not finite. `(N,)` float64."""
    right = (outputs.argmax(dim=1) == labels).double()
    return right.where(outputs.isfinite().all(dim=1), torch.nan)


def spread(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """How far answers to several versions `(F, N, K)` of N images lie apart; both `(N,)` float64, in [0, 1].

    Mean total variation distance from their mean; and 1 where the classes differ, else 0. NaN for logits not finite.
    """
    probabilities = outputs.double().softmax(dim=2)
    distance = (probabilities - probabilities.mean(dim=0)).abs().sum(dim=2).mean(dim=0) / 2
    answers = outputs.argmax(dim=2)
    disagree = (answers != answers[0]).any(dim=0).double()
    finite = outputs.isfinite().all(dim=2).all(dim=0)
    return distance.where(finite, torch.nan), disagree.where(finite, torch.nan)
