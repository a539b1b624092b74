"""`Delivery`: the way of a record: rules, history, monitors, loggers, sinks, and last whatever the user's code does."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from xai_callbacks._lightning import Trainer
from xai_callbacks.callbacks.notices import Notices
from xai_callbacks.callbacks.run import Run, checkpoint_of
from xai_callbacks.errors import AuditError, DroppedError, NoveltyError
from xai_callbacks.gallery import Gallery
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate
from xai_callbacks.rules import Rule, conclude
from xai_callbacks.sinks import Background, FolderSink, Sink, detail_scalars, finite, main_scalars, sink_for

MISSING = "Some pictures of audits are missing."  # told once, whether it shows during a run or at its end


class Delivery:
    """Delivers the records of a run. Each station that fails costs itself alone.

    Without `sinks` there is one for each logger, and a folder where no logger takes pictures. `published` are the
    values that monitors can read now, by name.
    """

    def __init__(
        self, run: Run, notices: Notices, rules: Sequence[Rule], sinks: Sequence[Sink] | None, *, panels: int, name: str
    ) -> None:
        self._run, self._notices, self._rules, self._sinks = run, notices, rules, sinks
        self._panels, self._name = panels, name
        self._probes: ProbeSet | None = None
        self._background: Background | None = None
        self.published: dict[str, float] = {}

    def deliver(
        self, trainer: Trainer, probes: ProbeSet, record: AuditRecord | None, seen: Mapping[str, Estimate]
    ) -> None:
        """Deliver an audit, or None for one that failed. A collective operation.

        `seen` is what the validation showed at whose end it took place, which is published and logged already.
        """
        self._probes, stop, logged = probes, False, dict[str, float]()
        with self._notices.forgiving():  # may be a collective operation
            own = {key: each for key, each in trainer.callback_metrics.items() if not key.startswith(f"{self._name}/")}
            logged = {key: float(each) for key, each in own.items() if each.numel() == 1 and each.isfinite()}
        if record is not None:
            for note in record.notes:
                self._notices.tell(trainer, f"{self._name}: {note}")
            saved, metrics = checkpoint_of(trainer, trainer.global_step), {**record.metrics, **seen}
            record = replace(record, run=self._run.identity, logged=logged, checkpoint=saved, metrics=metrics)
            stop = self._concluded(trainer, record, seen, again=False)
        self._agree_to_stop(trainer, stop)

    def complete(self, trainer: Trainer, seen: Mapping[str, Estimate], step: int) -> None:
        """Add what a validation showed to the record of an audit that took place just before it, at the same step.

        A collective operation where there are rules, also where the audit, or what looked on, failed in this process.
        """
        last, stop = self._run.history.last, False
        if seen and last is not None and last.step == step:
            record = replace(last, metrics={**last.metrics, **seen}, findings=())
            stop = self._concluded(trainer, record, seen, again=True)
        self._agree_to_stop(trainer, stop)

    def publish(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Let monitors read some values from now on."""
        self.published = values
        trainer.callback_metrics.update(as_tensors(values))

    def log(self, trainer: Trainer, record: AuditRecord, *, logged: Container[str] = ()) -> None:
        """Log the numbers of a record to every logger, but for metrics that are `logged` already."""
        new = {key: each for key, each in record.metrics.items() if key not in logged}
        scalars = main_scalars(replace(record, metrics=new), self._name) | detail_scalars(record, self._name)
        for logger in trainer.loggers if scalars else ():  # an empty row would stand among the user's own
            with self._notices.forgiving("A logger failed and training goes on."):
                logger.log_metrics(finite(scalars), step=record.step)
                logger.save()

    def drain(self) -> None:
        """Wait for the pictures, for a time, and let go of the sinks; raises the first error of one."""
        background, self._background = self._background, None
        if background is not None:
            background.close()
            _raise_first(background)

    def __getstate__(self) -> dict[str, Any]:
        """Without threads."""
        return {**self.__dict__, "_background": None}

    def _concluded(self, trainer: Trainer, record: AuditRecord, seen: Mapping[str, Estimate], *, again: bool) -> bool:
        """Let the rules conclude and deliver the record; whether training should stop."""
        history = self._run.history
        record, news = conclude(self._rules, history[:-1] if again else history, record)
        own = {key: estimate for key, estimate in record.metrics.items() if key not in seen}
        self.publish(trainer, main_scalars(replace(record, metrics=own), self._name))
        for _, finding in news:
            self._notices.tell(trainer, f"{self._name}: {finding.sentence}" if finding.loud else "", loud=True)
        with self._notices.forgiving("The history of audits could not be written, training goes on."):
            if again:
                history.replace_last(metrics=record.metrics, findings=record.findings, failed=record.failed)
            else:
                history.append(record)
        self.log(trainer, record, logged=seen)
        if not again and trainer.is_global_zero:
            with self._notices.forgiving(MISSING):
                self._show(trainer)
        self._complain(record)
        for rule, finding in news:
            with self._notices.forgiving(f"What {rule!r} was to do with a finding failed."):
                rule.announce(finding)
        return any(finding.stop for finding in record.findings)

    def _show(self, trainer: Trainer) -> None:
        """Hand the latest record to all sinks, to be drawn and written soon; never waits."""
        assert self._probes is not None  # noqa: S101  # as there was an audit; narrows the type
        if self._background is None:
            gallery = Gallery(self._probes, max_panels=self._panels, name=self._name)
            self._background = Background(self._chosen_sinks(trainer), gallery.draw)
        self._background.submit(self._run.history)
        _raise_first(self._background)

    def _chosen_sinks(self, trainer: Trainer) -> Sequence[Sink]:
        if self._sinks is not None:
            return self._sinks
        folder = None if self._run.folder is None else self._run.folder / "pictures"
        loggers: Sequence[Any] = trainer.loggers or [None]
        found = list(filter(None, (sink_for(logger, folder=folder, name=self._name) for logger in loggers)))
        # A folder is for runs of which no logger takes pictures; one will do.
        return [sink for sink in found if not isinstance(sink, FolderSink)] or found[:1]

    def _complain(self, record: AuditRecord) -> None:
        """Report what failed, each thing once, whatever else fails."""
        for sentence in record.failed:
            what, _, _ = sentence.partition(" failed and was left out")
            with self._notices.forgiving(f"{what} failed, and audits go on without it."):
                raise AuditError(sentence)
        if record.useless:
            with self._notices.forgiving("A novelty score says nothing, and audits go on without it."):
                raise NoveltyError(" ".join(record.useless))

    def _agree_to_stop(self, trainer: Trainer, stop: bool) -> None:
        """End training on all processes if one of them concludes so."""
        if self._rules and trainer.world_size > 1:
            stop = bool(trainer.strategy.reduce_boolean_decision(stop, all=False))
        trainer.should_stop = trainer.should_stop or stop


def as_tensors(scalars: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Values as Lightning keeps them."""
    return {key: torch.tensor(value) for key, value in scalars.items()}


def _raise_first(background: Background) -> None:
    if errors := background.errors():  # what is dropped for want of time must not hide a failure
        raise min(errors, key=lambda error: isinstance(error, DroppedError))
