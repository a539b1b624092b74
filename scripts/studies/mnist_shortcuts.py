"""Decoy-MNIST and Coloured MNIST at published strengths, watched epoch by epoch, beside the published ERM figures.

Nets are trained plainly (ERM) on data in which a cue goes with the digit, by the recipes of the public code, see
`_mnist_shortcuts` and `_mnist_settings`. After every epoch, and before the first, the same 200 test digits are shown
with the cue of another class and of their own (`CueTrial`), the rule is asked (`AlarmRule`), and the groups of digit
and cue are judged on a test set (`GroupMetrics`). Nothing is tuned, and no epoch is chosen by a test set.

    python scripts/studies/mnist_shortcuts.py --json docs/results/mnist_shortcuts.json --picture docs/pictures --fill

Takes about a quarter of an hour of one CPU core, seconds once the cache is full. Runs are cached one by one, so that
work may be stopped and continued. `--fill` writes the tables of docs/mnist_shortcuts.md anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _mnist_page import filled, interval, picture
from _mnist_settings import SETTINGS, Digits, Recipe, Setting, Task
from _mnist_shortcuts import Cued, digits
from _provenance import provenance, write_json

from xai_callbacks import AlarmRule, Auditor, History, Why
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.metrics import Estimate, GroupMetrics

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mnist_shortcuts.md"
CHUNK = 500
# As many as there are for a test; the rest would change little but the time.
TRAIN_IMAGES = 10_000

# Kept of each audit, by the names that the trial and the group metrics give them.
TRIAL_KEYS = (
    *("pull", "gap", "gain", "loss", "room", "control", "excess"),
    *("effect", "tv", "flip_rate", "spurious_score", "consistency"),
    *("only_acc", "object_only_acc"),
)
WHY_KEYS = ("relevance_mass", "relevance_lift")
GROUP_KEYS = (
    *("wga", "wga_low", "wga_high", "wga_label", "wga_cue", "conflict_gap", "conflict_gap_low", "conflict_gap_high"),
    *("accuracy_balanced", "accuracy_aligned", "accuracy_conflicting", "cond_mi"),
)


class Watch:
    """Looks at one net: accuracies, groups, and what the probes say.

    Args:
        task: The data.
        net: The net.
        explained: See `Recipe`.
    """

    def __init__(self, task: Task, net: nn.Module, *, explained: bool) -> None:
        self.task, self.net, self.subject = task, net, Subject(net)
        self._trying = Auditor(task.probes, [], novelty=[], trials=[task.trial], chunk_size=len(task.probes))
        decoys = task.decoys if explained else None
        self._history, self._rule = History(), AlarmRule()
        self._explaining = None if decoys is None else Auditor(decoys, [Why()], novelty=[])

    def look(self, epoch: int) -> dict[str, Any]:
        """One audit, as JSON values."""
        tests, prefix = self.task.tests, f"{self.task.trial.name}/"
        with undisturbed(self.net), torch.no_grad():
            seen = self._accuracy(self.task.train.rows(slice(TRAIN_IMAGES)))
            row: dict[str, Any] = {"epoch": epoch, "accuracy": {"train": seen}}
            row["accuracy"] |= {name: self._accuracy(test) for name, test in tests.items()}
            row["group"] = self._groups(next(iter(tests.values())))
            if self.task.held_out is not None:
                row["held_out_loss"] = self._loss(self.task.held_out)
        record = self._trying.audit(self.net, step=epoch, epoch=epoch, untrained=not epoch)
        if record.failed:
            raise RuntimeError(" ".join(record.failed))
        self._history.append(record)
        row["state"] = self._rule.conclude(self._history)[0].state
        found = record.metrics
        row["cue"] = {key: _plain(found[prefix + key]) for key in TRIAL_KEYS if prefix + key in found}
        if self._explaining is not None:
            explained = self._explaining.audit(self.net, epoch=epoch).metrics
            row["why"] = {key: _plain(explained[f"gradcam/why/{key}/spurious"]) for key in WHY_KEYS}
        return row

    def _outputs(self, data: Cued) -> Tensor:
        return torch.cat([self.subject(images.float() / 255) for images in torch.split(data.images, CHUNK)])

    def _accuracy(self, data: Cued) -> float:
        return float((self._outputs(data).argmax(dim=1) == data.labels).double().mean())

    def _loss(self, data: Cued) -> float:
        return float(cross_entropy(self._outputs(data), data.labels))

    def _groups(self, data: Cued) -> dict[str, float]:
        classes = self.task.probes.labels
        assert classes is not None  # as all probes here are labelled; narrows the type
        count = int(classes.max()) + 1
        metric = GroupMetrics(count, count, aligned=range(count), per_group=False)
        metric.update(self._outputs(data), data.labels, data.cues)
        found = metric.compute()
        return {key: found[f"group/{key}"] for key in GROUP_KEYS}


def _plain(estimate: Estimate) -> dict[str, float | int | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "valid": estimate.valid}


def run(data: Digits, setting: Setting, seed: int, *, epochs: int | None = None) -> dict[str, Any]:
    """Train one net, looking at it before the first epoch and after each; JSON values."""
    begin, recipe = time.process_time(), setting.recipe
    generator = torch.Generator().manual_seed(seed)
    task = setting.task(data, generator)
    torch.manual_seed(seed)
    net = recipe.net()
    watch = Watch(task, net, explained=recipe.explained)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate, fused=True)
    # Gathering floats takes a third of the time that converting bytes in each step does.
    images = task.train.images.float() / 255
    rows = [watch.look(0)]
    for epoch in range(1, (epochs or recipe.epochs) + 1):
        count = len(task.train)
        order = torch.randperm(count, generator=generator) if recipe.shuffled else torch.arange(count)
        for batch in torch.split(order, recipe.batch):
            _step(watch.subject, optimizer, images[batch], task.train.labels[batch], recipe)
        rows.append(watch.look(epoch))
    return {"rows": rows, "cpu_seconds": round(time.process_time() - begin, 1)}


def _step(subject: Subject, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    loss = cross_entropy(subject(images), labels, reduction="sum" if recipe.summed else "mean")
    if recipe.decay:
        squares = [parameter.square().sum() for parameter in subject.root.parameters()]
        loss = loss + recipe.decay * torch.stack(squares).sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def onset(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch after which the rule first gives the alarm; None if it never does."""
    return next((int(row["epoch"]) for row in rows if row["state"] == "alarm"), None)


def kept(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The audit of the net that is kept: the last, or the one with the least loss on held-out training images."""
    trained = rows[1:]
    return min(trained, key=lambda row: row["held_out_loss"]) if "held_out_loss" in rows[0] else trained[-1]


def summary(setting: Setting, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the tables show of a setting: means over seeds with each seed's figure, and audits at the end."""
    ends = [kept(run["rows"]) for run in runs]
    found: dict[str, Any] = {
        "title": setting.title,
        "published": dict(setting.published),
        "epochs": len(runs[0]["rows"]) - 1,
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs), 1),
        "kept_epoch": [end["epoch"] for end in ends],
        "onset": [onset(run["rows"]) for run in runs],
        "state": [end["state"] for end in ends],
        "accuracy": {name: _over_seeds([end["accuracy"][name] for end in ends]) for name in ends[0]["accuracy"]},
        "group": {name: _over_seeds([end["group"][name] for end in ends]) for name in GROUP_KEYS},
        "cue": {name: [_rounded(end["cue"][name]) for end in ends] for name in ends[0]["cue"]},
        "before_training": [_rounded(run["rows"][0]["cue"]["pull"]) for run in runs],
        "epochs_of_seed_0": [_brief(row) for row in runs[0]["rows"]],
    }
    if "why" in ends[0]:
        found["why"] = {name: [_rounded(end["why"][name]) for end in ends] for name in ends[0]["why"]}
    return found


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": round(statistics.fmean(values), 4), "per_seed": [round(value, 4) for value in values]}


def _rounded(estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in estimate.items()}


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch of a run, as a curve needs it."""
    brief: dict[str, Any] = {
        "epoch": row["epoch"],
        "accuracy": {name: round(value, 4) for name, value in row["accuracy"].items()},
        **{name: _rounded(row["cue"][name]) for name in ("pull", "gap", "tv")},
        **{name: round(row["group"][name], 4) for name in ("wga", "conflict_gap", "cond_mi")},
    }
    if "why" in row:
        brief["relevance_mass"] = _rounded(row["why"]["relevance_mass"])
    return brief


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is not in the cache, and keep tables and figures."""
    options = _options(arguments)
    torch.set_num_threads(1)
    if not options.data.is_dir():
        raise SystemExit(
            f"Expected a folder with the idx files of MNIST, but found none at {options.data}. Pass --data."
        )
    train, test = digits(options.data, "train"), digits(options.data, "t10k")
    data = Digits((train[0][: options.images], train[1][: options.images]), test)
    options.cache.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"settings": {}}
    for name in options.settings:
        runs = [_cached(data, name, seed, options) for seed in range(options.seeds or SETTINGS[name].seeds)]
        result["settings"][name] = summary(SETTINGS[name], runs)
    result |= {"probes": len(data.probes), "provenance": provenance("pillow")}
    if options.json is not None:
        write_json(options.json, result)
    if options.picture is not None:
        picture(data).save(options.picture / "mnist_shortcuts_examples.png", optimize=True)
    if options.fill:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    return result


def _cached(data: Digits, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    epochs = options.epochs or SETTINGS[name].recipe.epochs
    file = options.cache / f"{name}_{seed}_{epochs}_{len(data.train[1])}.json"
    if not file.exists():
        begin = time.perf_counter()
        found = run(data, SETTINGS[name], seed, epochs=epochs)
        found["seconds"] = round(time.perf_counter() - begin, 1)
        file.write_text(json.dumps(found))
        end = kept(found["rows"])
        right = ", ".join(f"{test} {value:.3f}" for test, value in end["accuracy"].items())
        pull = interval(end["cue"]["pull"])
        print(f"{name}, seed {seed}: {right}; pull {pull}; {found['cpu_seconds']} CPU s", flush=True)
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = ROOT.parent / "shared" / "data" / "mnist"
    parser.add_argument("--data", type=Path, default=default, help="folder with the idx files of MNIST")
    parser.add_argument("--cache", type=Path, default=Path("mnist_shortcuts_cache"), help="folder for finished runs")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, help="how many, instead of the setting's own number")
    parser.add_argument("--epochs", type=int, help="instead of the setting's own number")
    parser.add_argument("--images", type=int, help="at most so many training images, to try the script")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--picture", type=Path, help="folder for the picture of examples")
    parser.add_argument("--fill", action="store_true", help="write the tables of the page in docs/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
