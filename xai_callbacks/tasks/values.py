"""Values of a regression net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai_callbacks.tasks.base import Ending, Task

__all__ = ["Regression"]


@dataclass(frozen=True)
class Regression(Task):
    """One value an image, or V; `width` is V."""

    width: int | None = 1

    kind: ClassVar[str] = "regression"
    noun: ClassVar[str] = "value"
    plural: ClassVar[str] = "values"
    classifies: ClassVar[bool] = False

    def accepts(self, width: int) -> bool:
        """One output a value."""
        return width == self.width

    @property
    def wanted(self) -> str:
        """Such as "2 values an image"."""
        return f"{self.width} value{'' if self.width == 1 else 's'} an image, as the probes have targets"

    def _advice(self, width: int) -> str:
        return " A classifier wants probes with integer `labels`, a net of several values `targets` (N, V)."

    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool:
        return False

    def read(self, outputs: Tensor, *, probabilities: bool) -> Tensor:
        """As they are."""
        return outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """NaN."""
        return torch.full_like(outputs, torch.nan)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Values, `(N,)` of one, `(N, V)` of several."""
        values = outputs.detach()
        return values[:, 0] if values.shape[1] == 1 else values

    def confidences(self, outputs: Tensor) -> Tensor:
        """NaN."""
        return torch.full_like(outputs.detach()[:, 0], torch.nan)

    def correct(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """NaN: values are near, not right."""
        return torch.full((len(outputs),), torch.nan, dtype=torch.float64)

    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The value, where there is but one."""
        return torch.zeros(len(outputs), dtype=torch.int64, device=outputs.device)
