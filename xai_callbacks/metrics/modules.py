"""The localization metrics as `torchmetrics.Metric`, for a user's own validation loop.

State and synchronisation are torchmetrics'; the judgement of each map is the function of the same name. Probes whose
value is NaN are counted in the state `degenerate` and left out of the mean.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from xai_callbacks.metrics import localization
from xai_callbacks.metrics.localization import Policy

__all__ = ["RelevanceMass", "RelevanceRank", "SoftIoU"]


class _Localization(Metric):
    """Mean over maps of one judgement.

    Args:
        policy: What counts as relevance: evidence for the answer, of either sign, or against it.
    """

    # Good or bad depends on the region: relevance on the object is wanted, on a cue it is not.
    higher_is_better = None
    full_state_update = False

    total: Tensor
    valid: Tensor
    degenerate: Tensor

    def __init__(self, policy: Policy = "positive") -> None:
        super().__init__()
        self.policy = policy
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("valid", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("degenerate", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, heatmaps: Tensor, masks: Tensor) -> None:
        """Add maps.

        Args:
            heatmaps: Signed `(..., h, w)`.
            masks: `(..., H, W)` bool; leading axes broadcast.
        """
        relevance = localization.relevance(heatmaps, (masks.shape[-2], masks.shape[-1]), self.policy)
        values = self._judge(relevance, masks)
        missing = values.isnan()
        self.total = self.total + values[~missing].sum()
        self.valid = self.valid + (~missing).sum()
        self.degenerate = self.degenerate + missing.sum()

    def compute(self) -> Tensor:
        """Mean over the valid maps, float64; NaN if there is none."""
        return self.total / self.valid

    @abstractmethod
    def _judge(self, relevance: Tensor, masks: Tensor) -> Tensor:
        """One value a map."""


class RelevanceMass(_Localization):
    """Mean share of the relevance inside the mask, see `relevance_mass`.

    In [0, 1]; chance is the area of the mask.

    Args:
        policy: What counts as relevance: evidence for the answer, of either sign, or against it.

    Example:
        >>> import torch
        >>> from xai_callbacks.metrics import RelevanceMass
        >>> metric = RelevanceMass()
        >>> metric.update(torch.tensor([[[3.0, 1.0], [0.0, -2.0]]]), torch.tensor([[[True, False], [False, False]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    is_differentiable = True

    def _judge(self, relevance: Tensor, masks: Tensor) -> Tensor:
        return localization.relevance_mass(relevance, masks)


class RelevanceRank(_Localization):
    """Mean share of the K most relevant pixels in a mask of K pixels, see `relevance_rank`.

    In [0, 1]; chance is the area of the mask.

    Args:
        policy: What counts as relevance: evidence for the answer, of either sign, or against it.
    """

    is_differentiable = False

    def _judge(self, relevance: Tensor, masks: Tensor) -> Tensor:
        return localization.relevance_rank(relevance, masks)


class SoftIoU(_Localization):
    """Mean overlap of relevance and mask as distributions, see `soft_iou`.

    In [0, 1]; chance is 4a / (1 + 3a), a the area of the mask.

    Args:
        policy: What counts as relevance: evidence for the answer, of either sign, or against it.
    """

    is_differentiable = True

    def _judge(self, relevance: Tensor, masks: Tensor) -> Tensor:
        return localization.soft_iou(relevance, masks)
