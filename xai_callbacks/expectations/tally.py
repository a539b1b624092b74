"""`Tally`: what became of each expectation, audit after audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xai_callbacks.expectations.check import Outcome, Verdict
from xai_callbacks.expectations.expectation import Expectation
from xai_callbacks.expectations.table import Line, markdown_table, text_table

__all__ = ["Checked", "Tally"]


class Checked(NamedTuple):
    """What one audit said."""

    step: int
    epoch: int
    outcome: Outcome


class Tally:
    """Remembers every verdict of a run, and tells the story in a table.

    Args:
        expectations: From `parse_expectations`.
    """

    def __init__(self, expectations: Sequence[Expectation]) -> None:
        self.expectations = tuple(expectations)
        self._history: dict[str, list[Checked]] = {}
        self._latest: dict[str, Verdict] = {}
        self.forget()

    def add(self, verdicts: Sequence[Verdict], *, step: int, epoch: int) -> None:
        """Remember what one audit said; verdicts of other expectations are left out."""
        for verdict in verdicts:
            label = verdict.expectation.label
            if label in self._history:
                self._history[label].append(Checked(step, epoch, verdict.outcome))
                self._latest[label] = verdict

    def history(self, expectation: Expectation) -> tuple[Checked, ...]:
        """What each audit said of an expectation, the first one first."""
        return tuple(self._history[expectation.label])

    def latest(self, expectation: Expectation) -> Verdict | None:
        """What the latest audit said; None before the first."""
        return self._latest.get(expectation.label)

    def first_failure(self, expectation: Expectation) -> Checked | None:
        """The first audit at which an expectation failed; None if it never did."""
        return next((checked for checked in self.history(expectation) if checked.outcome is Outcome.FAIL), None)

    def count(self, outcome: Outcome) -> int:
        """How many expectations have that outcome now."""
        return sum(verdict.outcome is outcome for verdict in self._latest.values())

    def table(self) -> str:
        """The summary as plain text, at most 100 characters wide."""
        return text_table(self._title(), self._lines())

    def markdown(self) -> str:
        """The summary as Markdown."""
        return markdown_table(self._title(), self._lines())

    def state_dict(self) -> dict[str, Any]:
        """The history and the latest verdicts as plain values."""
        return {
            expectation.label: {
                "sentence": str(expectation),
                "history": [[step, epoch, outcome.value] for step, epoch, outcome in self.history(expectation)],
                "latest": _plain(self.latest(expectation)),
            }
            for expectation in self.expectations
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; an expectation that was changed since begins anew."""
        self.forget()
        for expectation in self.expectations:
            saved = state.get(expectation.label)
            if saved is None or saved["sentence"] != str(expectation):
                continue
            history = [Checked(step, epoch, Outcome(outcome)) for step, epoch, outcome in saved["history"]]
            self._history[expectation.label] = history
            if history:
                latest = {**saved["latest"], "outcome": history[-1].outcome}
                self._latest[expectation.label] = Verdict(expectation=expectation, **latest)

    def forget(self) -> None:
        """Begin anew, as if nothing had been checked."""
        self._history = {expectation.label: [] for expectation in self.expectations}
        self._latest = {}

    def _title(self) -> str:
        audits = [checked for history in self._history.values() for checked in history[-1:]]
        if not audits:
            return "Expectations: nothing was audited."
        last = max(audits, key=lambda checked: checked.step)
        counts = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in Outcome if self.count(outcome))
        return f"Expectations at epoch {last.epoch}, step {last.step}: {counts}."

    def _lines(self) -> list[Line]:
        lines = []
        for expectation in self.expectations:
            verdict, failure = self.latest(expectation), self.first_failure(expectation)
            outcomes = tuple(checked.outcome for checked in self.history(expectation))
            failed = "never" if failure is None else f"epoch {failure.epoch}"
            lines.append(Line(expectation, verdict, failed, outcomes))
        return lines


def _plain(verdict: Verdict | None) -> dict[str, Any]:
    names = ("value", "low", "high", "valid", "margin", "reason")
    return {} if verdict is None else {name: getattr(verdict, name) for name in names}
