"""`Delivery`: the way of a record: rules, history, monitors, loggers, sinks, and last whatever the user's code does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from xai_callbacks._lightning import Trainer
from xai_callbacks.callbacks.notices import Notices, OnError
from xai_callbacks.callbacks.outlets import Outlets
from xai_callbacks.callbacks.run import Run, checkpoint_of
from xai_callbacks.errors import AuditError, NoveltyError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate
from xai_callbacks.rules import Rule, conclude
from xai_callbacks.sinks import main_scalars

__all__ = ["MISSING", "Delivery", "as_tensors"]

MISSING = "Some pictures of audits are missing."
"""Told once, whether it shows during a run or at its end."""

_LEFT_OUT = " failed and was left out"


class Delivery:
    """Delivers the records of a run. Each station that fails costs itself alone.

    Args:
        run: The run, with its history.
        notices: What was said so far.
        outlets: Loggers and sinks.
        rules: What is concluded.
        name: What all keys begin with.
        on_error: What happens when a station fails.

    Attributes:
        published: Values that monitors can read now, by name.
    """

    def __init__(
        self, run: Run, notices: Notices, outlets: Outlets, rules: Sequence[Rule], *, name: str, on_error: OnError
    ) -> None:
        self._run, self._notices, self._outlets, self._rules = run, notices, outlets, tuple(rules)
        self._name, self._on_error = name, on_error
        self.published: dict[str, float] = {}
        self._probes: ProbeSet | None = None

    def deliver(
        self,
        trainer: Trainer,
        probes: ProbeSet,
        record: AuditRecord | None,
        seen: Mapping[str, Estimate],
        logged: Mapping[str, float],
    ) -> None:
        """Deliver one audit. A collective operation where there are rules, also after an audit that failed.

        Args:
            trainer: The trainer.
            probes: The probe set.
            record: The audit; None if it failed.
            seen: What the validation showed at whose end it took place, which is published and logged already.
            logged: What the run itself had logged.
        """
        self._probes = probes
        stop = False
        if record is not None:
            for note in record.notes:
                self._notices.tell(trainer, f"{self._name}: {note}")
            record = replace(
                record,
                run=self._run.identity,
                logged=logged,
                checkpoint=checkpoint_of(trainer, trainer.global_step),
                metrics={**record.metrics, **seen},
            )
            stop = self._concluded(trainer, record, seen, again=False)
        self._agree_to_stop(trainer, stop)

    def complete(self, trainer: Trainer, seen: Mapping[str, Estimate], step: int) -> None:
        """Add what a validation showed to the record of an audit that took place just before it, at the same step.

        A collective operation where there are rules, also where the audit, or what looked on, failed in this process.
        """
        last, stop = self._run.history.last, False
        if seen and last is not None and last.step == step and self._probes is not None:
            record = replace(last, metrics={**last.metrics, **seen}, findings=())
            stop = self._concluded(trainer, record, seen, again=True)
        self._agree_to_stop(trainer, stop)

    def logged(self, trainer: Trainer) -> dict[str, float]:
        """What the run itself has logged, but for what is NaN; may be a collective operation."""
        own = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith(f"{self._name}/")}
        return {key: float(value) for key, value in own.items() if value.numel() == 1 and value.isfinite()}

    def publish(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Let monitors read some values from now on."""
        self.published = values
        trainer.callback_metrics.update(as_tensors(values))

    def log(self, trainer: Trainer, record: AuditRecord) -> None:
        """Log numbers alone."""
        self._outlets.log(trainer, record)

    def drain(self) -> None:
        """Wait for the pictures."""
        self._outlets.drain()

    def _concluded(self, trainer: Trainer, record: AuditRecord, seen: Mapping[str, Estimate], *, again: bool) -> bool:
        """Let the rules conclude and deliver the record; whether training should stop."""
        history = self._run.history
        record, news = conclude(self._rules, history[:-1] if again else history, record)
        own = {key: estimate for key, estimate in record.metrics.items() if key not in seen}
        self.publish(trainer, main_scalars(replace(record, metrics=own), self._name))
        for _, finding in news:
            self._notices.tell(trainer, f"{self._name}: {finding.sentence}" if finding.loud else "", loud=True)
        with self._notices.forgiving(self._on_error, "The history of audits could not be written, training goes on."):
            if again:
                history.replace_last(metrics=record.metrics, findings=record.findings, failed=record.failed)
            else:
                history.append(record)
        with self._notices.forgiving(self._on_error, "A logger failed and training goes on."):
            self._outlets.log(trainer, record, logged=seen)
        if not again and self._probes is not None:
            with self._notices.forgiving(self._on_error, MISSING):
                self._outlets.show(trainer, self._probes, history, self._run.folder)
        self._complain(record)
        for rule, finding in news:
            with self._notices.forgiving(self._on_error, f"What {rule!r} was to do with a finding failed."):
                rule.announce(finding)
        return any(finding.stop for finding in record.findings)

    def _complain(self, record: AuditRecord) -> None:
        """Report what failed, each thing once, whatever else fails."""
        for sentence in record.failed:
            what, _, _ = sentence.partition(_LEFT_OUT)
            with self._notices.forgiving(self._on_error, f"{what} failed, and audits go on without it."):
                raise AuditError(sentence)
        if record.useless:
            with self._notices.forgiving(self._on_error, "A novelty score says nothing, and audits go on without it."):
                raise NoveltyError(" ".join(record.useless))

    def _agree_to_stop(self, trainer: Trainer, stop: bool) -> None:
        """End training on all processes if one of them concludes so."""
        if self._rules and trainer.world_size > 1:
            stop = bool(trainer.strategy.reduce_boolean_decision(stop, all=False))
        trainer.should_stop = trainer.should_stop or stop


def as_tensors(scalars: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Values as Lightning keeps them."""
    return {key: torch.tensor(value) for key, value in scalars.items()}
