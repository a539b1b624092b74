"""When a rule first raises an alarm, from kept metrics of audits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xai_callbacks import AlarmRule, AuditRecord, Estimate, History
from xai_callbacks.record import Onset

__all__ = ["first_alarm"]


def first_alarm(rule: AlarmRule, cue: str, audits: Iterable[Mapping[str, Estimate]]) -> tuple[int, Onset] | None:
    """Epoch of the first alarm for a cue, and from when the rule dates its use; None without an alarm.

    Args:
        rule: The rule.
        cue: Name of the cue.
        audits: Metrics of one audit an epoch, the first before training.
    """
    history = History()
    for epoch, metrics in enumerate(audits):
        history.append(AuditRecord(step=epoch, epoch=epoch, untrained=epoch == 0, metrics=metrics))
        for finding in rule.conclude(history):
            if finding.key == f"alarm/cue/{cue}" and finding.onset is not None:
                return epoch, finding.onset
    return None
