"""Tasks: how the outputs of a model are read; nothing else takes an argmax or a softmax of outputs.

| task | truth of a probe | outputs of the model | read as |
|---|---|---|---|
| `SingleLabel` | one class | K logits, K probabilities, or one sigmoid logit | K logits of exclusive classes |
| `MultiLabel` | K labels, each 0, 1 or -1 (unknown) | K logits or K sigmoids | K logits of labels that do not |
| `Regression` | one value or V | V values | V values |
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar, Literal

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, OutputError, require_integer, texts_of

__all__ = ["UNKNOWN", "Ending", "MultiLabel", "Regression", "SingleLabel", "Task", "binary_logits", "in_key", "task_of"]

UNKNOWN = -1  # a label of a multi-label probe, or a group, that nobody knows
_TINY = 1e-30  # below this, a probability is read as this: its logarithm stays finite in float32

Ending = Literal["sigmoid", "softmax"] | None
"""The function that the outputs of a model come straight from."""

_ORDINAL = (
    "Ordinal heads of cumulative logits have one output less than classes, which differ by the same amounts for all "
    "images, so that their argmax says nothing: turn them into one logit a class with `output=lambda z: ...`, or audit "
    "the rank as a value, with `targets`."
)


@dataclass(frozen=True)
class Task(ABC):
    """Meaning of the outputs `(N, K)` of a model.

    Attributes:
        names: Name of each output, by index; None where unknown.
        width: Number of outputs as they are read; None until a model has been looked at.
    """

    names: tuple[str, ...] | None = None
    width: int | None = None

    kind: ClassVar[str]  # `single-label`, `multi-label` or `regression`
    noun: ClassVar[str]  # one output, in words
    classifies: ClassVar[bool] = True  # whether outputs are logits

    def __post_init__(self) -> None:
        if self.names is not None:
            texts_of("names", self.names)
        for count in ("width", "labels"):
            if getattr(self, count, None) is not None:
                require_integer(count, getattr(self, count), minimum=0)

    @property
    @abstractmethod
    def wanted(self) -> str:
        """The outputs that `accepts` wants, in words."""

    def accepts(self, width: int) -> bool:
        """Whether outputs `(N, width)`, as a model gives them, can be those of the probes."""
        return width == self.width

    def check(self, outputs: Tensor, ending: Ending, precision: torch.dtype = torch.float32) -> bool:
        """Whether outputs `(N, K)` of sample images, from `ending`, are probabilities.

        Raises an `OutputError` if the width does not fit, or the outputs are of another kind.
        """
        width = outputs.shape[1]
        if not self.accepts(width):
            raise OutputError(
                f"Expected {self.wanted}, but the model gives {width:,}. {self._advice(width)}Audit the model that "
                "belongs to the probes, or choose its outputs with `output=`, as in `output=lambda raw: raw['logits']`."
            )
        return self._gives_probabilities(outputs.detach(), ending, precision)

    def read(self, outputs: Tensor, *, probabilities: bool) -> Tensor:
        """Logits `(N, K)`, or values `(N, V)`, of what the model gave; differentiable."""
        return outputs.logit(eps=1e-7) if probabilities else outputs

    def are_distributions(self, outputs: Tensor) -> bool:
        """Whether outputs that are read as logits look like those of a softmax."""
        return self.kind == "single-label" and _is_distribution(outputs, torch.float32)

    def name(self, index: int) -> str:
        """Name of an output, or the number itself where no name is known."""
        return self.names[index] if self.names is not None and 0 <= index < len(self.names) else str(index)

    def index(self, argument: str, reference: int | str) -> int:
        """Index of the output that a name or an index means; a `ConfigurationError` if there is none."""
        if isinstance(reference, int):
            if reference >= 0 and (self.width is None or reference < self.width):
                return reference
            where = self.noun if self.width is None else f"{self.noun} below {self.width}, the number of outputs"
            raise ConfigurationError(f"Expected `{argument}` to be the index of a {where}, but got {reference}.")
        names = self.names or ()
        if names.count(reference) == 1:
            return names.index(reference)
        near = get_close_matches(reference, names, n=1, cutoff=0.5)
        known = f"is one of {', '.join(names[:8])}" if names else "has no names: give its index"
        hint = f"Did you mean {near[0]!r}?" if near else f"A {self.noun} {known}."
        raise ConfigurationError(f"Expected `{argument}` to name a {self.noun}, but got {reference!r}. {hint}")

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probability of each output, `(N, K)` in [0, 1], of outputs as they are read; NaN for values."""

    def predictions(self, outputs: Tensor) -> Tensor:
        """Class `(N,)` int64, labels `(N, K)` bool, or values `(N,)` or `(N, V)` float32, as the model says."""
        return self.most_probable(outputs)

    def confidences(self, outputs: Tensor) -> Tensor:
        """Probability of the most probable output `(N,)`; NaN for values."""
        return self.probabilities(outputs).amax(dim=1)

    def correct(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Share of the known labels of each image that the model gets right, `(N,)` float64; NaN for values."""
        return torch.full((len(outputs),), torch.nan, dtype=torch.float64)

    @abstractmethod
    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The true output of each image, `(N,)` int64, -1 for none; of several the most probable."""

    def most_probable(self, outputs: Tensor) -> Tensor:
        """The output that a model gives most, `(N,)` int64."""
        return outputs.detach().argmax(dim=1)

    def require_classes(self, argument: str, *, single: bool = False) -> None:
        """Refuse values by a `ConfigurationError`, and with `single` also labels that do not exclude each other."""
        if not self.classifies or (single and self.kind != "single-label"):
            wanted = "one label each" if single else "labels"
            raise ConfigurationError(
                f"Expected probes with {wanted} for `{argument}`, but got {self.kind} probes. Leave `{argument}` out."
            )

    def _advice(self, width: int) -> str:
        return ""

    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool:
        return False


@dataclass(frozen=True)
class SingleLabel(Task):
    """One class an image; the labels of the probes need `labels` classes."""

    labels: int = 0
    kind: ClassVar[str] = "single-label"
    noun: ClassVar[str] = "class"

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
        return f"{_ORDINAL} " if width == max(self.labels, len(self.names or ())) - 1 else ""

    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool:
        if outputs.shape[1] == 1:
            return ending == "sigmoid"
        if _is_distribution(outputs, precision):
            return True
        if ending == "sigmoid":
            raise OutputError(
                f"Expected outputs for classes that exclude each other, but the model ends in {outputs.shape[1]} "
                "sigmoids, which do not. Give the probes `labels` (N, K) of 0, 1 and -1 to audit a multi-label model; "
                "or choose the logits with `output=lambda probabilities: probabilities.logit()`."
            )
        # Two logits of one weight may be those of two classes; probes of three grades say that one is missing.
        if outputs.shape[1] > 2 and _is_cumulative(outputs):
            raise OutputError(f"Expected one logit a class, but got what looks like cumulative logits. {_ORDINAL}")
        return False

    def read(self, outputs: Tensor, *, probabilities: bool) -> Tensor:
        """Logarithms of probabilities are logits: the softmax of `log p` is `p`. One sigmoid logit becomes two."""
        if outputs.shape[1] == 1:
            return binary_logits(super().read(outputs, probabilities=probabilities))
        return outputs.clamp_min(_TINY).log() if probabilities else outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax."""
        return outputs.softmax(dim=1)

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

    @property
    def wanted(self) -> str:
        """Such as "outputs for 14 labels"."""
        return f"outputs for {self.width:,} labels, as the probes have"

    def _gives_probabilities(self, outputs: Tensor, ending: Ending, precision: torch.dtype) -> bool:
        if ending == "softmax" and outputs.shape[1] > 1:
            raise OutputError(
                "Expected one logit or one sigmoid a label, but the model ends in a softmax, of which one label alone "
                "can be near 1. Give the probes `labels` (N,), one class an image, or choose the logits by `output=`."
            )
        return ending == "sigmoid"

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Sigmoid."""
        return outputs.sigmoid()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Labels more probable than not, `(N, K)` bool."""
        return outputs.detach() > 0

    def correct(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Share of the known labels that the model gets right; NaN where none is known."""
        known = truth != UNKNOWN
        right = (self.predictions(outputs) == (truth == 1)) & known
        return right.sum(dim=1).double() / known.sum(dim=1).double()

    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The most probable of the labels that the image has; -1 where it has none."""
        present = truth.to(outputs.device) == 1
        best = outputs.detach().masked_fill(~present, -torch.inf).argmax(dim=1)
        return best.masked_fill(~present.any(dim=1), -1)


@dataclass(frozen=True)
class Regression(Task):
    """One value an image, or V; `width` is V."""

    width: int | None = 1

    kind: ClassVar[str] = "regression"
    noun: ClassVar[str] = "value"
    classifies: ClassVar[bool] = False

    @property
    def wanted(self) -> str:
        """Such as "2 values an image"."""
        return f"{self.width} value{'' if self.width == 1 else 's'} an image, as the probes have targets"

    def _advice(self, width: int) -> str:
        return "A classifier wants probes with integer `labels`, a net of several values `targets` (N, V). "

    def probabilities(self, outputs: Tensor) -> Tensor:
        """NaN."""
        return torch.full_like(outputs, torch.nan)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Values, `(N,)` of one, `(N, V)` of several."""
        values = outputs.detach()
        return values[:, 0] if values.shape[1] == 1 else values

    def truth_of(self, truth: Tensor, outputs: Tensor) -> Tensor:
        """The value, where there is but one."""
        return torch.zeros(len(outputs), dtype=torch.int64, device=outputs.device)


def task_of(labels: Tensor | None, targets: Tensor | None, names: Sequence[str] | None = None) -> Task:
    """The task of probes with labels `(N,)` or `(N, K)`, or targets `(N,)` or `(N, V)`, and with names of outputs."""
    known = None if names is None else tuple(names)
    if targets is not None:
        return Regression(known, 1 if targets.ndim == 1 else targets.shape[1])
    if labels is not None and labels.ndim == 2:
        return MultiLabel(known, labels.shape[1])
    width = None if known is None else len(known)
    return SingleLabel(known, width, labels=0 if labels is None else int(labels.max()) + 1)


def binary_logits(logit: Tensor) -> Tensor:
    """Two logits `(-s/2, s/2)` for one sigmoid logit `s`, shape `(N, 1)` to `(N, 2)`.

    Their softmax is `(1 - sigmoid(s), sigmoid(s))` and their difference is `s`, so both classes can be asked about.
    """
    return torch.cat([-logit, logit], dim=1) / 2


def in_key(name: str | int) -> str:
    """A name as part of a key: all but letters, digits, `_`, `-` and `.` becomes `_`."""
    return re.sub(r"[^\w.-]+", "_", str(name))


def _is_distribution(outputs: Tensor, precision: torch.dtype) -> bool:
    """Whether every row is non-negative and sums to 1, up to 1e-3 or one unit in the last place of `precision`."""
    near = max(1e-3, torch.finfo(precision).eps)
    return bool((outputs >= 0).all() and ((outputs.sum(dim=1) - 1).abs() < near).all())


def _is_cumulative(outputs: Tensor) -> bool:
    """Whether outputs go up and down together: images differ, and the differences between columns do not."""
    moved = outputs - outputs[:1]
    largest = moved.abs().amax()
    scale = outputs.abs().amax().clamp_min(1.0)
    return bool(largest > 1e-4 * scale and (moved - moved[:, :1]).abs().amax() < 1e-3 * largest)
