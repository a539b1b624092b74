"""What alarms and expectations of a run can be about, as its auditor tells it."""

from __future__ import annotations

from xai_callbacks.alarms import AlarmBook, AlarmRule
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.groups import Group
from xai_callbacks.expectations import Vocabulary
from xai_callbacks.trials import CueTrial

__all__ = ["alarm_book", "vocabulary_of"]


def alarm_book(auditor: Auditor, rule: AlarmRule | None) -> AlarmBook:
    """Watches all cues that are tried, and the regions that carry them if heatmaps are judged by nulls."""
    cues = [trial.cue.name for trial in auditor.trials if isinstance(trial, CueTrial)]
    regions = dict.fromkeys(auditor.cue_regions.values()) if auditor.nulls else {}
    first = next(iter(auditor.asked), None)
    lifts = [] if first is None else [f"{first}/relevance_lift/{region}" for region in regions]
    return AlarmBook(cues, lifts, rule)


def vocabulary_of(auditor: Auditor, group: Group | None, *, alarms: bool) -> Vocabulary:
    """The names that expectations may use.

    Args:
        auditor: Audits the run.
        group: How validation images are grouped; None if they are not.
        alarms: Whether cues or regions are watched.
    """
    return Vocabulary.of_probes(
        auditor.probes,
        questions=auditor.asked,
        trials=[trial.name for trial in auditor.trials],
        novelty=[score.name for score in auditor.novelty],
        novel=auditor.novel is not None,
        group_metrics=group is not None,
        aligned=group is not None and group.aligned is not None,
        train_counts=group is not None and group.train_counts is not None,
        clusters=auditor.clusters,
        alarms=alarms,
    )
