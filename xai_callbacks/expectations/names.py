"""What sentences call the metrics: names, the keys that records have for them, and what they need to exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from xai_callbacks.expectations.expectation import Unit
from xai_callbacks.expectations.vocabulary import Vocabulary

__all__ = ["NAMES", "NEEDS", "SLOTS", "Named", "Need", "Slot", "keys_of", "row_of_key"]

_INFINITE = float("inf")


class Named(NamedTuple):
    """One metric.

    Attributes:
        name: What sentences call it, with the field after a point; empty if only by its key.
        key: Its key, with slots such as `{region}`.
        low: Least value it can have.
        high: Greatest.
        share: Each probe says yes (1) or no (0).
        per_probe: It is a mean over probes, so that one may ask for those of one class or group.
        unit: See `Target.unit`.
        needs: Names of what must be configured, see `NEEDS`.
    """

    name: str
    key: str
    low: float = 0.0
    high: float = 1.0
    share: bool = False
    per_probe: bool = True
    unit: Unit = "probes"
    needs: tuple[str, ...] = ()

    @property
    def slot(self) -> str | None:
        """What stands in the brackets, if anything."""
        return next((slot for slot in SLOTS if f"{{{slot}}}" in self.key), None)


class Slot(NamedTuple):
    """What may stand in brackets: what it is, the field of `Vocabulary` that lists it, and how to have it."""

    what: str
    known: str
    way_out: str


class Need(NamedTuple):
    """What a metric needs: the field of `Vocabulary` that tells, what is missing without, and how to have it."""

    told_by: str
    missing: str
    way_out: str


SLOTS = {
    "region": Slot("a region of the probes", "regions", "Give the probes such a mask by `masks=`."),
    "cue": Slot("a cue that is tried", "cues", "Add a CueTrial of a cue of that name to the trials."),
    "ablated": Slot("a region that is filled", "ablated", "Add a RegionTrial of that region to the trials."),
    "noised": Slot("a region that noise is put on", "noised", "Add a NoiseTrial of that region to the trials."),
    "score": Slot("a novelty score", "novelty", "Pass such a score by `novelty=`."),
}

NEEDS = {
    "labels": Need("labelled", "probes without labels", "Give the probes `labels=`."),
    "core": Need("has_core", "no region `core`", "Give the probes that mask by `masks=`."),
    "classes": Need("classifies", "a regression", "Ask for `absolute_error`, or for what is of a heatmap."),
    "values": Need("regresses", "a classifier", "Ask for `accuracy`."),
    "several": Need("several_labels", "one label a probe", "Ask for `accuracy`."),
    "backgrounds": Need("backgrounds", "no such trial", "Add a BackgroundTrial to the trials."),
    "half_fill": Need("half_fill", "no such trial", "Add a HalfTrial to the trials."),
    "novel": Need("novel", "no images known to be novel", "Pass them by `novel=`."),
    "groups": Need("group_metrics", "no groups of the validation set", "Pass `group=`."),
    "aligned": Need("aligned", "no cue that goes with each label", "Give the Group of `group=` its `aligned=`."),
    "train_counts": Need(
        "train_counts", "no counts of the training set", "Give the Group of `group=` its `train_counts=`."
    ),
    "clusters": Need("clusters", "no clusters of heatmaps", "Have the heatmaps clustered."),
    "alarms": Need("alarms", "no alarms", "Have the cues watched, as a ShortcutMonitor does."),
}


def _predictions() -> Iterator[Named]:
    yield Named("accuracy", "accuracy", share=True, needs=("classes", "labels"))
    yield Named("exact_match", "exact_match", share=True, needs=("several", "labels"))
    yield Named("confidence", "confidence", needs=("classes",))
    yield Named("switched", "switched", share=True, needs=("classes",))
    yield Named("absolute_error", "absolute_error", high=_INFINITE, needs=("values", "labels"))
    yield Named("", "absolute_error/{value}", high=_INFINITE, needs=("values", "labels"))


def _heatmaps() -> Iterator[Named]:
    for name in ("relevance_mass", "relevance_rank", "soft_iou"):
        yield Named(name, f"{{question}}/{name}/{{region}}")
    yield Named("relevance_lift", "{question}/relevance_lift/{region}", high=_INFINITE)
    yield Named("drift", "{question}/drift", high=2.0)


def _cues() -> Iterator[Named]:
    for name, key, needs in (
        ("cue_flip_rate", "flip_rate", ()),
        ("cue_consistency", "consistency", ()),
        ("cue_only_accuracy", "only_acc", ("core",)),
        ("object_only_accuracy", "object_only_acc", ("labels",)),
        ("pair_accuracy", "pair_acc", ("labels",)),
        ("spurious_score", "spurious_score", ()),
    ):
        yield Named(name, f"cue/{{cue}}/{key}", share=True, needs=needs)
    yield Named("cue_tv", "cue/{cue}/tv")
    yield Named("cue_effect_logit", "cue/{cue}/effect_logit", -_INFINITE, _INFINITE)
    for name in ("effect", "effect_added", "effect_removed"):
        yield Named(f"cue_{name}", f"cue/{{cue}}/{name}", -1.0)
    yield Named("alarm", "alarm/cue/{cue}", high=2.0, per_probe=False, unit="nothing", needs=("alarms",))


def _regions() -> Iterator[Named]:
    yield Named("region_drop", "region/{ablated}/drop_minus_placebo", -2.0, 2.0)
    for key in ("drop", "placebo_drop", "drop/{fill}"):
        yield Named("", f"region/{{ablated}}/{key}", -1.0)
    yield Named("rfs", "rfs/{noised}", -1.0, per_probe=False)
    yield Named("background_gap", "bg/gap", -1.0, needs=("backgrounds",))
    for name, key in {
        "background_only_accuracy": "bg/only_acc",
        "foreground_only_accuracy": "fg/only_acc",
        "same_background_accuracy": "bg/same_acc",
        "random_background_accuracy": "bg/rand_acc",
    }.items():
        yield Named(name, key, share=True, needs=("backgrounds",))
    yield Named("fill_tv", "fill/tv", needs=("half_fill",))
    yield Named("fill_disagree", "fill/disagree", share=True, needs=("half_fill",))


def _novelty() -> Iterator[Named]:
    yield Named("novelty", "novelty/{score}", -_INFINITE, _INFINITE)
    yield Named("novelty.rank_correlation", "novelty/{score}/rank_correlation", -1.0, per_probe=False)
    for field in ("auroc", "aupr_novel", "aupr_known", "fpr_at_95tpr_id", "fpr_at_95tpr_ood"):
        yield Named(f"novelty.{field}", f"novelty/{{score}}/{field}", per_probe=False, needs=("novel",))


def _groups() -> Iterator[Named]:
    of_all = {
        "worst_group_accuracy": "wga",
        "conditional_mi": "cond_mi",
        "equalised_odds_gap": "equalised_odds_gap",
        "group_ece_gap": "ece_gap",
        "balanced_accuracy": "accuracy_balanced",
    }
    for name, key in of_all.items():
        yield _of_groups(name, key)
    yield _of_groups("average_worst_gap", "average_worst_gap", low=-1.0)
    yield _of_groups("validation_accuracy", "accuracy_all", share=True)
    yield _of_groups("", "accuracy/{group}", share=True)
    yield _of_groups("", "ece/{group}")
    for key in ("count/{group}", "wga_label", "wga_cue", "n_min", "excluded", "empty", "not_finite", "unknown_cue"):
        yield _of_groups("", key, high=_INFINITE)
    yield _of_groups("conflict_gap", "conflict_gap", "aligned", low=-1.0)
    for side in ("aligned", "conflicting"):
        yield _of_groups(f"{side}_accuracy", f"accuracy_{side}", "aligned")
        yield _of_groups(f"{side}_loss", f"loss_{side}", "aligned", high=_INFINITE)
    yield _of_groups("bias_amplification", "bias_amplification", "train_counts", low=-1.0)
    yield _of_groups("reweighted_accuracy", "accuracy_reweighted", "train_counts")
    yield _of_groups("reweighted_average_worst_gap", "average_worst_gap_reweighted", "train_counts", low=-1.0)


def _of_groups(name: str, key: str, *needs: str, low: float = 0.0, high: float = 1.0, share: bool = False) -> Named:
    return Named(name, f"group/{key}", low, high, share, per_probe=False, unit="images", needs=("groups", *needs))


def _clusters() -> Iterator[Named]:
    judged = ("clusters", "labels")
    yield Named("worst_cluster_accuracy", "cluster/worst_acc", per_probe=False, needs=judged)
    yield Named("cluster_error_association", "cluster/error_association", per_probe=False, unit="nothing", needs=judged)
    yield Named("cluster_count", "cluster/count", 0.0, _INFINITE, per_probe=False, unit="nothing", needs=("clusters",))


_ROWS = (*_predictions(), *_heatmaps(), *_cues(), *_regions(), *_novelty(), *_groups(), *_clusters())

NAMES: dict[str, Named] = {row.name: row for row in _ROWS if row.name}
"""Metrics by name, with the field after a point."""

# Slots whose values no vocabulary lists; they are recognised by their form.
_FORMS = {"group": ".+", "fill": "[a-z_]+", "value": r"[\w.-]+"}


def keys_of(vocabulary: Vocabulary) -> Iterator[str]:
    """Every key that a vocabulary makes possible, but those of single groups, fills and values."""
    for row in _ROWS:
        if any(f"{{{form}}}" in row.key for form in _FORMS):
            continue
        if all(getattr(vocabulary, NEEDS[need].told_by) for need in row.needs):
            yield from _filled(row, vocabulary)
    yield from vocabulary.extra


def row_of_key(key: str, vocabulary: Vocabulary) -> Named | None:
    """The metric that a key belongs to; None if the vocabulary has no such key."""
    for row in _ROWS:
        for filled in _filled(row, vocabulary):
            pattern = re.escape(filled)
            for slot, form in _FORMS.items():
                pattern = pattern.replace(re.escape(f"{{{slot}}}"), form)
            if re.fullmatch(pattern, key):
                return row
    if key in vocabulary.extra:
        return Named("", key, -_INFINITE, _INFINITE, per_probe=False)
    return None


def _filled(row: Named, vocabulary: Vocabulary) -> Iterator[str]:
    """The keys of a metric, with every question, region, cue, ... that there is."""
    fields = {"question": "questions", **{name: slot.known for name, slot in SLOTS.items()}}
    used = [slot for slot in fields if f"{{{slot}}}" in row.key]
    for values in product(*(getattr(vocabulary, fields[slot]) for slot in used)):
        key = row.key
        for slot, value in zip(used, values, strict=True):
            key = key.replace(f"{{{slot}}}", value)
        yield key
