"""`ValidationNovelty`: novelty of a whole validation set, from what its forward passes compute anyway."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.access import Tapped
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.watch import Seen, Watch, reduced
from xai_callbacks.record import Estimate, Key

_NOTHING = (
    "could not score the validation set: its steps call no last linear layer that a hook can see. A compiled model "
    "hides it; or no score suits, see `ValidationNovelty`."
)


class ValidationNovelty(Watch):
    """Scores all images of the validation set by what the last layer sees while Lightning validates.

    `validation/novelty/<score>` is the mean over the images, for scores of the last layer that do not learn. Every call
    of the layer in a validation step counts, whatever the step does. Nothing is changed and nothing is run. Scores that
    are not finite are left out and counted. Nothing can be seen of a compiled model.
    """

    def __init__(self) -> None:
        self._auditor: Auditor | None = None
        self._stack = ExitStack()
        self._calls: list[Tapped] = []
        self._sums: dict[str, list[float]] = {}  # sum, images, and images left out, by score
        self._error: Exception | None = None

    def keys(self, auditor: Auditor) -> Sequence[Key]:
        """See `Watch.keys`."""
        words = "mean novelty of the validation set by {}; larger = more novel"
        return [Key(f"validation/novelty/{name}", words.format(name), of="images") for name in auditor.watchable]

    def begin(self, model: nn.Module, auditor: Auditor) -> None:
        """See `Watch.begin`."""
        self.forget()
        self._auditor = auditor
        self._sums = {name: [0.0, 0.0, 0.0] for name in auditor.watchable}
        self._calls = self._stack.enter_context(auditor.tap(model))

    def after(self, outputs: object) -> None:
        """Score what the last batch brought and let go of it."""
        calls, self._calls[:] = [call for call in self._calls if call.given.ndim == 2], []
        try:
            with torch.no_grad():
                scored = [self._auditor.of_last_layer(call) for call in calls] if self._auditor is not None else []
            for name, values in ((name, values.cpu()) for scores in scored for name, values in scores.items()):
                sound = values[values.isfinite()].double()
                new = (float(sound.sum()), len(sound), len(values) - len(sound))
                self._sums[name] = [sum(pair) for pair in zip(self._sums[name], new, strict=True)]
        except Exception as error:  # reported at the end
            self._error = self._error or error

    def stop(self) -> None:
        """Stop listening."""
        self._stack.close()
        self._calls = []

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and sum up; a collective operation where there are several processes."""
        sums, error = self._sums, self._error
        self.forget()
        # One reduction of all scores, in the same order in every process, also in one that saw no image.
        rows = reduced(trainer, torch.tensor([*sums.values()], dtype=torch.float64), "sum").tolist()
        metrics = {
            f"validation/novelty/{name}": Estimate(total / count, None, None, None, int(count), int(left_out))
            for name, (total, count, left_out) in zip(sums, rows, strict=True)
            if count > 0
        }
        lost = sum(estimate.degenerate for estimate in metrics.values())
        told = f"found that {lost} novelty score(s) of validation images are NaN or inf." if metrics else _NOTHING
        return Seen(metrics, (told,) if lost or not metrics else (), error)

    def forget(self) -> None:
        """Begin anew."""
        self.stop()
        self._sums, self._error = {}, None

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens."""
        return dict(vars(type(self)()))
