"""`Outlets`: numbers to every logger at once, records and pictures to every sink in the background."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xai_callbacks._lightning import Trainer
from xai_callbacks.errors import DroppedError
from xai_callbacks.gallery import Gallery
from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks import Background, FolderSink, Sink, detail_scalars, finite, main_scalars, sink_for

__all__ = ["Outlets"]


class Outlets:
    """Where audits go while Lightning trains.

    Args:
        sinks: Sinks of the user; None for one for each logger, and a folder where there is no logger.
        max_panels: Most probes drawn.
        name: What all tags begin with.
    """

    def __init__(self, sinks: Sequence[Sink] | None, max_panels: int, name: str) -> None:
        self._given = None if sinks is None else tuple(sinks)
        self._max_panels = max_panels
        self._name = name
        self._background: Background | None = None

    def log(self, trainer: Trainer, record: AuditRecord, *, logged: Container[str] = ()) -> None:
        """Log the numbers of a record; a logger that fails does not keep the others from it.

        Args:
            trainer: The trainer, with its loggers.
            record: The record.
            logged: Keys of metrics that are logged already; only ends of intervals are missing of these.

        Raises:
            Exception: The first error of a logger, after all were served.
        """
        new = {key: each for key, each in record.metrics.items() if key not in logged}
        scalars = main_scalars(replace(record, metrics=new), self._name) | detail_scalars(record, self._name)
        errors: list[Exception] = []
        for logger in trainer.loggers if scalars else ():  # an empty row would stand among the user's own
            try:
                logger.log_metrics(finite(scalars), step=record.step)
                logger.save()
            except Exception as error:  # raised again below
                errors.append(error)
        if errors:
            raise errors[0]

    def show(self, trainer: Trainer, probes: ProbeSet, history: History, folder: Path | None) -> None:
        """Hand the latest record to all sinks, to be drawn and written soon; never waits.

        Raises:
            Exception: The first error of a sink since the last call.
        """
        if not trainer.is_global_zero:
            return
        if self._background is None:
            gallery = Gallery(probes, max_panels=self._max_panels, name=self._name)
            self._background = Background(self._sinks(trainer, folder), gallery.draw)
        self._background.submit(history)
        self._raise_first()

    def drain(self) -> None:
        """Wait for the pictures, for a time, and let go of the sinks.

        Raises:
            Exception: The first error of a sink.
        """
        if self._background is not None:
            self._background.close()
            try:
                self._raise_first()
            finally:
                self._background = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the thread."""
        return {**self.__dict__, "_background": None}

    def _sinks(self, trainer: Trainer, folder: Path | None) -> list[Sink]:
        if self._given is not None:
            return list(self._given)
        pictures = None if folder is None else folder / "pictures"
        loggers: list[Any] = [*trainer.loggers] or [None]
        chosen = (sink_for(logger, folder=pictures, name=self._name) for logger in loggers)
        found = [sink for sink in chosen if sink is not None]
        # A folder is for runs of which no logger takes pictures; one will do.
        return [sink for sink in found if not isinstance(sink, FolderSink)] or found[:1]

    def _raise_first(self) -> None:
        errors = [] if self._background is None else self._background.errors()
        if errors:  # what is dropped for want of time must not hide a failure
            raise min(errors, key=lambda error: isinstance(error, DroppedError))
