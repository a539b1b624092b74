"""`Watching`: all watches of a callback through one pass over the validation set."""

import math
from collections.abc import Callable, Sequence

from xai_callbacks._lightning import Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.delivery import as_tensors
from xai_callbacks.callbacks.notices import Notices, OnError
from xai_callbacks.callbacks.watch import Seen, Watch
from xai_callbacks.record import Estimate, Key


class Watching:
    """The watches of a callback; what one raises costs itself alone.

    `values` are those that monitors can read now, by name.
    """

    def __init__(self, watches: Sequence[Watch], notices: Notices, *, name: str) -> None:
        self.watches, self._notices, self._name = tuple(watches), notices, name
        self._seen: list[Seen] = []
        self.values: dict[str, float] = {}

    def keys(self, auditor: Auditor | None) -> list[Key]:
        """Declarations of all watches; raises what does not suit the probes."""
        return [] if auditor is None else [key for watch in self.watches for key in watch.keys(auditor)]

    def each(self, act: Callable[[Watch], object], on_error: OnError | None = None) -> None:
        """Have each watch do something."""
        for watch in self.watches:
            happened = f"{type(watch).__name__} could not watch the validation set, training goes on."
            with self._notices.forgiving(happened, on_error):
                act(watch)

    def end(self, trainer: Trainer) -> dict[str, Estimate]:
        """End the pass, let monitors read what was seen, and return it; a collective operation."""
        self._seen = []
        self.each(lambda watch: self._seen.append(watch.end(trainer)))
        metrics = {key: estimate for seen in self._seen for key, estimate in seen.metrics.items()}
        scalars = {f"{self._name}/{key}": estimate.value for key, estimate in metrics.items()}
        # What is not known this time must not be read as of last time.
        self.values = dict.fromkeys(self.values, math.nan) | scalars
        trainer.callback_metrics.update(as_tensors(self.values))
        return metrics

    def tell(self, trainer: Trainer, who: str) -> None:
        """Tell what a user should know of the pass that has just ended."""
        for seen in self._seen:
            for note in seen.notes:
                self._notices.tell(trainer, f"{who} {note}")
            with self._notices.forgiving("The validation set could not be watched, training goes on."):
                if seen.error is not None:
                    raise seen.error

    def forget(self) -> None:
        """Begin anew."""
        self.values = {}
        for watch in self.watches:
            watch.forget()
