"""The separation of known and novel images as a `torchmetrics.Metric`, for a user's own validation loop."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.metrics.novelty import separation

__all__ = ["NoveltySeparation"]


class NoveltySeparation(Metric):
    """How well novelty scores tell novel images from known ones, see `xai_callbacks.metrics.novelty`.

    Keeps all scores until `reset`, 8 bytes an image, and gathers those of all processes. The value of one batch, which
    calling the metric gives, needs known and novel images in that batch; `update` does not.

    Example:
        >>> import torch
        >>> from xai_callbacks.metrics import NoveltySeparation
        >>> metric = NoveltySeparation()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True]))
        >>> metric.compute()["auroc"]
        0.75
    """

    # Of the judgements, AUROC and AUPR are better high and FPR@95 is better low.
    higher_is_better = None
    is_differentiable = False
    full_state_update = False

    known: list[Tensor] | Tensor
    novel: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        # A process that saw no image sends an empty tensor of the metric's type, which must be that of the others.
        self.set_dtype(torch.float64)
        self.add_state("known", [], dist_reduce_fx="cat")
        self.add_state("novel", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, is_novel: Tensor) -> None:
        """Add images.

        Args:
            scores: `(N,)`, larger = more novel.
            is_novel: `(N,)` bool; True for images that should stand out.

        Raises:
            ConfigurationError: Shapes or types are not these.
            AuditError: A score is NaN or infinite.
        """
        if scores.ndim != 1 or is_novel.shape != scores.shape or is_novel.dtype != torch.bool:
            raise ConfigurationError(
                f"Expected `scores` to be (N,) and `is_novel` bool (N,), but got {tuple(scores.shape)} and "
                f"{is_novel.dtype} {tuple(is_novel.shape)}."
            )
        wrong = (~torch.isfinite(scores)).nonzero().flatten().tolist()
        if wrong:
            raise AuditError(
                f"Expected `scores` to be finite, but got {len(wrong)} of {len(scores)} NaN or infinite, the first at "
                f"index {wrong[0]} of the batch. Look at what the score makes of that image."
            )
        scores = scores.double()
        for state, group in ((self.known, scores[~is_novel]), (self.novel, scores[is_novel])):
            state.append(group)  # type: ignore[union-attr]  # a tensor only after gathering

    def compute(self) -> dict[str, float]:
        """The judgements of `separation`; for intervals hand fixed probes to `separate`.

        Raises:
            ConfigurationError: There is no known or no novel image.
        """
        known, novel = (dim_zero_cat(state) if len(state) else torch.zeros(0) for state in (self.known, self.novel))
        return separation(known, novel)
