"""`ValidationNovelty`: novelty of a whole validation set, from what its forward passes compute anyway."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.access import Tapped
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.watch import Seen, Watch, reduced
from xai_callbacks.record import Estimate, Key

__all__ = ["ValidationNovelty"]


class ValidationNovelty(Watch):
    """Scores all images of the validation set by what the last layer sees while Lightning validates.

    `validation/novelty/<score>` is the mean over the images, for scores of the last layer that do not learn. Every call
    of the layer in a validation step counts, whatever the step does. Nothing is changed and nothing is run; what is
    kept is one number an image and score. Scores that are not finite are left out and counted. Nothing can be seen of a
    compiled model.
    """

    def __init__(self) -> None:
        self._auditor: Auditor | None = None
        self._stack = ExitStack()
        self._calls: list[Tapped] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._error: Exception | None = None

    def keys(self, auditor: Auditor) -> Sequence[Key]:
        """See `Watch.keys`."""
        return [
            Key(
                f"validation/novelty/{name}",
                f"mean novelty of the validation set by {name}; larger = more novel",
                of="images",
            )
            for name in auditor.watchable
        ]

    def begin(self, model: nn.Module, auditor: Auditor) -> None:
        """See `Watch.begin`."""
        self.forget()
        self._auditor = auditor
        self._calls = self._stack.enter_context(auditor.tap(model))

    def after(self, outputs: object) -> None:
        """Score what the last batch brought and let go of it."""
        if self._auditor is None:
            return
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

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and sum up; a collective operation where there are several processes."""
        none = torch.zeros(0, dtype=torch.float64)
        scores = {
            name: torch.cat(self._parts.get(name, [none]))
            for name in (() if self._auditor is None else self._auditor.watchable)
        }
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
        return Seen(metrics, tuple(_notes(metrics)), error)

    def forget(self) -> None:
        """Begin anew."""
        self.stop()
        self._parts = {}
        self._error = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens."""
        return {"_auditor": None, "_stack": ExitStack(), "_calls": [], "_parts": {}, "_error": None}


def _notes(metrics: dict[str, Estimate]) -> list[str]:
    if not metrics:
        return [
            "could not score the validation set: its steps call no last linear layer that a hook can see. A compiled "
            "model hides it; or no score suits, see `ValidationNovelty`."
        ]
    left_out = sum(estimate.degenerate for estimate in metrics.values())
    return [f"found that {left_out} novelty score(s) of validation images are NaN or inf."] if left_out else []
