"""`GradientReading`: what was asked of the per-sample gradients of one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["GradientReading", "Reduce"]

Reduce = Callable[[str, Tensor], Tensor]
"""From the name of a parameter and its gradients `(N, *shape)` to what is kept of them, `(N, ...)`."""


@dataclass(frozen=True, eq=False)
class GradientReading:
    """Per-sample gradients of N images; by name of the parameter.

    Attributes:
        losses: Loss of every image, `(N,)`.
        squared_norms: Squared Euclidean norm of the gradient of every image's loss, `(N,)` float64 a parameter.
        inner_products: Inner product of that gradient with the reference, `(N,)` float64 a parameter that has one.
        reference_norms: Norm of the reference, a parameter.
        reduced: What `reduce` made of the gradients.
        unused: Parameters that the losses do not depend on; their gradient is zero.
        slow: Modules that had to be run again under `torch.func`, and why; a rule of their own would be faster.
    """

    losses: Tensor
    squared_norms: dict[str, Tensor]
    inner_products: dict[str, Tensor]
    reference_norms: dict[str, float]
    reduced: dict[str, Tensor]
    unused: tuple[str, ...]
    slow: dict[str, str]

    def cosines(self) -> dict[str, Tensor]:
        """Cosine of every image's gradient and the reference, in [-1, 1], `(N,)` a parameter; NaN where either is 0."""
        return {
            name: inner / (self.squared_norms[name].sqrt() * self.reference_norms[name])
            for name, inner in self.inner_products.items()
        }
