"""What the alarm says where the user describes the cue wrongly, and whether the canary foretells it.

The nets of the study of the alarm that were taught a cue and use it (gap of .10 or more), after the last two epochs, at
128 probes. The trial is given the cue as it was in training, and

`aside`: 4 px to the right of where it was (cues in one place), `half`: half as strong, `wrong class`: each variant
points to the class after its own. Cues aside and half as strong are tried again with all eight neighbours.

The canary is asked on a *clean* net of the same data and kind, with the cue of the family, at 64 probes: `weakest` is
the smallest gap that it says would be seen, `missed` the largest that would not. A taught net whose gap is beyond the
first should raise an alarm at 64 probes; one below the second should not. It is asked for the first 24 nets with a cue
of several variants.

    python scripts/studies/train_alarm_zoo.py
    python scripts/studies/evaluate_alarm.py
    python scripts/studies/misnamed_cues.py --json docs/results/misnamed.json

Takes a quarter of an hour on one CPU thread; what was found of each net is kept beside it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from _alarm_cache import kept, options, report
from _alarm_cues import FAMILIES, cue_for
from evaluate_alarm import SHIPPED, USE, Look, alarmed, looks, share
from torch import Tensor
from train_alarm_zoo import EPOCHS, Spec, figures, load, plan

from xai_callbacks import Auditor, History
from xai_callbacks.canary import canary
from xai_callbacks.interventions.controls import NEARBY
from xai_callbacks.interventions.cues import PaintedCue
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.rules import AlarmRule
from xai_callbacks.trials import CueTrial

PROBES, CANARY_PROBES = 128, 64
# Canaries take longest.
CANARIES = 24
ASIDE, FAINTER = 4, 0.5
PLACED = ("patch", "veil", "watermark", "dot", "one_patch", "one_watermark", "checker")


class Misnamed(PaintedCue):
    """A cue as a user describes it wrongly.

    Args:
        right: The cue of training.
        wrong: `aside`, `half` or `wrong class`; another word changes nothing.
        classes: Number of classes.
    """

    def __init__(self, right: PaintedCue, wrong: str, classes: int) -> None:
        ahead = 1 if wrong == "wrong class" else 0
        super().__init__(right.name, [(int(label) + ahead) % classes for label in right.points_to])
        self.right, self.wrong = right, wrong

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        change = self.right.paint(shown, variants) - shown.images
        if self.wrong == "aside":
            change = change.roll(ASIDE, dims=3)
        elif self.wrong == "half":
            change = change * FAINTER
        return (shown.images + change).clamp(0, 1)

    def neutral(self, shown: Shown) -> Tensor:
        """See `PaintedCue.neutral`."""
        return self.right.neutral(shown)


def state(spec: Spec, cache: Path, wrong: str, nearby: tuple[str, ...]) -> str:
    """What the rule says after the last epoch."""
    probes = spec.data().probes.probe_set().select(range(PROBES))
    cue = Misnamed(cue_for(spec.family, spec.kind, spec.classes, spec.target), wrong, spec.classes)
    trial = CueTrial(cue, nearby=nearby)
    auditor = Auditor(probes, [], explainers=[], novelty=[], trials=[trial], measures=[])
    history = History()
    for epoch in (EPOCHS - 1, EPOCHS):
        history.append(auditor.audit(load(cache, spec, epoch), step=epoch, epoch=epoch))
    return AlarmRule().conclude(history)[0].state


def states(spec: Spec, cache: Path) -> dict[str, str]:
    """What the rule says, by what is wrong with the cue."""
    kinds = ["right", *(["aside"] if spec.family in PLACED else []), "half", "wrong class"]
    found = {kind: state(spec, cache, kind, ()) for kind in kinds}
    return found | {
        f"{kind}, with neighbours": state(spec, cache, kind, NEARBY) for kind in kinds if kind in ("aside", "half")
    }


def foretold(spec: Spec, clean: Spec, cache: Path) -> dict[str, float | None]:
    """The smallest gap that the canary says is seen, and the largest that it says is missed."""
    data = clean.data()
    cue = cue_for(spec.family, spec.kind, spec.classes)
    probes = data.probes.first(CANARY_PROBES).probe_set()
    training, unseen = data.train.first(600).probe_set(), data.test.first(400).probe_set()
    power = canary(load(cache, clean), training, probes, cue=cue, unseen=unseen)
    found = {"weakest": power.weakest, "missed": power.missed}
    return {key: None if row is None else row.gap.value for key, row in found.items()}


def clean_net(spec: Spec, cache: Path) -> Spec | None:
    """A clean net of the same data, number of classes and kind, as the canary is asked on one's own model."""
    same = (
        each
        for each in plan()
        if (each.role, each.kind, each.classes, each.network) == ("clean", spec.kind, spec.classes, spec.network)
        and figures(cache, each) is not None
    )
    return next(same, None)


def agreement(told: list[tuple[Look, dict[str, float | None]]]) -> dict[str, Any]:
    """How many nets raise an alarm of those for which the canary says so, and of those for which it says not."""
    seen, unseen = [], []
    for look, power in told:
        alarm = alarmed(look, CANARY_PROBES, SHIPPED)
        if power["weakest"] is not None and look.gap >= power["weakest"]:
            seen.append(alarm)
        elif power["missed"] is not None and look.gap <= power["missed"]:
            unseen.append(alarm)
    return {
        "said_seen": share(sum(seen), len(seen)),
        "said_missed": share(sum(unseen), len(unseen)),
        "not_said": len(told) - len(seen) - len(unseen),
    }


def main() -> None:
    """Ask what was not asked, and sum up."""
    arguments, rows = options(__doc__), dict[str, Counter[str]]()
    torch.set_num_threads(1)
    cache = arguments.cache
    by_net = {look.net: look for look in looks(cache) if look.role == "taught"}
    told: list[tuple[Look, dict[str, float | None]]] = []
    for spec in plan():
        look = by_net.get(spec.key)
        if look is None or spec.network == "mobilenet":
            continue
        if look.gap >= USE:
            for wrong, said in kept(cache / f"{spec.key}.misnamed.json", states, spec, cache).items():
                rows.setdefault(wrong, Counter())[said] += 1
        clean = clean_net(spec, cache)
        if clean is not None and not FAMILIES[spec.family].single and len(told) < CANARIES:
            path = cache / f"canary_{clean.key}_{spec.family}.json"
            told.append((look, kept(path, foretold, spec, clean, cache)))
    found = {
        "misnamed": {
            wrong: {**counts, "alarm_share": share(counts["alarm"], sum(counts.values()))}
            for wrong, counts in rows.items()
        },
        "canary": agreement(told),
    }
    report(found, arguments.json)


if __name__ == "__main__":
    main()
