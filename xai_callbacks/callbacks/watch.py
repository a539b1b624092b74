"""`Watch`: what looks on while Lightning validates; with what every watch reports."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.record import Estimate

__all__ = ["Seen", "Watch", "reduced"]


class Seen(NamedTuple):
    """What one pass over the validation set showed, the same in every process unless it says otherwise.

    Attributes:
        metrics: Estimates by key, such as `group/wga`; NaN where the pass did not allow them.
        scores: Scores of single images by name, `(N,)`, of this process alone.
        notes: What a user should know of it, to be told once.
        error: Why there is nothing, or less than there should be.
    """

    metrics: Mapping[str, Estimate]
    scores: Mapping[str, Tensor] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    error: Exception | None = None


class Watch(Protocol):
    """Looks on while Lightning validates: changes nothing, runs nothing.

    An error between `begin` and `end` is for `end` to report, which takes part in reductions whatever happened, so that
    no process waits for another.
    """

    def begin(self, model: nn.Module) -> None:
        """Listen from now on."""

    def before(self, batch: object, dataloader: int) -> None:
        """Look at a batch before the validation step gets it."""

    def after(self, outputs: object) -> None:
        """Take what the step brought; `outputs` is what it returned."""

    def stop(self) -> None:
        """Stop listening."""

    def check(self) -> None:
        """Stop listening, and raise what is wrong with the configuration: for the sanity check, before training.

        Raises:
            ConfigurationError: The arguments do not suit the batches.
        """

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and sum up; a collective operation where there are several processes."""

    def forget(self) -> None:
        """Begin anew."""


def reduced(trainer: Trainer, values: Tensor, operation: str) -> Tensor:
    """Sum or maximum of float64 values over all processes, on the CPU; every process must call it."""
    if trainer.world_size == 1:
        return values
    result = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op=operation)
    assert isinstance(result, Tensor)  # noqa: S101  # as a tensor went in; narrows the type
    return result.cpu()
