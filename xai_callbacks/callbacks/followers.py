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
    """Raises alarms: `alarm/<key>` is 0 without evidence, 1 for watch, 2 for alarm; see `alarms`.

    Args:
        book: Knows the rule and the audits so far.
    """

    def __init__(self, book: AlarmBook) -> None:
        self.book = book
        self.findings: tuple[Finding, ...] = ()
        self._announced: dict[str, float] = {}
        self._checkpoint = ""

    def follow(self, trainer: Trainer, record: AuditRecord) -> Followed:
        """See `Follower.follow`."""
        checkpoint = _newest_checkpoint(trainer)
        # What was saved since the audit before holds the weights that it looked at.
        fresh = checkpoint if checkpoint != self._checkpoint else None
        self._checkpoint = checkpoint
        self.findings = self.book.see(record.metrics, step=record.step, epoch=record.epoch, checkpoint=fresh)
        news = [finding for finding in self.findings if finding.value > self._announced.get(finding.key, 0.0)]
        for finding in news:
            self._announced[finding.key] = finding.value
            if finding.state == "alarm":
                trainer.should_stop = trainer.should_stop or self.book.rule.stop
                if self.book.rule.hook is not None:
                    self.book.rule.hook(finding)
        return Followed(
            {f"alarm/{finding.key}": _count(finding.value) for finding in self.findings},
            {"alarm": _table(self.findings)},
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
            "checkpoint": self._checkpoint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Follower.load_state_dict`."""
        self.book.load_state_dict(state["book"])
        self._announced = dict(state["announced"])
        self._checkpoint = state["checkpoint"]

    def forget(self) -> None:
        """See `Follower.forget`."""
        self.book.forget()
        self.findings = ()
        self._announced = {}
        self._checkpoint = ""


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


def _table(findings: Sequence[Finding]) -> str:
    rows = [f"| {finding.key} | {finding.state} | {finding.sentence.replace('|', '/')} |" for finding in findings]
    return "\n".join(["| cue or region | state | what is known |", "|---|---|---|", *rows])


def _newest_checkpoint(trainer: Trainer) -> str:
    """Path of the checkpoint that was saved last; empty without one."""
    paths = [
        # Private, but the only name under which the path is kept whatever the callback monitors.
        getattr(callback, "_last_checkpoint_saved", "") or getattr(callback, "best_model_path", "")
        for callback in trainer.checkpoint_callbacks
    ]
    return next((path for path in paths if path), "")
