"""How often, and how early, does the monitor find a shortcut, and how often does it cry wolf?

Small nets learn four shapes (`_shapes.py`) beside a cue of rising strength: a vivid patch, a tint, a patch at half
opacity. Each is audited before training and after every epoch with the package's own `Auditor`. Whether a net uses the
cue is measured, not assumed: its *gap* is the accuracy on 2,000 unseen images with the cue of their class, minus that
on the same images with the cue of another. `positive`: gap of .10 or more, its interval above 0. `negative`: .03 at
most. What lies between is grey, and only in the rank correlations.

Negatives learn without a cue, or with one that is independent of the class (`placebo`): as visible, and useless. Those
for calibration set thresholds, the others are held out for false alarms; the shipped `AlarmRule` is not fitted to
either. Every negative is audited for all three cues.

    python scripts/studies/evaluate_detection.py --json docs/results/evidence.json

Takes about an hour on one CPU thread. Nets are cached one by one, so that a run may be stopped and continued; two
shells with `--share 0/2` and `--share 1/2` work on both halves, and a last call without it sums up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _detection_figures import summarized
from _provenance import provenance
from _shapes import CLASSES, FAMILIES, cue_of, draw, drawn_cues, net, painted, probe_set, train

from xai_callbacks import Auditor, Localization, Why
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Measured
from xai_callbacks.trials import BackgroundTrial, CueTrial, HalfTrial, RegionTrial, Trial, Views
from xai_callbacks.trials.base import Answers

STRENGTHS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SEEDS = (0, 1, 2)
NEGATIVES = {"calibration": 30, "held-out": 45}
PLACEBOS = ("none", *FAMILIES)
TRAINED, VALIDATED, TESTED, PROBES, CONTEXT = 2000, 512, 2000, 320, 96
EPOCHS = 8
# Epochs at which the dearer context metrics are taken, too.
CONTEXT_EPOCHS = (1, 2, 3, EPOCHS)


class Spec(NamedTuple):
    """One net: which pool it is of, the cue it learns with (`none` for none), how strong, and its seed."""

    pool: str
    family: str
    strength: float
    seed: int

    @property
    def key(self) -> str:
        """A file name."""
        return f"{self.pool}_{self.family}_{self.strength:g}_{self.seed}"


def plan() -> list[Spec]:
    """All nets: strong and weak ones in turn, so that half a run is half of everything."""
    specs = [Spec("trained", family, strength, seed) for seed in SEEDS for strength in STRENGTHS for family in FAMILIES]
    for offset, (pool, count) in enumerate(NEGATIVES.items()):
        for index in range(count):
            family = PLACEBOS[index % len(PLACEBOS)]
            specs.append(Spec(pool, family, 1 / len(CLASSES), 1000 * (offset + 1) + index))
    return specs


class Remembered(Trial):
    """A trial whose edits are made once: all nets are shown the same probes, in one chunk."""

    def __init__(self, trial: Trial) -> None:
        self.name = trial.name
        self._trial = trial
        self._views: dict[int, Views] = {}

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`."""
        self._trial.check(probes)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`; by number of probes, as a look before the audit shows fewer."""
        if len(shown.rows) not in self._views:
            self._views[len(shown.rows)] = self._trial.views(shown)
        return self._views[len(shown.rows)]

    def judge(self, probes: ProbeSet, answers: Answers) -> Measured:
        """See `Trial.judge`."""
        return self._trial.judge(probes, answers)


class Audits:
    """The audits of one cue: the monitor's own, and the context metrics on fewer probes."""

    def __init__(self, family: str) -> None:
        self.family = family
        probes = probe_set(family, PROBES, seed=70)
        local = "spurious" in probes.masks
        if local:
            # A mask that is wrong: the opposite corner. What is found there must be chance.
            masks = {**probes.masks, "wrong": probes.masks["spurious"].flip(1, 2)}
            probes = ProbeSet.from_tensors(probes.images, probes.labels, masks=masks, class_names=CLASSES)
        self._main = Auditor(
            probes,
            [Why()],
            novelty=[],
            trials=[Remembered(CueTrial(cue_of(family)))],
            measures=[Localization(["relevance_mass", "relevance_rank", "soft_iou"])],
            chunk_size=PROBES,
        )
        context: list[Trial] = [BackgroundTrial(), HalfTrial(fills=["white", "black"])]
        context += [RegionTrial("spurious")] if local else []
        self._context = Auditor(
            probes.select(range(CONTEXT)),
            [Why()],
            novelty=[],
            trials=[Remembered(trial) for trial in context],
            chunk_size=CONTEXT,
        )

    def look(self, model: nn.Module, epoch: int) -> tuple[dict[str, float], list[float]]:
        """Metrics by name, larger = more of a shortcut; and the cue's effect on each probe."""
        record = self._main.audit(model, step=epoch, epoch=epoch)
        found = self._own(record)
        if epoch in CONTEXT_EPOCHS:
            found |= _context(self._context.audit(model, step=epoch, epoch=epoch))
        effects = record.per_probe[f"cue/{self.family}/effect"]
        return found, [round(value, 5) for value in effects.tolist()]

    def _own(self, record: AuditRecord) -> dict[str, float]:
        def of(key: str) -> float:
            return record.metrics[key].value

        prefix = f"cue/{self.family}"
        names = ("effect", "effect_logit", "flip_rate", "tv", "spurious_score", "only_acc")
        found = {f"cue/{name}": of(f"{prefix}/{name}") for name in names}
        found["attr/one_minus_mass_object"] = 1 - of("gradcam/why/relevance_mass/core")
        found["attr/one_minus_soft_iou_object"] = 1 - of("gradcam/why/soft_iou/core")
        if "gradcam/why/relevance_mass/spurious" in record.metrics:
            for name in ("mass", "rank"):
                found[f"attr/{name}_cue"] = of(f"gradcam/why/relevance_{name}/spurious")
            found["attr/soft_iou_cue"] = of("gradcam/why/soft_iou/spurious")
            found["attr/mass_wrong_mask"] = of("gradcam/why/relevance_mass/wrong")
        return found


def _context(record: AuditRecord) -> dict[str, float]:
    values = {key: estimate.value for key, estimate in record.metrics.items()}
    found = {
        "bg/gap": values["bg/gap"],
        "fill/tv": values["fill/tv"],
        "fill/disagree": values["fill/disagree"],
    }
    if "region/spurious/drop_minus_placebo" in values:
        # The cue of the probes is independent of their label: where it misleads, filling it helps.
        found["region/placebo_minus_drop"] = -values["region/spurious/drop_minus_placebo"]
    return found


class Bench:
    """Everything that all nets share."""

    def __init__(self) -> None:
        self.audits = {family: Audits(family) for family in FAMILIES}
        self.unseen = draw(TESTED, seed=71)
        self.labelled = draw(100, seed=72)
        self.labelled_cues = drawn_cues(self.labelled.labels, 1 / len(CLASSES), seed=73)

    def learn(self, spec: Spec) -> dict[str, Any]:
        """Train and audit one net; figures as JSON values."""
        pictures = draw(TRAINED, seed=10_000 + spec.seed)
        held = draw(VALIDATED, seed=20_000 + spec.seed)
        images, validation = (
            part.images
            if spec.family == "none"
            else painted(part, drawn_cues(part.labels, spec.strength, seed=30_000 + spec.seed), spec.family)
            for part in (pictures, held)
        )
        model = net(spec.seed)
        audited = [spec.family] if spec.pool == "trained" else list(FAMILIES)
        looks: dict[str, list[dict[str, Any]]] = {family: [] for family in audited}
        accuracies, seconds = [], {"audits": 0.0}

        def look(epoch: int) -> None:
            model.eval()
            accuracies.append(_accuracy(model, validation, held.labels))
            for family in audited:
                start = time.perf_counter()
                metrics, effects = self.audits[family].look(model, epoch)
                seconds["audits"] += time.perf_counter() - start
                looks[family].append(
                    {"metrics": metrics, "effects": effects, "labelled": self._labelled(model, family)}
                )

        start = time.perf_counter()
        train(model, images, pictures.labels, EPOCHS, spec.seed, look)
        seconds["all"] = time.perf_counter() - start
        return {
            "spec": spec._asdict(),
            "validation": accuracies,
            "gap": {family: self._gap(model, family) for family in audited},
            "looks": looks,
            "seconds": seconds,
        }

    def _gap(self, model: nn.Module, family: str) -> list[float]:
        """Accuracy with the cue of the class minus that with another, and the standard error of the paired mean."""
        labels = self.unseen.labels
        others = (labels + 1 + torch.arange(len(labels)) % (len(CLASSES) - 1)) % len(CLASSES)
        right = [_right(model, painted(self.unseen, cues, family), labels) for cues in (labels, others)]
        difference = right[0] - right[1]
        return [float(difference.mean()), float(difference.std() / len(labels) ** 0.5)]

    def _labelled(self, model: nn.Module, family: str) -> list[int]:
        """On 100 labelled images with a random cue: right and all, with the cue of the class and with another."""
        right = _right(model, painted(self.labelled, self.labelled_cues, family), self.labelled.labels)
        aligned = self.labelled_cues == self.labelled.labels
        return [int(right[aligned].sum()), int(aligned.sum()), int(right[~aligned].sum()), int((~aligned).sum())]


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(chunk).argmax(dim=1) for chunk in torch.split(images, 250)]).eq(labels).double()


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(_right(model, images, labels).mean())


def main() -> None:
    """Train what is not cached, and sum up when all is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("detection_cache"), help="where figures of nets are kept")
    parser.add_argument("--json", type=Path, help="where to write the summary")
    parser.add_argument("--share", default="0/1", help="train the i-th of n shares only, as in 0/2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    specs = plan()
    place, shares = (int(part) for part in arguments.share.split("/"))
    missing = [spec for spec in specs[place::shares] if not (arguments.cache / f"{spec.key}.json").exists()]
    bench = Bench() if missing else None
    for spec in track(missing, "Nets", console=console):
        assert bench is not None
        partial = arguments.cache / f"{spec.key}.partial"
        partial.write_text(json.dumps(bench.learn(spec)))
        partial.rename(arguments.cache / f"{spec.key}.json")
    files = [arguments.cache / f"{spec.key}.json" for spec in specs]
    if not all(file.exists() for file in files):
        console.print(f"{sum(file.exists() for file in files)} of {len(files)} nets are done.")
        return
    figures = summarized([json.loads(file.read_text()) for file in files])
    console.print_json(json.dumps(figures["rule"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**figures, "provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
