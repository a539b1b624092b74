"""`Outlets`: a record to every logger of a trainer that can take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from xai_callbacks._lightning import Trainer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import Estimate, NoveltyRecord
from xai_callbacks.sinks import TensorBoardSink, detail_scalars, finite, main_scalars, write_histograms

__all__ = ["Outlets"]


class Outlets:
    """Scalars to every logger, pictures to those with `add_image`.

    Loggers are told by what they can do, not by class: the two Lightning packages have different ones.

    Args:
        probes: The probe set.
        max_panels: Most probes drawn.
        name: What all tags begin with.
    """

    def __init__(self, probes: ProbeSet, max_panels: int, name: str) -> None:
        self._probes = probes
        self._max_panels = max_panels
        self._name = name
        self._sinks: dict[int, TensorBoardSink] = {}
        self._pictures: dict[str, Any] = {}

    def write(
        self,
        trainer: Trainer,
        record: NoveltyRecord,
        *,
        beside: Mapping[str, Estimate] = MappingProxyType({}),
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write one record everywhere; a logger that fails does not keep the others from it.

        Args:
            trainer: The trainer.
            record: The record.
            beside: Estimates that are written already, and belong on the same page of charts.
            texts: Markdown by tag, for loggers that take text.

        Raises:
            Exception: The first error of a logger, after all were served.
        """
        errors: list[Exception] = []
        for logger in trainer.loggers:
            try:
                logger.log_metrics(
                    finite({**main_scalars(record, self._name), **detail_scalars(record, self._name)}), step=record.step
                )
                logger.save()
                self._draw(trainer, logger, replace(record, metrics={**record.metrics, **beside}))
                self._tell(trainer, logger, texts, record.step)
            except Exception as error:  # raised again below
                errors.append(error)
        errors += [error for sink in self._sinks.values() for error in sink.errors()]
        if errors:
            raise errors[0]

    def write_validation(
        self, trainer: Trainer, metrics: Mapping[str, Estimate], scores: Mapping[str, Tensor], step: int
    ) -> None:
        """Write what the validation set says: estimates, and scores as histograms where a logger takes them.

        Raises:
            Exception: The first error of a logger, after all were served.
        """
        scalars = finite(_scalars(metrics, self._name))
        errors: list[Exception] = []
        for logger in trainer.loggers:
            try:
                if scalars:  # an empty row would stand among the user's own
                    logger.log_metrics(scalars, step=step)
                writer = getattr(logger, "experiment", None) if trainer.is_global_zero and scores else None
                if hasattr(writer, "add_histogram"):
                    write_histograms(writer, self._name, {"validation": scores}, step)
            except Exception as error:  # raised again below
                errors.append(error)
        if errors:
            raise errors[0]

    def drain(self) -> None:
        """Wait for the pictures and let go of the writers, which Lightning closes after a run.

        Raises:
            Exception: The first error of a writer, after all are drained.
        """
        self._pictures = self.state_dict()
        sinks, self._sinks = self._sinks, {}
        errors = [error for sink in sinks.values() for error in sink.drain()]
        if errors:
            raise errors[0]

    def state_dict(self) -> dict[str, Any]:
        """What pictures of several audits remember, as tensors and plain values; empty before the first audit."""
        return next((sink.state_dict() for sink in self._sinks.values()), self._pictures)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self._pictures = state

    def forget(self) -> None:
        """Begin pictures of several audits anew."""
        self._pictures = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without writers and threads."""
        return {**self.__dict__, "_sinks": {}, "_pictures": self.state_dict()}

    def _tell(self, trainer: Trainer, logger: Any, texts: Mapping[str, str], step: int) -> None:
        writer: Any = getattr(logger, "experiment", None) if trainer.is_global_zero and texts else None
        if writer is not None and hasattr(writer, "add_text"):
            for tag, text in texts.items():
                writer.add_text(f"{self._name}/{tag}", text, step)

    def _draw(self, trainer: Trainer, logger: Any, record: NoveltyRecord) -> None:
        # Not every logger has an `experiment`, and few experiments take pictures.
        writer = getattr(logger, "experiment", None) if trainer.is_global_zero and self._max_panels else None
        if writer is None or not hasattr(writer, "add_image"):
            return
        if id(logger) not in self._sinks:
            # The prefix has no public name; without it, only the grouping of the custom scalars page would be lost.
            prefix = getattr(logger, "_prefix", "")
            tag_prefix = f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}" if prefix else ""
            sink = TensorBoardSink(
                writer, self._probes, max_panels=self._max_panels, scalars=False, tag_prefix=tag_prefix, name=self._name
            )
            if self._pictures:
                sink.load_state_dict(self._pictures)
            self._sinks[id(logger)] = sink
        self._sinks[id(logger)].write(record)


def _scalars(metrics: Mapping[str, Estimate], name: str) -> dict[str, float]:
    """Values by key, and what they must be read beside, as of a record."""
    scalars = {f"{name}/{key}": estimate.value for key, estimate in metrics.items()}
    for key, estimate in metrics.items():
        parts = {"chance": estimate.chance, "low": estimate.low, "high": estimate.high}
        scalars |= {f"{name}_detail/{key}/{part}": value for part, value in parts.items() if value is not None}
    return scalars
