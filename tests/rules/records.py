"""Records and histories made by hand, for the tests of rules."""

from __future__ import annotations

from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate, Key, summarize
from xai_callbacks.rules import AlarmRule

LIFT = "gradcam/why/relevance_lift/spurious"

KEYS = (
    Key("accuracy", "share of right answers", 0.0, 1.0, unit="share"),
    Key("confidence", "largest probability", 0.0, 1.0),
    Key("switched", "share of changed answers", 0.0, 1.0, unit="share"),
    Key("gradcam/why/relevance_mass/core", "mass on core", 0.0, 1.0, "area"),
    Key("gradcam/why/relevance_lift/core", "lift on core", 0.0, None, "1"),
    Key("cue/tint/effect", "effect of the cue", -1.0, 1.0, "0"),
    Key("cue/tint/flip_rate", "flips", 0.0, 1.0, unit="share"),
    Key("novelty/energy", "energy"),
    Key("novelty/energy/rank_correlation", "rank correlation", -1.0, 1.0, "0"),
    Key("group/wga", "accuracy of the worst group", 0.0, 1.0, of="images"),
    Key("group/cond_mi", "conditional mutual information", 0.0, 1.0, of="images"),
    Key("group/accuracy_all", "accuracy", 0.0, 1.0, unit="share", of="images"),
    Key("group/accuracy/*", "accuracy of a group", 0.0, 1.0, unit="share", of="images"),
    Key("cluster/count", "kinds of heatmaps", 0.0, of="nothing"),
    Key("alarm/cue/*", "state", 0.0, 2.0, of="nothing"),
)


def estimate(value, low=None, high=None, valid=64, degenerate=0):
    return Estimate(value, low, high, None, valid, degenerate)


def made(metrics=None, per_probe=None, *, chances=None, keys=KEYS, **fields):
    """A record with these metrics, and with the means of what is said of each probe."""
    per_probe, chances = per_probe or {}, chances or {}
    bounds = {key: next(((k.low, k.high) for k in keys if k.matches(key)), (None, None)) for key in per_probe}
    means = {key: summarize(each, chance=chances.get(key), bounds=bounds[key]) for key, each in per_probe.items()}
    metrics = {**means, **(metrics or {})}
    return AuditRecord(metrics=metrics, per_probe=per_probe, chances=chances, keys=keys, **fields)


def history_of(audits, *, folder=None, **fields):
    """A history of one record an epoch, the first of which is before training; `audits` are metrics or records."""
    history = History(folder)
    for place, given in enumerate(audits):
        made_here = {"step": place, "epoch": place, "untrained": place == 0, "keys": (), **fields}
        history.append(given if isinstance(given, AuditRecord) else made(given, **made_here))
    return history


def findings(rule, audits, **fields):
    """What is found after each audit; the first of them is before training."""
    return [rule.conclude(history_of(audits[: place + 1], **fields)) for place in range(len(audits))]


def states(rule, audits, **fields):
    """The state of the first finding after each audit."""
    return [found[0].state for found in findings(rule, audits, **fields)]


def last(audits, rule=None, place=0, **fields):
    return (rule or AlarmRule()).conclude(history_of(audits, **fields))[place]


def effect(value, low=None, high=None, valid=64):
    return {"cue/patch/effect": Estimate(value, low, high, 0.0, valid, 0)}


def lift(low, high, reference=None):
    found = {LIFT: Estimate((low + high) / 2, low, high, 1.0, 64, 0)}
    return found if reference is None else {**found, f"{LIFT}/reference": Estimate(1.0, 0.9, reference, 1.0, 3, 0)}


CLEAN, ABOVE = effect(0.0, -0.02, 0.02), effect(0.3, 0.2, 0.4)
WHERE = {"cue_regions": {"patch": "spurious"}, "questions": ("why", "why_rather_than")}
