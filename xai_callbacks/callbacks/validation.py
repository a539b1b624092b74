"""`ValidationWatch`: novelty of a whole validation set, from what its forward passes compute anyway."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.access import Tapped
from xai_callbacks.callbacks.watch import Seen, reduced
from xai_callbacks.record import Estimate

__all__ = ["Tappable", "ValidationWatch"]


class Tappable(Protocol):
    """What a watch needs of an auditor."""

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the scores that need nothing but the last layer."""

    def tap(self, model: nn.Module) -> AbstractContextManager[list[Tapped]]:
        """A context inside which calls of the last layer are listed."""

    def of_last_layer(self, tapped: Tapped) -> dict[str, Tensor]:
        """Scores of the images of one call, `(N,)` by name, of those that are watchable."""


class ValidationWatch:
    """Listens to the last layer while Lightning validates.

    Every call of the layer in a validation step counts, whatever the step does. Nothing is changed and nothing is run;
    what is kept is one number an image and score. Scores that are not finite are left out and counted.

    Args:
        auditor: Knows the last layer and the scores.
    """

    def __init__(self, auditor: Tappable) -> None:
        self._auditor = auditor
        self._stack = ExitStack()
        self._calls: list[Tapped] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._error: Exception | None = None

    def begin(self, model: nn.Module) -> None:
        """Listen from now on."""
        self.forget()
        self._calls = self._stack.enter_context(self._auditor.tap(model))

    def before(self, batch: object, dataloader: int) -> None:
        """Nothing: every batch counts, and only what the last layer sees of it."""

    def after(self, outputs: object) -> None:
        """Score what the last batch brought and let go of it."""
        calls, self._calls[:] = list(self._calls), []
        try:
            with torch.no_grad():
                for call in calls:
                    if call.given.ndim == 2:
                        for name, values in self._auditor.of_last_layer(call).items():
                            self._parts.setdefault(name, []).append(values.cpu())
        except Exception as error:  # reported at the end
            self._error = self._error or error

    def stop(self) -> None:
        """Stop listening."""
        self._stack.close()
        self._calls = []

    def check(self) -> None:
        """Stop listening; there is nothing that could be wrong."""
        self.forget()

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and sum up; a collective operation where there are several processes."""
        none = torch.zeros(0, dtype=torch.float64)
        scores = {name: torch.cat(self._parts.get(name, [none])) for name in self._auditor.watchable}
        error = self._error
        self.forget()
        sound = {name: values[values.isfinite()] for name, values in scores.items()}
        # One reduction of all scores, in the same order in every process, also in one that saw no image.
        sums = [[float(values.sum()), len(values), len(scores[name]) - len(values)] for name, values in sound.items()]
        rows = reduced(trainer, torch.tensor(sums, dtype=torch.float64), "sum").tolist()
        metrics = {
            f"validation/novelty/{name}": Estimate(total / count, None, None, None, int(count), int(left_out))
            for name, (total, count, left_out) in zip(sound, rows, strict=True)
            if count > 0
        }
        return Seen(metrics, sound, tuple(_notes(metrics)), error)

    def forget(self) -> None:
        """Begin anew."""
        self.stop()
        self._parts = {}
        self._error = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens."""
        return {"_auditor": self._auditor, "_stack": ExitStack(), "_calls": [], "_parts": {}, "_error": None}


def _notes(metrics: dict[str, Estimate]) -> list[str]:
    if not metrics:
        return [
            "could not score the validation set: its steps call no last linear layer that a hook can see. A compiled "
            "model hides it; or no score suits, see `watch_validation`."
        ]
    left_out = sum(estimate.degenerate for estimate in metrics.values())
    return [f"found that {left_out} novelty score(s) of validation images are NaN or inf."] if left_out else []
