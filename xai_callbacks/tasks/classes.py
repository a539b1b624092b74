"""Classes that exclude each other, and labels that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai_callbacks.errors import OutputError
from xai_callbacks.tasks.base import Ending, Task

__all__ = ["UNKNOWN", "MultiLabel", "SingleLabel", "binary_logits"]

UNKNOWN = -1
"""A label of a multi-label probe that nobody knows."""

# Below this, a probability is read as this: its logarithm stays finite in float32.
_TINY = 1e-30


@dataclass(frozen=True)
class SingleLabel(Task):
    """One class an image.

    Attributes:
        labels: Number of classes that the labels of the probes need.
    """

    labels: int = 0

    kind: ClassVar[str] = "single-label"
    noun: ClassVar[str] = "class"
    plural: ClassVar[str] = "classes"
    classifies: ClassVar[bool] = True

    def accepts(self, width: int) -> bool:
        """As many as there are class names; one for two classes; without names, no fewer than labels need."""
        classes = 2 if width == 1 else width
        return classes == len(self.names) if self.names is not None else classes >= self.labels

    @property
    def wanted(self) -> str:
        """Such as "outputs for 2 classes, as the probes name"."""
        if self.names is not None:
            return f"outputs for {len(self.names):,} classes, as the probes name"
        return f"outputs for {self.labels:,} classes or more, as the labels of the probes go up to {self.labels - 1}"

    def _advice(self, width: int) -> str:
        if width == max(self.labels, len(self.names or ())) - 1:
            return (
                " One output less than classes is what ordinal heads of cumulative logits have, which no argmax reads: "
                "turn them into one logit a class with a function, or audit the rank as a value, with `targets`."
            )
        return ""

    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool:
        if outputs.shape[1] == 1:
            return ending == "sigmoid"
        if _is_distribution(outputs, precision):
            return True
        if ending == "sigmoid":
            raise OutputError(
                f"Expected outputs for classes that exclude each other, but the model ends in {outputs.shape[1]} "
                "sigmoids, which do not. Give the probes `labels` of shape (N, K), 0 or 1 a label (-1 where unknown), "
                "to audit a multi-label model; if one class holds an image, choose the logits before the sigmoid with "
                "`output=lambda probabilities: probabilities.logit()`."
            )
        if _is_cumulative(outputs):
            raise OutputError(
                f"Expected one logit a class, but the {outputs.shape[1]} outputs differ by the same amounts for all "
                "images, as cumulative logits of an ordinal head do; their argmax is always the same. Turn them into "
                "one logit a class with a function, as in `output=lambda z: ...`, or audit the rank as a value, with "
                "`targets`."
            )
        return False

    def read(self, outputs: Tensor, *, probabilities: bool) -> Tensor:
        """Logarithms of probabilities are logits: the softmax of `log p` is `p`. One sigmoid logit becomes two."""
        if outputs.shape[1] == 1:
            return binary_logits(torch.logit(outputs, eps=1e-7) if probabilities else outputs)
        return outputs.clamp_min(_TINY).log() if probabilities else outputs

    def are_distributions(self, outputs: Tensor) -> bool:
        """As they are of a softmax."""
        return _is_distribution(outputs, torch.float32)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax."""
        return outputs.softmax(dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit."""
        return self.most_probable(outputs)

    def confidences(self, outputs: Tensor) -> Tensor:
        """Largest probability."""
        return outputs.softmax(dim=1).amax(dim=1)

    def correct(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """1 where the class is the label, else 0."""
        return (self.predictions(outputs) == truth).double()

    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The label."""
        return truth.to(outputs.device)


@dataclass(frozen=True)
class MultiLabel(Task):
    """K labels, each of which an image has or has not; `width` is K."""

    kind: ClassVar[str] = "multi-label"
    noun: ClassVar[str] = "label"
    plural: ClassVar[str] = "labels"
    classifies: ClassVar[bool] = True

    def accepts(self, width: int) -> bool:
        """One output a label."""
        return width == self.width

    @property
    def wanted(self) -> str:
        """Such as "outputs for 14 labels"."""
        return f"outputs for {self.width:,} labels, as the probes have"

    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool:
        if ending == "softmax" and outputs.shape[1] > 1:
            raise OutputError(
                "Expected one logit or one sigmoid a label, but the model ends in a softmax, of which one label alone "
                "can be near 1. Give the probes `labels` of shape (N,), one class an image, or choose the logits with "
                "`output=`."
            )
        return ending == "sigmoid"

    def read(self, outputs: Tensor, *, probabilities: bool) -> Tensor:
        """One logit a label."""
        return torch.logit(outputs, eps=1e-7) if probabilities else outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Sigmoid."""
        return outputs.sigmoid()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Labels more probable than not, `(N, K)` bool."""
        return outputs.detach() > 0

    def confidences(self, outputs: Tensor) -> Tensor:
        """Largest probability of a label."""
        return outputs.sigmoid().amax(dim=1)

    def correct(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Share of the known labels that the model gets right."""
        known = truth != UNKNOWN
        right = (self.predictions(outputs) == (truth == 1)) & known
        return right.sum(dim=1).double() / known.sum(dim=1).double()

    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The most probable of the labels that the image has; -1 where it has none."""
        present = truth.to(outputs.device) == 1
        best = outputs.detach().masked_fill(~present, -torch.inf).argmax(dim=1)
        return best.masked_fill(~present.any(dim=1), -1)


def binary_logits(logit: Tensor) -> Tensor:
    """Two logits `(-s/2, s/2)` for one sigmoid logit `s`, shape `(N, 1)` to `(N, 2)`.

    Their softmax is `(1 - sigmoid(s), sigmoid(s))` and their difference is `s`, so every question keeps its meaning and
    both classes can be asked about.
    """
    return torch.cat([-logit, logit], dim=1) / 2


def _is_distribution(outputs: Tensor, precision: torch.dtype) -> bool:
    """Whether every row is non-negative and sums to 1, up to 1e-3 or one unit in the last place of `precision`."""
    near = max(1e-3, torch.finfo(precision).eps)
    return bool((outputs >= 0).all() and ((outputs.sum(dim=1) - 1).abs() < near).all())


def _is_cumulative(outputs: Tensor) -> bool:
    """Whether outputs go up and down together: images differ, and the differences between columns do not."""
    if len(outputs) < 2 or outputs.shape[1] < 2:
        return False
    moved = outputs - outputs[:1]
    largest = moved.abs().amax()
    scale = outputs.abs().amax().clamp_min(1.0)
    return bool(largest > 1e-4 * scale and (moved - moved[:, :1]).abs().amax() < 1e-3 * largest)
