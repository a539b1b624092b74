"""`Follower`: what is concluded from the audits of a run, one after another: alarms and expectations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from xai_callbacks._lightning import Trainer
from xai_callbacks.alarms import AlarmBook, Finding
from xai_callbacks.expectations import Expectation, Outcome, Tally, check
from xai_callbacks.record import AuditRecord, Estimate

__all__ = ["AlarmFollower", "ExpectationFollower", "Followed", "Follower"]

_OUTCOMES = {"passed": Outcome.PASS, "failed": Outcome.FAIL, "undecided": Outcome.NOT_ENOUGH_EVIDENCE}


class Followed(NamedTuple):
    """What is concluded from one audit.

    Attributes:
        metrics: Estimates that the record is to hold as well, by key.
        texts: Markdown by tag, for loggers that take text.
        news: What a user must not miss, in sentences.
    """

    metrics: Mapping[str, Estimate]
    texts: Mapping[str, str] = MappingProxyType({})
    news: tuple[str, ...] = ()


class Follower(Protocol):
    """Follows the audits of a run."""

    def follow(self, trainer: Trainer, record: AuditRecord) -> Followed:
        """Conclude from one more audit."""

    def finish(self) -> str:
        """The story of the run, as text; empty if there is none."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` left off."""

    def forget(self) -> None:
        """Begin anew."""


class AlarmFollower:
    """Raises alarms: `alarm/<key>` is 0 without evidence, 1 for watch, 2 for alarm, NaN untested; see `alarms`.

    Args:
        book: Knows the rule and the audits so far.
    """

    def __init__(self, book: AlarmBook) -> None:
        self.book = book
        self.findings: tuple[Finding, ...] = ()
        self._announced: dict[str, float] = {}
        self._audited: int | None = None
        self._ahead: str | None = None

    def follow(self, trainer: Trainer, record: AuditRecord) -> Followed:
        """See `Follower.follow`."""
        # The weights of the audit before may have been saved after it, or, at a certain step, just ahead of it.
        checkpoint = _checkpoint_of(trainer, self._audited) or self._ahead
        self._audited = trainer.global_step
        self._ahead = _checkpoint_of(trainer, self._audited)
        self.findings = self.book.see(record.metrics, step=record.step, epoch=record.epoch, checkpoint=checkpoint)
        news = [finding for finding in self.findings if finding.value > self._announced.get(finding.key, 0.0)]
        for finding in news:
            self._announced[finding.key] = finding.value
            if finding.state == "alarm":
                trainer.should_stop = trainer.should_stop or self.book.rule.stop
                if self.book.rule.hook is not None:
                    self.book.rule.hook(finding)
        states = {f"alarm/{finding.key}": _count(finding.value) for finding in self.findings}
        return Followed(
            {**states, "alarm/threshold": _count(self.book.rule.threshold)},
            {"alarm": _listed(self.findings)},
            tuple(finding.sentence for finding in news),
        )

    def finish(self) -> str:
        """The last findings, a line each."""
        return "\n".join(finding.sentence for finding in self.findings)

    def state_dict(self) -> dict[str, Any]:
        """See `Follower.state_dict`."""
        return {
            "book": self.book.state_dict(),
            "announced": dict(self._announced),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Follower.load_state_dict`."""
        self.book.load_state_dict(state["book"])
        self._announced = dict(state["announced"])

    def forget(self) -> None:
        """See `Follower.forget`."""
        self.book.forget()
        self.findings = ()
        self._announced = {}
        self._audited = self._ahead = None


class ExpectationFollower:
    """Holds expectations against each audit: `expectation/passed`, `/failed` and `/undecided` count them.

    Args:
        expectations: From `parse_expectations`.
    """

    def __init__(self, expectations: Sequence[Expectation]) -> None:
        self.tally = Tally(expectations)

    def follow(self, trainer: Trainer, record: AuditRecord) -> Followed:
        """See `Follower.follow`."""
        verdicts = check(self.tally.expectations, record, record.epoch)
        self.tally.add(verdicts, step=record.step, epoch=record.epoch)
        counts = {f"expectation/{name}": _count(self.tally.count(outcome)) for name, outcome in _OUTCOMES.items()}
        return Followed(counts, {"expectations": self.tally.markdown()})

    def finish(self) -> str:
        """The summary table."""
        return self.tally.table()

    def state_dict(self) -> dict[str, Any]:
        """See `Follower.state_dict`."""
        return self.tally.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Follower.load_state_dict`."""
        self.tally.load_state_dict(dict(state))

    def forget(self) -> None:
        """See `Follower.forget`."""
        self.tally.forget()


def _count(value: float) -> Estimate:
    return Estimate(float(value), None, None, None, 1, 0)


def _listed(findings: Sequence[Finding]) -> str:
    # No table: TensorBoard breaks narrow columns within words.
    return "\n".join(f"- **{finding.state}** ({finding.key}): {finding.sentence}" for finding in findings)


def _checkpoint_of(trainer: Trainer, step: int | None) -> str | None:
    """Path of a checkpoint that was saved after that many optimizer steps; None if none is known."""
    for callback in trainer.checkpoint_callbacks:
        # Private, but the only names under which step and path are kept whatever the callback monitors.
        path = getattr(callback, "_last_checkpoint_saved", "")
        if path and path == getattr(callback, "last_model_path", ""):
            # Each save overwrites `last.ckpt`; a file of its own, if there is one, was saved just before.
            kept = getattr(callback, "best_k_models", None) or {getattr(callback, "best_model_path", ""): None}
            path = next(reversed(kept))
        if path and getattr(callback, "_last_global_step_saved", None) == step:
            return str(path)
    return None
