"""How often does the alarm find a shortcut, and how often does it cry wolf, on cues that it was not made for?

Audits the nets of `train_alarm_zoo.py` by `CueTrial` and `AlarmRule` as they are shipped, at 40, 64 and 128 probes,
after each epoch. Whether a net uses a cue is measured on test images: its *gap* is the accuracy with the cue of the own
class less that with another, mean over classes. `use`: .10 or more, and the cue was taught. `clean`: the net never saw
the cue, or saw it independent of the class, and the gap is .03 at most; those of a larger gap react to an edit that no
data taught, and are reported apart, as are taught nets between.

The rule has three numbers: the threshold of the pull, and the shares of the loss that the gain must be, with controls
and without. They are settled anew for each family on the nets of all *other* families (leave one family out): most hits
at 5 % at most of alarms on what was not taught. `shipped` are the numbers of the package.

    python scripts/studies/train_alarm_zoo.py
    python scripts/studies/evaluate_alarm.py --json docs/results/detection.json

Looks at a net once and keeps what it found beside it; then sums up in a minute. Takes about forty minutes on one CPU
thread; `--share 0/2` and `--share 1/2` look in two processes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import beta, spearmanr
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _alarm_cache import kept, report
from _alarm_cues import FAMILIES, cue_for, suits
from _alarm_nets import Frozen
from train_alarm_zoo import EPOCHS, Spec, figures, load, plan

from xai_callbacks import AuditRecord, Estimate, History
from xai_callbacks.audit.measuring import summarized
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.rules import AlarmRule, alarm_rule
from xai_callbacks.trials import CueTrial
from xai_callbacks.trials.base import Answers

PROBES = (40, 64, 128)
USE, CLEAN = 0.10, 0.03
TARGETS = 4
KEYS = ("pull", "gain", "loss", "room", "excess", "control", "gap", "effect", "flip_rate")
SHIPPED = (AlarmRule().threshold, alarm_rule._MISSED, alarm_rule._MUCH_MISSED)
GRID = tuple(product((0.02, 0.03, 0.05), (0.15, 0.25, 0.4), (0.6, 0.8, 1.0)))
TOGETHER = 8

Metrics = dict[str, Estimate]


class Look(NamedTuple):
    """One cue on one net.

    Attributes:
        net: Key of the net.
        role: `taught`, `useless` or `clean`.
        family: Family of the cue.
        classes: Number of classes.
        single: Whether the cue has a single variant.
        gap: Measured on test images.
        audits: Metrics by number of probes and epoch.
    """

    net: str
    role: str
    family: str
    classes: int
    single: bool
    gap: float
    audits: dict[int, dict[int, Metrics]]

    @property
    def kind(self) -> str:
        """`use`, `clean`, `reacts` (an edit that no data taught has a gap) or `between`."""
        if self.role == "taught":
            return "use" if self.gap >= USE else "between"
        return "clean" if abs(self.gap) <= CLEAN else "reacts"


def cues_of(spec: Spec) -> Iterator[tuple[str, int | None]]:
    """Families, with the class that a single variant points to, for which a net is audited."""
    if spec.family != "none":
        yield spec.family, spec.target
        return
    for name, family in FAMILIES.items():
        if suits(name, spec.kind, spec.classes):
            yield from ((name, target) for target in (range(min(TARGETS, spec.classes)) if family.single else [None]))


@torch.no_grad()
def outputs_of(models: dict[int, nn.Module], images: Tensor) -> dict[int, Tensor]:
    """Logits by epoch; features that do not learn are computed once."""
    first = next(iter(models.values()))
    if isinstance(first, Frozen):
        pooled = torch.cat([first.pooled(part) for part in torch.split(images, 64)])
        return {epoch: model.head(pooled) for epoch, model in models.items()}  # type: ignore[operator]
    return {epoch: model(images) for epoch, model in models.items()}


def look_at(spec: Spec, cache: Path) -> dict[str, Any]:
    """All metrics of all cues of a net, as JSON values."""
    epochs = range(1, EPOCHS + 1) if spec.role == "taught" else (EPOCHS - 1, EPOCHS)
    models = {epoch: load(cache, spec, epoch) for epoch in epochs}
    probes = spec.data().probes.probe_set()
    shown = Shown(probes.images, torch.arange(len(probes)), probes, PixelScale.of(probes), seed=0)
    found, seen = {}, dict[str, dict[str, dict[int, Tensor]]]()
    for name, target in cues_of(spec):
        trial = CueTrial(cue_for(name, spec.kind, spec.classes, target))
        views = trial.views(shown)
        if name not in seen:  # a single variant is the same image whatever it points to
            known: dict[int, dict[int, Tensor]] = {}
            for images in views.images.values():
                known.setdefault(id(images), outputs_of(models, images))
            seen[name] = {view: known[id(images)] for view, images in views.images.items()}
        by_count: dict[str, Any] = {}
        for count in PROBES:
            some = probes.select(range(count))
            by_epoch = {}
            for epoch in epochs:
                answered = {view: outputs[epoch][:count] for view, outputs in seen[name].items()}
                facts = {fact: values[:count] for fact, values in views.facts.items()}
                judged = trial.judge(some, Answers(answered["neutral"], answered, facts))
                metrics = summarized(judged, trial.keys())
                by_epoch[epoch] = {
                    key: list(metrics[f"{trial.name}/{key}"]) for key in KEYS if f"{trial.name}/{key}" in metrics
                }
            by_count[str(count)] = by_epoch
        found[name if target is None else f"{name}/{target}"] = by_count
    return found


def looks(cache: Path) -> Iterator[Look]:
    """All that was looked at."""
    for spec in plan():
        path, measured = cache / f"{spec.key}.looks.json", figures(cache, spec)
        if measured is None or not path.exists():
            continue
        for cue, counts in json.loads(path.read_text()).items():
            family = cue.partition("/")[0]
            gap = measured["gaps"][cue][0] if spec.family == "none" else measured["gap"]
            audits = {
                int(count): {
                    int(epoch): {f"cue/{family}/{key}": Estimate(*values) for key, values in metrics.items()}
                    for epoch, metrics in epochs.items()
                }
                for count, epochs in counts.items()
            }
            yield Look(spec.key, spec.role, family, spec.classes, FAMILIES[family].single, gap, audits)


def states(audits: dict[int, Metrics], numbers: tuple[float, float, float]) -> list[str]:
    """What the rule says after each epoch."""
    alarm_rule._MISSED, alarm_rule._MUCH_MISSED = numbers[1:]  # what the package has for all cues
    history, said = History(), []
    for epoch, metrics in audits.items():
        history.append(AuditRecord(step=epoch, epoch=epoch, metrics=metrics))
        said.append(AlarmRule(threshold=numbers[0]).conclude(history)[0].state)
    return said


def alarmed(look: Look, count: int, numbers: tuple[float, float, float]) -> bool:
    """Whether there is an alarm at the end of training."""
    latest = dict(sorted(look.audits[count].items())[-2:])
    return states(latest, numbers)[-1] == "alarm"


def share(hits: int, total: int) -> dict[str, Any]:
    """A share with its exact 95 % interval (Clopper and Pearson)."""
    if not total:
        return {"share": None, "ci": None, "of": 0}
    low = float(beta.ppf(0.025, hits, total - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, total - hits)) if hits < total else 1.0
    return {"share": hits / total, "ci": [low, high], "of": total}


class Table:
    """Alarms of all looks, for one number of probes and each setting of the rule."""

    def __init__(self, given: list[Look], count: int) -> None:
        self.given, self.count = given, count
        self.alarms = {numbers: [alarmed(look, count, numbers) for look in given] for numbers in {*GRID, SHIPPED}}
        self.settled = {family: self._settle(family) for family in FAMILIES}

    def _settle(self, family: str) -> tuple[float, float, float]:
        """The setting with most hits at 5 % of alarms on all that was not taught, on all other families."""

        def score(numbers: tuple[float, float, float]) -> tuple[bool, float, float]:
            pairs = [
                (look.kind, alarm)
                for look, alarm in zip(self.given, self.alarms[numbers], strict=True)
                if look.family != family
            ]
            clean = [alarm for kind, alarm in pairs if kind in ("clean", "reacts")]
            hits = [alarm for kind, alarm in pairs if kind == "use"]
            rate = sum(clean) / max(len(clean), 1)
            return rate <= 0.05, sum(hits) / max(len(hits), 1) if rate <= 0.05 else -rate, -rate

        return max(GRID, key=score)

    def of(self, kind: str, *, shipped: bool = False, **wanted: Any) -> dict[str, Any]:
        """Share of looks of a kind that raise an alarm."""
        found = [
            self.alarms[SHIPPED if shipped else self.settled[look.family]][place]
            for place, look in enumerate(self.given)
            if look.kind == kind and all(getattr(look, name) == value for name, value in wanted.items())
        ]
        return share(sum(found), len(found))

    def pooled(self, *, shipped: bool = False, **wanted: Any) -> dict[str, Any]:
        """Hits and false alarms."""
        hits, false = (self.of(kind, shipped=shipped, **wanted) for kind in ("use", "clean"))
        return {
            "tpr": hits["share"], "tpr_ci": hits["ci"], "uses": hits["of"],
            "far": false["share"], "far_ci": false["ci"], "clean": false["of"],
        }  # fmt: skip


def together(given: list[Look], count: int) -> dict[str, Any]:
    """Clean nets watched for eight cues at once, one of each family in turn: how many alarm on any."""
    by_net: dict[str, dict[str, Look]] = defaultdict(dict)
    for look in given:
        if look.role == "clean":
            by_net[look.net].setdefault(look.family, look)
    alarms = []
    for number, (_, families) in enumerate(sorted(by_net.items())):
        names = sorted(families)
        chosen = [families[names[(number + step) % len(names)]] for step in range(min(TOGETHER, len(names)))]
        if len(chosen) < TOGETHER or any(abs(look.gap) > CLEAN for look in chosen):
            chosen = [look for look in families.values() if look.kind == "clean"][:TOGETHER]
        if len(chosen) < TOGETHER:
            continue
        alarm_rule._MISSED, alarm_rule._MUCH_MISSED = SHIPPED[1:]
        history = History()
        for epoch in sorted(chosen[0].audits[count])[-2:]:
            metrics = {key: value for look in chosen for key, value in look.audits[count][epoch].items()}
            history.append(AuditRecord(step=epoch, epoch=epoch, metrics=metrics))
        alarms.append(any(each.state == "alarm" for each in AlarmRule().conclude(history)))
    return share(sum(alarms), len(alarms))


def lead(given: list[Look], count: int) -> dict[str, Any]:
    """Epochs by which the alarm comes before one on flipped answers, by the same rule on `gap` alone."""

    def first(audits: dict[int, Metrics], key: str) -> int | None:
        beyond = [
            (metrics[key].low or 0.0) > SHIPPED[0] if metrics[key].low is not None else False
            for _, metrics in sorted(audits.items())
        ]
        runs = [place for place in range(1, len(beyond)) if beyond[place - 1] and beyond[place]]
        return runs[0] + 1 if runs else None

    leads = []
    for look in given:
        audits = dict(sorted(look.audits[count].items()))
        if look.kind != "use":
            continue
        said = states(audits, SHIPPED)
        soft = said.index("alarm") + 1 if "alarm" in said else None
        hard = first(audits, f"cue/{look.family}/gap")
        if soft is not None:
            leads.append((hard if hard is not None else EPOCHS + 1) - soft)
    ordered = sorted(leads)
    return {
        "median": ordered[len(ordered) // 2] if ordered else None,
        "earlier": share(sum(x > 0 for x in leads), len(leads)),
    }


def summed_up(given: list[Look]) -> dict[str, Any]:
    """All figures."""
    learnt = [look for look in given if look.role != "clean"]
    pulls = [look.audits[128][EPOCHS][f"cue/{look.family}/pull"].value for look in learnt]
    effects = [look.audits[128][EPOCHS][f"cue/{look.family}/effect"].value for look in learnt]
    gaps = [look.gap for look in learnt]
    tables = {count: Table(given, count) for count in PROBES}
    main = tables[128]
    singles = main.of("clean", single=True)
    return {
        "pooled": {
            **main.pooled(),
            "spearman": float(spearmanr(pulls, gaps).statistic),
            "spearman_effect": float(spearmanr(effects, gaps).statistic),
        },
        "shipped": main.pooled(shipped=True),
        "settled": {family: list(numbers) for family, numbers in main.settled.items()},
        "by_probes": {str(count): {**table.pooled(), "lead": lead(given, count)} for count, table in tables.items()},
        "by_classes": {str(classes): main.pooled(classes=classes) for classes in (2, 4, 10)},
        "single_variant": {
            "far": singles["share"], "far_ci": singles["ci"], "clean": singles["of"],
            "tpr": main.of("use", single=True),
        },
        "reacts": {"all": main.of("reacts"), "single": main.of("reacts", single=True)},
        "between": main.of("between"),
        "eight_cues": {str(count): together(given, count) for count in PROBES},
        "families": {family: main.pooled(family=family) for family in FAMILIES},
        "planned": len(plan()),
        "nets": {
            role: len({look.net for look in given if look.role == role}) for role in ("taught", "useless", "clean")
        },
    }  # fmt: skip


def main() -> None:
    """Look at what was not looked at, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("alarm_cache"), help="folder of the nets")
    parser.add_argument("--share", default="0/1", help="look at the i-th of n shares only, as in 0/2")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    place, shares = map(int, arguments.share.split("/"))
    for spec in plan()[place::shares]:
        path = arguments.cache / f"{spec.key}.looks.json"
        if figures(arguments.cache, spec) is not None:
            kept(path, look_at, spec, arguments.cache)
    if shares > 1:
        return
    found = summed_up(list(looks(arguments.cache)))
    coverage = Path("docs/results/coverage.json")
    if coverage.exists():
        found["coverage"] = json.loads(coverage.read_text())["rows"]
    report(found, arguments.json)


if __name__ == "__main__":
    main()
