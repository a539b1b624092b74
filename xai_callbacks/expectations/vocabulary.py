"""`Vocabulary`: which questions, regions, cues, scores and classes the sentences of a run may name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, NoveltyRecord

__all__ = ["Vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What there is to be named. `of_probes` is for a run that is about to start, `of_record` for a finished audit.

    Attributes:
        questions: What keys of heatmaps begin with, such as `gradcam/why`; the first is meant where a sentence names
            none.
        regions: Names of the masks of the probes.
        trials: Names of the trials, such as `cue/patch`, `region/core`, `rfs/core`, `bg`, `fill`.
        novelty: Names of the novelty scores.
        task: Kind of the task, see `Task.kind`.
        labelled: Whether it is known what is right.
        labels: Class of each probe, by index; None if unknown.
        groups: Group of each probe, by index, -1 for unknown; None if the probes have no groups.
        class_names: Name of each class, by index; None if unknown.
        num_classes: Number of classes of the model; None as long as it has not been seen.
        group_names: Name of each group, by index; None if unknown.
        novel: Whether there are images known to be novel.
        group_metrics: Whether the groups of the validation set are judged.
        aligned: Whether it is known which cue goes with each label.
        train_counts: Whether it is known how labels and cues went together in training.
        clusters: Whether heatmaps are clustered.
        alarms: Whether cues raise alarms.
        extra: Further keys of metrics, to be named in quotes.
        keys: The keys that there are, all of them; None where only a record could tell.
        per_probe: The keys of those with a value for each probe; None likewise.
    """

    questions: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    novelty: tuple[str, ...] = ()
    task: str = "single-label"
    labelled: bool = False
    labels: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    group_names: tuple[str, ...] | None = None
    novel: bool = False
    group_metrics: bool = False
    aligned: bool = False
    train_counts: bool = False
    clusters: bool = False
    alarms: bool = False
    extra: tuple[str, ...] = ()
    keys: tuple[str, ...] | None = None
    per_probe: tuple[str, ...] | None = None

    @classmethod
    def of_probes(
        cls,
        probes: ProbeSet,
        *,
        questions: Iterable[str] = (),
        trials: Iterable[str] = (),
        novelty: Iterable[str] = (),
        num_classes: int | None = None,
        novel: bool = False,
        group_metrics: bool = False,
        aligned: bool = False,
        train_counts: bool = False,
        clusters: bool = False,
        alarms: bool = False,
        extra: Iterable[str] = (),
    ) -> Vocabulary:
        """What can be named before anything is measured; arguments are the attributes of the same name."""
        return cls(
            questions=tuple(questions),
            regions=tuple(probes.masks),
            trials=tuple(trials),
            novelty=tuple(novelty),
            task=probes.task.kind,
            labelled=probes.labels is not None or probes.targets is not None,
            labels=tuple(probes.labels.tolist())
            if probes.task.kind == "single-label" and probes.labels is not None
            else None,
            groups=None if probes.groups is None else tuple(probes.groups.tolist()),
            class_names=probes.class_names,
            num_classes=num_classes,
            group_names=probes.group_names,
            novel=novel,
            group_metrics=group_metrics,
            aligned=aligned,
            train_counts=train_counts,
            clusters=clusters,
            alarms=alarms,
            extra=tuple(extra),
        )

    @classmethod
    def of_record(cls, record: NoveltyRecord, probes: ProbeSet | None = None) -> Vocabulary:
        """What can be named of an audit that has been made: the keys of its metrics.

        Args:
            record: The audit.
            probes: Its probes, from which names and groups are taken; a record has indexes of classes only.

        Raises:
            ConfigurationError: The record is of other probes.
        """
        if probes is not None and probes.fingerprint != record.fingerprint:
            raise ConfigurationError(
                f"Expected `probes` to be those of the record, {record.fingerprint}, but got {probes.fingerprint}. "
                "Load the probe set that the run was audited with."
            )
        keys = tuple(record.metrics)
        found = cls(
            trials=_trials(keys),
            novelty=tuple(record.scores),
            novel=bool(record.novel_scores),
            group_metrics=any(key.startswith("group/") for key in keys),
            aligned="group/conflict_gap" in keys,
            train_counts="group/bias_amplification" in keys,
            clusters=any(key.startswith("cluster/") for key in keys),
            alarms=any(key.startswith("alarm/") for key in keys),
            extra=keys,
            keys=keys,
            per_probe=tuple(f"novelty/{score}" for score in record.scores),
        )
        if isinstance(record, AuditRecord):
            found = _of_audit(found, record)
        return found if probes is None else _with_names(found, probes)

    @property
    def cues(self) -> tuple[str, ...]:
        """Cues that are tried."""
        return self._tried("cue/")

    @property
    def ablated(self) -> tuple[str, ...]:
        """Regions that are filled."""
        return self._tried("region/")

    @property
    def noised(self) -> tuple[str, ...]:
        """Regions that noise is put on."""
        return self._tried("rfs/")

    @property
    def backgrounds(self) -> bool:
        """Whether objects are set on other backgrounds."""
        return "bg" in self.trials

    @property
    def half_fill(self) -> bool:
        """Whether half of the image is overwritten."""
        return "fill" in self.trials

    @property
    def has_core(self) -> bool:
        """Whether it is known where the objects are."""
        return "core" in self.regions

    @property
    def classifies(self) -> bool:
        """Whether classes are predicted."""
        return self.task != "regression"

    @property
    def several_labels(self) -> bool:
        """Whether labels are predicted that do not exclude each other."""
        return self.task == "multi-label"

    @property
    def regresses(self) -> bool:
        """Whether values are predicted."""
        return self.task == "regression"

    def _tried(self, prefix: str) -> tuple[str, ...]:
        return tuple(name.removeprefix(prefix) for name in self.trials if name.startswith(prefix))


def _of_audit(found: Vocabulary, record: AuditRecord) -> Vocabulary:
    truth = record.truth
    regression = bool(record.confidences.isnan().all())
    several = record.predictions.ndim == 2 and not regression
    asked = tuple(
        f"{name}/{question}"
        for name, maps in record.maps.items()
        if maps.about == "question"
        for question in record.questions
    )
    return replace(
        found,
        questions=asked,
        regions=_regions(record.metrics, asked),
        task="regression" if regression else "multi-label" if several else "single-label",
        labelled=truth is not None,
        labels=None if truth is None or regression or several else tuple(truth.tolist()),
        num_classes=None if regression else record.outputs.shape[1],
        per_probe=(*record.per_probe, *(found.per_probe or ())),
    )


def _with_names(found: Vocabulary, probes: ProbeSet) -> Vocabulary:
    return replace(
        found,
        regions=tuple(probes.masks),
        groups=None if probes.groups is None else tuple(probes.groups.tolist()),
        class_names=probes.class_names,
        group_names=probes.group_names,
    )


def _regions(keys: Iterable[str], questions: Sequence[str]) -> tuple[str, ...]:
    either = "|".join(map(re.escape, questions))
    return _found(keys, f"(?:{either})/relevance_mass/(.+)")


def _trials(keys: Sequence[str]) -> tuple[str, ...]:
    named = (*_found(keys, "(cue/.+)/effect"), *_found(keys, "(region/.+)/placebo_drop"), *_found(keys, "(rfs/.+)"))
    return (*named, *(("bg",) if "bg/gap" in keys else ()), *(("fill",) if "fill/disagree" in keys else ()))


def _found(keys: Iterable[str], pattern: str) -> tuple[str, ...]:
    """What the group of a pattern matches, each once, in order."""
    return tuple(dict.fromkeys(match[1] for key in keys if (match := re.fullmatch(pattern, key))))
