"""`Watching`: several watches, none at the price of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xai_callbacks._lightning import LightningModule, Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.notices import Notices, OnError
from xai_callbacks.callbacks.quiet import without_logging
from xai_callbacks.callbacks.watch import Seen, Watch
from xai_callbacks.record import Key

__all__ = ["Watching"]


class Watching:
    """The watches of a callback; what one of them raises costs itself alone.

    Args:
        watches: The watches.
        notices: What was said so far.
        on_error: What happens when a watch fails while training.
    """

    def __init__(self, watches: Sequence[Watch], notices: Notices, on_error: OnError) -> None:
        self.watches = tuple(watches)
        self._notices = notices
        self._on_error = on_error

    def keys(self, auditor: Auditor) -> list[Key]:
        """Declarations of all watches; raises what does not suit the probes."""
        return [key for watch in self.watches for key in watch.keys(auditor)]

    def begin(self, module: LightningModule, auditor: Auditor) -> None:
        """Begin to look on."""
        with without_logging(module):
            self._each(lambda watch: watch.begin(module, auditor))

    def before(self, batch: object, dataloader: int) -> None:
        """Look at a batch."""
        self._each(lambda watch: watch.before(batch, dataloader))

    def after(self, outputs: object) -> None:
        """Take what the batch brought."""
        self._each(lambda watch: watch.after(outputs))

    def check(self) -> None:
        """End a sanity check; raises what is wrong with the configuration."""
        for watch in self.watches:
            watch.check()

    def stop(self) -> None:
        """Stop listening, whatever happened."""
        for watch in self.watches:
            with self._notices.forgiving("warn", _unwatched(watch)):
                watch.stop()

    def forget(self) -> None:
        """Begin anew."""
        for watch in self.watches:
            watch.forget()

    def end(self, trainer: Trainer) -> list[Seen]:
        """Sum up what was seen; a collective operation where there are several processes."""
        found: list[Seen] = []
        self._each(lambda watch: found.append(watch.end(trainer)))
        return found

    def complain(self, seen: Seen) -> None:
        """Report why there is less than there should be."""
        if seen.error is not None:
            with self._notices.forgiving(
                self._on_error, "The validation set could not be watched and training goes on."
            ):
                raise seen.error

    def _each(self, act: Callable[[Watch], object]) -> None:
        for watch in self.watches:
            with self._notices.forgiving(self._on_error, _unwatched(watch)):
                act(watch)


def _unwatched(watch: Watch) -> str:
    return f"{type(watch).__name__} could not watch the validation set and training goes on."
