"""`Watch`: looks on while Lightning validates."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.record import Estimate, Key


class Seen(NamedTuple):
    """What one pass over the validation set showed, the same in every process unless it says otherwise."""

    metrics: Mapping[str, Estimate]  # by key, such as `group/wga`; NaN where the pass did not allow them
    notes: tuple[str, ...] = ()  # what a user should know of it, to be told once
    error: Exception | None = None  # why there is nothing, or less than there should be


class Watch(ABC):
    """Looks on while Lightning validates: changes nothing, runs nothing.

    An error between `begin` and `end` is for `end` to report, which takes part in reductions whatever happened, so that
    no process waits for another.
    """

    @abstractmethod
    def keys(self, auditor: Auditor) -> Sequence[Key]:
        """Declare what `end` may give; raises a `ConfigurationError` if the watch does not suit the probes."""

    @abstractmethod
    def begin(self, model: nn.Module, auditor: Auditor) -> None:
        """Listen from now on, as the auditor reads the model."""

    def before(self, batch: object, dataloader: int) -> None:  # noqa: B027  # some only listen
        """Look at a batch before the validation step gets it."""

    @abstractmethod
    def after(self, outputs: object) -> None:
        """Take what the step brought; `outputs` is what it returned."""

    @abstractmethod
    def stop(self) -> None:
        """Stop listening."""

    def check(self) -> None:
        """End a sanity check: stop listening; raises a `ConfigurationError` if arguments do not suit the batches."""
        self.forget()

    @abstractmethod
    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and sum up; a collective operation where there are several processes."""

    @abstractmethod
    def forget(self) -> None:
        """Begin anew."""


def reduced(trainer: Trainer, values: Tensor, operation: str) -> Tensor:
    """Sum or maximum of float64 values over all processes, on the CPU; every process must call it."""
    if trainer.world_size == 1:
        return values
    result: Tensor = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op=operation)
    return result.cpu()
