"""Figures of `evaluate_detection.py` from what was kept of each net: error rates, lead times, rank correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from _detection_statistics import SIGMAS, auroc, auroc_interval, clopper_pearson, slopes_on, spearman
from _first_alarm import first_alarm

from xai_callbacks import AlarmRule, Estimate
from xai_callbacks.metrics import summarize
from xai_callbacks.metrics.groups import wilson_interval

__all__ = ["POSITIVE", "kind_of", "summarized"]

POSITIVE, NEGATIVE = 0.10, 0.03
_EARLY = ("1", "2", "3")
# A threshold lets this share of the calibration negatives pass, over all their epochs.
_QUANTILE = 0.95
_PERSISTENT = 2
_DROP = 0.02
_FLIPPED = 0.05
_THRESHOLDS = (0.01, 0.02, 0.03, 0.04, 0.05)

Net = Mapping[str, Any]
Curve = list[float]


def kind_of(gap: Sequence[float]) -> str:
    """`positive`, `negative` or `grey`, from a gap and its standard error."""
    value, error = gap
    if value >= POSITIVE and value - SIGMAS * error > 0:
        return "positive"
    return "negative" if abs(value) <= NEGATIVE else "grey"


def summarized(nets: Sequence[Net]) -> dict[str, Any]:
    """All figures, by family and metric, and those of the rule."""
    trained = [net for net in nets if net["spec"]["pool"] == "trained"]
    clean = {pool: [net for net in nets if net["spec"]["pool"] == pool] for pool in ("calibration", "held-out")}
    families = list(clean["held-out"][0]["looks"])
    figures: dict[str, Any] = {family: _family(family, trained, clean) for family in families}
    figures["placebo"] = _placebo(families, clean)
    figures["rule"] = _rule(families, trained, clean["held-out"])
    figures["rule_by_threshold"] = {
        f"{threshold:g}": {
            pool: _short(_rule(families, trained, nets, rule=AlarmRule(threshold=threshold)))
            for pool, nets in clean.items()
        }
        for threshold in _THRESHOLDS
    }
    figures["rule_by_probes"] = {
        str(count): _short(_rule(families, trained, clean["held-out"], probes=count)) for count in (32, 64, 128)
    }
    figures["salience"] = _salience(trained, clean)
    figures["nets"] = _counts(families, trained, clean)
    return figures


def _family(family: str, trained: Sequence[Net], clean: Mapping[str, Sequence[Net]]) -> dict[str, Any]:
    learnt = [net for net in trained if net["spec"]["family"] == family]
    negatives = [*clean["calibration"], *clean["held-out"]]
    judged = [(net, kind_of(net["gap"][family])) for net in [*learnt, *negatives]]
    positive = [net for net, kind in judged if kind == "positive"]
    negative = [net for net, kind in judged if kind == "negative"]
    names = learnt[0]["looks"][family][-1]["metrics"]
    return {
        name: _metric(name, family, learnt, positive, negative, clean)
        for name in (*names, "baseline/one_minus_validation_accuracy")
    }


def _metric(
    name: str,
    family: str,
    learnt: Sequence[Net],
    positive: Sequence[Net],
    negative: Sequence[Net],
    clean: Mapping[str, Sequence[Net]],
) -> dict[str, Any]:
    def curves(nets: Sequence[Net]) -> list[Curve]:
        return [_curve(net, family, name) for net in nets]

    ends = [torch.tensor([curve[-1] for curve in curves(nets)], dtype=torch.float64) for nets in (negative, positive)]
    gaps = torch.tensor([net["gap"][family][0] for net in learnt], dtype=torch.float64)
    found: dict[str, Any] = {
        "auroc_last": auroc(*ends),
        "auroc_last_ci": auroc_interval(*ends),
        "auroc_epoch": {
            epoch: auroc(*(torch.tensor([c[int(epoch)] for c in curves(nets)]) for nets in (negative, positive)))
            for epoch in _EARLY
        },
        "spearman_gap": spearman(torch.tensor([curve[-1] for curve in curves(learnt)]).double(), gaps),
        "spearman_gap_within_strength": _within(name, family, learnt),
    }
    threshold = _threshold(curves(clean["calibration"]))
    alarms = [_first_alarm(curve, threshold) for curve in curves(positive)]
    false = [_first_alarm(curve, threshold) for curve in curves(clean["held-out"])]
    hits, wrong = sum(epoch is not None for epoch in alarms), sum(epoch is not None for epoch in false)
    flips = [_curve(net, family, "cue/flip_rate") for net in positive]
    limit = _threshold([_curve(net, family, "cue/flip_rate") for net in clean["calibration"]])
    others = {
        "over_biased_validation": [_drops(net["validation"]) for net in positive],
        "over_labelled_100": [_labelled(net, family) for net in positive],
        "over_flips": [_first_alarm(curve, limit) for curve in flips],
    }
    epochs = len(positive[0]["validation"]) - 1 if positive else 0
    return found | {
        "threshold": threshold,
        "tpr": hits / len(alarms) if alarms else None,
        "tpr_ci": clopper_pearson(hits, len(alarms)) if alarms else None,
        "far_heldout": wrong / len(false),
        "far_heldout_ci": clopper_pearson(wrong, len(false)),
        "lead_time": {key: _lead(alarms, epochs_of, epochs) for key, epochs_of in others.items()},
    }


def _curve(net: Net, family: str, name: str) -> Curve:
    """A metric at each audit; NaN where it was not taken."""
    if name == "baseline/one_minus_validation_accuracy":
        return [1 - accuracy for accuracy in net["validation"]]
    return [look["metrics"].get(name, math.nan) for look in net["looks"][family]]


def _within(name: str, family: str, learnt: Sequence[Net]) -> float | None:
    """Rank correlation with the gap of what differs between nets of one strength: ranks less the mean of theirs."""
    strengths = torch.tensor([net["spec"]["strength"] for net in learnt])
    values = torch.tensor([_curve(net, family, name)[-1] for net in learnt]).double()
    gaps = torch.tensor([net["gap"][family][0] for net in learnt]).double()
    if not bool(values.isfinite().all()):
        return None
    parts = []
    for ranked in (values.argsort().argsort().double(), gaps.argsort().argsort().double()):
        centred = ranked.clone()
        for strength in torch.unique(strengths):
            centred[strengths == strength] -= ranked[strengths == strength].mean()
        parts.append(centred)
    norm = parts[0].norm() * parts[1].norm()
    return float(parts[0] @ parts[1] / norm) if norm > 0 else None


def _threshold(curves: Sequence[Curve]) -> float:
    values = torch.tensor([value for curve in curves for value in curve[1:] if math.isfinite(value)]).double()
    return float(torch.quantile(values, _QUANTILE))


def _first_alarm(curve: Curve, threshold: float) -> int | None:
    """First of two consecutive audits above a threshold, the untrained net's left out; one that was not taken is no."""
    above = [value > threshold for value in curve]
    for epoch in range(1, len(above) - _PERSISTENT + 1):
        if all(above[epoch : epoch + _PERSISTENT]):
            return epoch
    return None


def _drops(accuracies: Curve) -> int | None:
    """First epoch at which accuracy on biased images is 2 points below its best so far."""
    best = 0.0
    for epoch, accuracy in enumerate(accuracies):
        if epoch and accuracy < best - _DROP:
            return epoch
        best = max(best, accuracy)
    return None


def _labelled(net: Net, family: str) -> int | None:
    """First epoch at which 100 labelled images without a bias show the gap: Newcombe's interval above 0."""
    for epoch, look in enumerate(net["looks"][family]):
        right, total, wrong_side, other = look["labelled"]
        hits, counts = torch.tensor([right, wrong_side]), torch.tensor([total, other])
        low, high = wilson_interval(hits, counts)
        shares = hits / counts
        gap = float(shares[0] - shares[1])
        if epoch and gap - math.hypot(float(shares[0] - low[0]), float(high[1] - shares[1])) > 0:
            return epoch
    return None


def _lead(alarms: Sequence[int | None], others: Sequence[int | None], epochs: int) -> dict[str, Any]:
    """How many epochs earlier the alarm is than another sign; a sign that never comes counts as one epoch too late."""
    leads = [
        (epochs + 1 if other is None else other) - alarm
        for alarm, other in zip(alarms, others, strict=True)
        if alarm is not None
    ]
    return {
        "median": median(leads) if leads else None,
        "mean": sum(leads) / len(leads) if leads else None,
        "earlier": sum(lead > 0 for lead in leads),
        "later": sum(lead < 0 for lead in leads),
        "nets": len(leads),
        "other_never": sum(other is None for other in others),
    }


def _placebo(families: Sequence[str], clean: Mapping[str, Sequence[Net]]) -> dict[str, Any]:
    """Held-out nets that learnt with a cue which is independent of the class, audited for that cue."""
    found: dict[str, Any] = {}
    for name in next(iter(clean["held-out"]))["looks"][families[0]][-1]["metrics"]:
        wrong = count = 0
        for family in families:
            curves = [_curve(net, family, name) for net in clean["calibration"]]
            if not any(math.isfinite(value) for curve in curves for value in curve[1:]):
                continue
            own = [net for net in clean["held-out"] if net["spec"]["family"] == family]
            count += len(own)
            wrong += sum(_first_alarm(_curve(net, family, name), _threshold(curves)) is not None for net in own)
        found[name] = {
            "auroc_last": None,
            "auroc_last_ci": None,
            "auroc_epoch": {},
            "spearman_gap": None,
            "tpr": None,
            "far_heldout": wrong / count,
            "far_heldout_ci": clopper_pearson(wrong, count),
            "lead_time": {},
        }
    return found


def _rule(
    families: Sequence[str],
    trained: Sequence[Net],
    held_out: Sequence[Net],
    probes: int | None = None,
    rule: AlarmRule | None = None,
) -> dict[str, Any]:
    """Error rates of the shipped rule; a held-out net that raises an alarm for any of its three cues is false."""
    rule = AlarmRule() if rule is None else rule
    positive = [net for net in trained if kind_of(net["gap"][net["spec"]["family"]]) == "positive"]
    alarms = [_rule_alarm(net, net["spec"]["family"], probes, rule) for net in positive]
    hits = sum(alarm is not None for alarm in alarms)
    fired = {family: [_rule_alarm(net, family, probes, rule) is not None for net in held_out] for family in families}
    false = [any(fired[family][index] for family in families) for index in range(len(held_out))]
    measured = [
        fired[family][index]
        for family in families
        for index, net in enumerate(held_out)
        if kind_of(net["gap"][family]) == "negative"
    ]
    epochs = len(positive[0]["validation"]) - 1
    others = {
        "over_flips": [_flips(net) for net in positive],
        "over_labelled_100": [_labelled(net, net["spec"]["family"]) for net in positive],
        "over_biased_validation": [_drops(net["validation"]) for net in positive],
    }
    by_family: dict[str, Any] = {}
    for family in families:
        own = [alarm for net, alarm in zip(positive, alarms, strict=True) if net["spec"]["family"] == family]
        found = sum(alarm is not None for alarm in own)
        by_family[family] = {
            "positives": len(own),
            "tpr": found / len(own) if own else None,
            "tpr_ci": clopper_pearson(found, len(own)) if own else None,
            "far_heldout": sum(fired[family]) / len(held_out),
            "far_heldout_ci": clopper_pearson(sum(fired[family]), len(held_out)),
            "lead_epochs": {key: _lead(own, _of(family, positive, signs), epochs) for key, signs in others.items()},
        }
    return {
        "threshold": rule.threshold,
        "tpr": hits / len(positive),
        "tpr_ci": clopper_pearson(hits, len(positive)),
        "far_heldout": sum(false) / len(false),
        "far_heldout_ci": clopper_pearson(sum(false), len(false)),
        "far_measured_negative": sum(measured) / len(measured),
        "far_measured_negative_ci": clopper_pearson(sum(measured), len(measured)),
        "lead_epochs": {key: _lead(alarms, signs, epochs) for key, signs in others.items()},
        "first_alarm": [alarm for alarm in alarms if alarm is not None],
        "families": by_family,
    }


def _rule_alarm(net: Net, family: str, probes: int | None, rule: AlarmRule) -> int | None:
    """Epoch from which the cue is in use by the shipped rule, by the first so many probes; None without an alarm."""

    def measured(look: Mapping[str, Any]) -> dict[str, Estimate]:
        effects = torch.tensor(look["effects"][:probes], dtype=torch.float64)
        return {f"cue/{family}/effect": summarize(effects, chance=torch.zeros_like(effects))}

    found = first_alarm(rule, family, map(measured, net["looks"][family]))
    return None if found is None else found[1].latest


def _short(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in ("tpr", "tpr_ci", "far_heldout", "far_heldout_ci")} | {
        "median_lead_over_flips": figures["lead_epochs"]["over_flips"]["median"]
    }


def _flips(net: Net) -> int | None:
    """Epoch from which answers flip by the same kind of rule: Wilson's lower end above .05 at two audits."""
    family = net["spec"]["family"]
    probes = len(net["looks"][family][0]["effects"])
    hits = torch.tensor([round(rate * probes) for rate in _curve(net, family, "cue/flip_rate")])
    lows = wilson_interval(hits, torch.full_like(hits, probes))[0]
    return _first_alarm(lows.tolist(), _FLIPPED)


def _of(family: str, nets: Sequence[Net], signs: Sequence[int | None]) -> list[int | None]:
    return [sign for net, sign in zip(nets, signs, strict=True) if net["spec"]["family"] == family]


def _salience(trained: Sequence[Net], clean: Mapping[str, Sequence[Net]]) -> dict[str, Any]:
    """Does a metric follow what is informative, or what is vivid? Standardised slopes in a 2 x 2 of nets.

    Informative: strength .9 or more against a cue independent of the class. Vivid: an opaque patch against one of half
    opacity. Passed if the slope of informative is more than twice that of vivid.
    """
    nets = [net for net in trained if net["spec"]["strength"] >= 0.9 and net["spec"]["family"] != "tint"]
    nets += [net for pool in clean.values() for net in pool if net["spec"]["family"] in ("patch", "subtle")]
    informative = torch.tensor([float(net["spec"]["pool"] == "trained") for net in nets]).double()
    vivid = torch.tensor([float(net["spec"]["family"] == "patch") for net in nets]).double()
    found: dict[str, Any] = {}
    for name in nets[0]["looks"][nets[0]["spec"]["family"]][-1]["metrics"]:
        values = torch.tensor([_curve(net, net["spec"]["family"], name)[-1] for net in nets]).double()
        slopes = slopes_on(values, informative, vivid)
        if slopes is None:
            continue
        means = {
            f"{what} {how}": float(values[(informative == on) & (vivid == bright)].nanmean())
            for what, on in (("informative", 1), ("placebo", 0))
            for how, bright in (("vivid", 1), ("faint", 0))
        }
        found[name] = {
            "informative": slopes[0],
            "vivid": slopes[1],
            "passed": abs(slopes[0]) > 2 * abs(slopes[1]),
            "means": means,
        }
    return found


def _counts(families: Sequence[str], trained: Sequence[Net], clean: Mapping[str, Sequence[Net]]) -> dict[str, Any]:
    def kinds(nets: Sequence[Net], family: str) -> dict[str, int]:
        found = [kind_of(net["gap"][family]) for net in nets]
        return {kind: found.count(kind) for kind in ("positive", "negative", "grey")}

    own: Callable[[str], list[Net]] = lambda family: [n for n in trained if n["spec"]["family"] == family]  # noqa: E731
    everything = [*trained, *clean["calibration"], *clean["held-out"]]
    return {
        "trained": {family: kinds(own(family), family) for family in families},
        **{pool: {family: kinds(nets, family) for family in families} for pool, nets in clean.items()},
        "gap_by_strength": {
            family: {
                f"{strength:g}": [round(net["gap"][family][0], 3) for net in own(family) if _is(net, strength)]
                for strength in sorted({net["spec"]["strength"] for net in own(family)})
            }
            for family in families
        },
        "seconds_per_net": sum(net["seconds"]["all"] for net in everything) / len(everything),
        "share_of_audits": sum(net["seconds"]["audits"] for net in everything)
        / sum(net["seconds"]["all"] for net in everything),
    }


def _is(net: Net, strength: float) -> bool:
    return bool(net["spec"]["strength"] == strength)
