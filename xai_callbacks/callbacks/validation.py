"""`ValidationWatch`: novelty of a whole validation set, from what its forward passes compute anyway."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.access import Tapped

__all__ = ["Seen", "Tappable", "ValidationWatch"]


class Tappable(Protocol):
    """What a watch needs of an auditor."""

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the scores that need nothing but the last layer."""

    def tap(self, model: nn.Module) -> AbstractContextManager[list[Tapped]]:
        """A context inside which calls of the last layer are listed."""

    def of_last_layer(self, tapped: Tapped) -> dict[str, Tensor]:
        """Scores of the images of one call, `(N,)` by name, of those that are watchable."""


class Seen(NamedTuple):
    """Scores of one pass over the validation set.

    Attributes:
        means: Mean by name of the score, over all processes.
        scores: Scores of the images that this process saw, `(N,)` float64 on the CPU by name; those that are not finite
            are left out.
        left_out: How many those are.
    """

    means: dict[str, float]
    scores: dict[str, Tensor]
    left_out: int


class ValidationWatch:
    """Listens to the last layer while Lightning validates.

    Every call of the layer in a validation step counts, whatever the step does. Nothing is changed and nothing is run;
    what is kept is one number an image and score.

    Args:
        auditor: Knows the last layer and the scores.
    """

    def __init__(self, auditor: Tappable) -> None:
        self._auditor = auditor
        self._stack = ExitStack()
        self._calls: list[Tapped] = []
        self._parts: dict[str, list[Tensor]] = {}

    def begin(self, model: nn.Module) -> None:
        """Listen from now on."""
        self.stop()
        self._parts = {}
        self._calls = self._stack.enter_context(self._auditor.tap(model))

    def collect(self) -> None:
        """Score what the last batch brought and let go of it."""
        calls, self._calls[:] = list(self._calls), []
        with torch.no_grad():
            for call in calls:
                if call.given.ndim == 2:
                    for name, values in self._auditor.of_last_layer(call).items():
                        self._parts.setdefault(name, []).append(values.cpu())

    def stop(self) -> None:
        """Stop listening."""
        self._stack.close()
        self._calls = []

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and sum up; a collective operation where there are several processes."""
        self.stop()
        none = torch.zeros(0, dtype=torch.float64)
        scores = {name: torch.cat(self._parts.get(name, [none])) for name in self._auditor.watchable}
        self._parts = {}
        sound = {name: values[values.isfinite()] for name, values in scores.items()}
        # One reduction of all scores, in the same order in every process, also in one that saw no image.
        precise = torch.float32 if trainer.strategy.root_device.type == "mps" else torch.float64
        sums = torch.tensor([[float(values.sum()), len(values)] for values in sound.values()], dtype=precise)
        if trainer.world_size > 1:
            reduced = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum")
            assert isinstance(reduced, Tensor)  # noqa: S101  # as a tensor went in; narrows the type
            sums = reduced.cpu()
        means = {name: total / count for name, (total, count) in zip(sound, sums.tolist(), strict=True) if count > 0}
        return Seen(means, sound, sum(len(scores[name]) - len(values) for name, values in sound.items()))

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens."""
        return {"_auditor": self._auditor, "_stack": ExitStack(), "_calls": [], "_parts": {}}
