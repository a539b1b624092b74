"""The contract of tasks: what the outputs of a model mean."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, OutputError

__all__ = ["Ending", "Task", "in_key"]

Ending = Literal["sigmoid", "softmax"] | None
"""The function that the outputs of a model come straight from."""


@dataclass(frozen=True)
class Task(ABC):
    """What the outputs `(N, K)` of a model mean.

    Attributes:
        names: Name of each output, by index; None where unknown.
        width: Number of outputs as they are read; None until a model has been looked at.
    """

    names: tuple[str, ...] | None = None
    width: int | None = None

    kind: ClassVar[str]
    """`single-label`, `multi-label` or `regression`."""
    noun: ClassVar[str]
    """What one output stands for, in the singular."""
    plural: ClassVar[str]
    classifies: ClassVar[bool]
    """Whether outputs are logits."""

    @abstractmethod
    def accepts(self, width: int) -> bool:
        """Whether outputs `(N, width)`, as a model gives them, can be those of the probes."""

    @property
    @abstractmethod
    def wanted(self) -> str:
        """The outputs that `accepts` wants, in words."""

    def check(self, outputs: Tensor, ending: Ending, precision: torch.dtype = torch.float32) -> bool:
        """Whether outputs `(N, K)` of sample images are probabilities; refuse what cannot be read.

        Args:
            outputs: As the model gave them.
            ending: What they come from.
            precision: The type the model computes in.

        Raises:
            OutputError: The width does not fit, or the outputs are of another kind.
        """
        width = outputs.shape[1]
        if not self.accepts(width):
            raise OutputError(
                f"Expected {self.wanted}, but the model gives {width:,}.{self._advice(width)} Audit the model that "
                "belongs to the probes, or choose its outputs with `output=`, as in `output=lambda raw: raw['logits']`."
            )
        return self._gives_probabilities(outputs.detach(), ending, precision)

    @abstractmethod
    def read(self, outputs: Tensor, *, probabilities: bool) -> Tensor:
        """Logits `(N, K)`, or values `(N, V)`, of what the model gave; differentiable.

        Args:
            outputs: As the model gave them.
            probabilities: What `check` found.
        """

    def are_distributions(self, outputs: Tensor) -> bool:
        """Whether outputs that are read as logits look like probabilities that add up to 1."""
        return False

    def sized(self, width: int) -> Self:
        """The same task of a model with so many outputs, as they are read."""
        return replace(self, width=width)

    def name(self, index: int) -> str:
        """Name of an output, or the number itself where no name is known."""
        return self.names[index] if self.names is not None and 0 <= index < len(self.names) else str(index)

    def index(self, argument: str, reference: int | str) -> int:
        """Index of the output that a name or an index means.

        Raises:
            ConfigurationError: There is no such output.
        """
        if isinstance(reference, int):
            if self.width is None or 0 <= reference < self.width:
                return reference
            raise ConfigurationError(
                f"Expected `{argument}` to be the index of a {self.noun} below {self.width}, the number of outputs, "
                f"but got {reference}."
            )
        if self.names is not None and self.names.count(reference) == 1:
            return self.names.index(reference)
        known = "has no names: give its index" if self.names is None else f"is one of {', '.join(self.names[:8])}"
        raise ConfigurationError(
            f"Expected `{argument}` to name a {self.noun}, but got {reference!r}. A {self.noun} {known}."
        )

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probability of each output, `(N, K)` in [0, 1], of outputs as they are read; NaN for values."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What the model says: class `(N,)` int64, labels `(N, K)` bool, or values `(N,)` or `(N, V)` float32."""

    @abstractmethod
    def confidences(self, outputs: Tensor) -> Tensor:
        """Probability of the most probable output `(N,)`; NaN for values."""

    @abstractmethod
    def correct(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Share of what the model says of each image that is right, `(N,)` float64 in [0, 1].

        NaN for values, and where no label is known.
        """

    @abstractmethod
    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The output that stands for the truth of each image, `(N,)` int64, -1 for none.

        Of several true labels that which the model finds most probable.
        """

    def most_probable(self, outputs: Tensor) -> Tensor:
        """The output that a model gives most, `(N,)` int64."""
        return outputs.detach().argmax(dim=1)

    def require_classes(self, argument: str, *, single: bool = False) -> None:
        """Refuse values, and with `single` also labels that do not exclude each other.

        Raises:
            ConfigurationError: This task does not suit `argument`.
        """
        if not self.classifies or (single and self.kind != "single-label"):
            wanted = "one label each" if single else "labels"
            raise ConfigurationError(
                f"Expected probes with {wanted} for `{argument}`, but got {self.kind} probes. Leave `{argument}` out."
            )

    def _advice(self, width: int) -> str:
        return ""

    @abstractmethod
    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool: ...


def in_key(name: str | int) -> str:
    """A name as part of a key: what is no letter, digit, `_`, `-` or `.` becomes `_`."""
    return re.sub(r"[^\w.-]+", "_", str(name))
