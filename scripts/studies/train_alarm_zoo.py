"""Train the nets on which the alarm is judged, and measure how much each of them uses a cue.

Three kinds of nets, of every architecture, data and number of classes: `taught` with a cue that goes with the class,
`useless` ones with a cue that tells nothing, and `clean` ones without any. Whether a net uses a cue is measured, not
assumed: its gap is the accuracy on unseen images with the cue of their class minus that on the same images with the
cue of another (`own_and_other`). Clean nets are measured with every cue that suits their data.

    python scripts/studies/train_alarm_zoo.py --share 0/2
    python scripts/studies/train_alarm_zoo.py --share 1/2
    python scripts/studies/train_alarm_zoo.py --list

Nets are cached one by one, so that a run may be stopped and continued. The list is mixed: its first half is half of
everything. For each net the cache has `<key>.safetensors`, the weights before training (`e0/...`) and after each of six
epochs (to `e6/...`), and `<key>.json`: what it is, accuracy, seconds, gaps. A net takes some 10 s on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _alarm_cues import FAMILIES, cue_for, drawn_presence, drawn_variants, gap, own_and_other, painted, suits
from _alarm_data import CLASS_COUNTS, KINDS, Data, channels_of, dataset
from _alarm_nets import NETS, Frozen, learnt, net, predictions, train
from _provenance import provenance

EPOCHS = 6
# Data sets of each kind and number of classes.
DRAWS = 3
# Images for the gap of each epoch, and for all gaps of the net that takes longest.
FEW, FEWER = 300, 400
STRENGTHS = (0.8, 0.95, 1.0)
WEAK = 0.6
# Largest number of classes to which a single variant points by turns, on clean nets.
TARGETS = 4
# MobileNetV2 takes longest: fewer of it.
SHARES = {name: 0.3 if name == "mobilenet" else 1.0 for name in NETS}


class Spec(NamedTuple):
    """One net.

    Attributes:
        role: `taught`, `useless` or `clean`.
        family: Its cue, one of `FAMILIES`; `none` for clean nets.
        kind: Kind of data.
        classes: Number of classes.
        network: Kind of net.
        strength: Probability that an image of a class has the cue of the class; 0 for clean nets.
        target: Class that a single variant points to; None where there are several variants.
        exclusive: A single variant occurs in no other class; else in a share of (1 - strength) / 2 of them.
        seed: Seed of weights, order and draws; its data are `data_seed`.
    """

    role: str
    family: str
    kind: str
    classes: int
    network: str
    strength: float
    target: int | None
    exclusive: bool
    seed: int

    @property
    def key(self) -> str:
        """A file name."""
        about = f"{self.role}_{self.family}_{self.kind}{self.classes}_{self.network}_{self.strength:g}"
        pointed = "" if self.target is None else f"_t{self.target}{'x' if self.exclusive else ''}"
        return f"{about}{pointed}_s{self.seed}"

    @property
    def data_seed(self) -> int:
        """Seed of its data set."""
        return self.seed % DRAWS

    def data(self) -> Data:
        """Its images, without a cue."""
        return dataset(self.kind, self.classes, self.data_seed)


def plan() -> list[Spec]:
    """All nets, mixed: any first part of the list is a fair sample."""
    dice = random.Random(11)  # noqa: S311 - no secret
    used: Counter[tuple[str, ...]] = Counter()
    cells: dict[str, list[tuple[str, int, float]]] = {"taught": [], "useless": []}
    for offset, (name, family) in enumerate(FAMILIES.items()):
        counts = [classes for classes in (2, 4, 10) if classes <= family.most]
        cells["taught"] += [(name, classes, strength) for classes, strength in product(counts, STRENGTHS)]
        cells["taught"].append((name, counts[offset % len(counts)], WEAK))
        cells["useless"] += [(name, counts[(offset + turn) % len(counts)], 0.0) for turn in (0, 1)]
    specs: list[Spec] = []
    for role, wanted in cells.items():
        for family_name, classes, strength in _in_turn(wanted, dice):
            kind = _least_used([each for each in KINDS if suits(family_name, each, classes)], used, family_name, dice)
            network = _least_used(NETS, used, family_name, dice, kind)
            single, seed = FAMILIES[family_name].single, len(specs)
            target = seed % classes if single else None
            exclusive = single and seed // len(FAMILIES) % 2 == 0
            specs.append(Spec(role, family_name, kind, classes, network, strength, target, exclusive, seed))
    for turn in range(4):
        for kind, counts_ in CLASS_COUNTS.items():
            for classes in counts_:
                network = _least_used(NETS, used, f"none{classes}", dice, kind)
                specs.append(
                    Spec("clean", "none", kind, classes, network, 0.0, None, False, 1000 + 20 * turn + classes)
                )
    return _mixed(specs)


def load(cache: Path, spec: Spec, epoch: int = EPOCHS) -> nn.Module:
    """A net of the cache as it was after an epoch; 0 is before training."""
    model = net(spec.network, channels_of(spec.kind), spec.classes, spec.seed)
    prefix = f"e{epoch}/"
    weights = load_file(cache / f"{spec.key}.safetensors")
    state = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if isinstance(model, Frozen):
        model.head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in state.items()})
    else:
        model.load_state_dict(state)
    return model.eval()


def figures(cache: Path, spec: Spec) -> dict[str, Any] | None:
    """What was measured of a net, or None if it is not trained yet."""
    path = cache / f"{spec.key}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def training_images(spec: Spec) -> Tensor:
    """The training images of a net, with its cue."""
    split = spec.data().train
    if spec.family == "none":
        return split.images
    cue = cue_for(spec.family, spec.kind, spec.classes, spec.target)
    seed = 5000 + spec.seed
    if spec.target is None:
        share = spec.strength if spec.role == "taught" else 1 / spec.classes
        return painted(cue, split, drawn_variants(split.labels, spec.classes, share, seed))
    inside, outside = 0.5, 0.5
    if spec.role == "taught":
        inside, outside = spec.strength, 0.0 if spec.exclusive else (1 - spec.strength) / 2
    return painted(cue, split, drawn_presence(split.labels, spec.target, inside, outside, seed))


def learn(spec: Spec, cache: Path) -> dict[str, Any]:
    """Train one net, measure it, and write both to the cache."""
    start = time.perf_counter()
    data = spec.data()
    model = net(spec.network, channels_of(spec.kind), spec.classes, spec.seed)
    test = data.test.first(FEWER) if spec.network == "mobilenet" else data.test
    pair = None
    if spec.family != "none":
        pair = own_and_other(cue_for(spec.family, spec.kind, spec.classes, spec.target), test)
    weights: dict[str, Tensor] = {}
    course: list[tuple[float, float]] = []

    def look(epoch: int) -> None:
        weights.update({f"e{epoch}/{name}": tensor for name, tensor in learnt(model).items()})
        if pair is not None and spec.network != "mobilenet":
            course.append(_gap(model, (pair[0][:FEW], pair[1][:FEW]), test.labels[:FEW]))

    seconds = {"before": time.perf_counter() - start}
    train(model, spec.network, training_images(spec), data.train.labels, epochs=EPOCHS, seed=spec.seed, look=look)
    seconds["training"] = time.perf_counter() - start - seconds["before"]
    found: dict[str, Any] = {
        "spec": spec._asdict(),
        "key": spec.key,
        "accuracy": _accuracy(model, data, len(test.labels)),
    }
    if pair is None:
        found["gaps"] = _clean_gaps(model, spec)
    else:
        value, error = _gap(model, pair, test.labels)
        found |= {"gap": value, "gap_se": error, "gap_by_epoch": course, "tested": len(test.labels)}
    found["seconds"] = seconds | {"all": time.perf_counter() - start}
    _save(weights, cache / f"{spec.key}.safetensors")
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _save(weights: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)
    partial.replace(path)


def _accuracy(model: nn.Module, data: Data, count: int) -> float:
    """Share of the first test images, without a cue, that are recognised."""
    return float((predictions(model, data.test.images[:count]) == data.test.labels[:count]).double().mean())


def _gap(model: nn.Module, pair: tuple[Tensor, Tensor], labels: Tensor) -> tuple[float, float]:
    """Gap and standard error from images with the own cue and with another."""
    own, other = (predictions(model, images) == labels for images in pair)
    return gap(own, other, labels)


def _clean_gaps(model: nn.Module, spec: Spec) -> dict[str, tuple[float, float]]:
    """Gap and standard error by cue; those of a single variant by class, as in `blur/2`."""
    test = spec.data().test
    test = test.first(FEWER) if spec.network == "mobilenet" else test
    plain = predictions(model, test.images) == test.labels
    found = {}
    for name, family in FAMILIES.items():
        if not suits(name, spec.kind, spec.classes):
            continue
        if not family.single:
            pair = own_and_other(cue_for(name, spec.kind, spec.classes), test)
            found[name] = _gap(model, pair, test.labels)
            continue
        cue = cue_for(name, spec.kind, spec.classes, 0)
        marked = predictions(model, painted(cue, test, torch.zeros_like(test.labels))) == test.labels
        for target in range(min(TARGETS, spec.classes)):
            mine = test.labels == target
            own, other = torch.where(mine, marked, plain), torch.where(mine, plain, marked)
            found[f"{name}/{target}"] = gap(own, other, test.labels)
    return found


def _in_turn(cells: list[tuple[str, int, float]], dice: random.Random) -> list[tuple[str, int, float]]:
    """The cells of each family in random order, one of each family in turn."""
    by_family: dict[str, list[tuple[str, int, float]]] = {}
    for cell in cells:
        by_family.setdefault(cell[0], []).append(cell)
    for mine in by_family.values():
        dice.shuffle(mine)
    longest = max(map(len, by_family.values()))
    return [mine[turn] for turn in range(longest) for mine in by_family.values() if turn < len(mine)]


def _least_used(
    choices: Iterable[str], used: Counter[tuple[str, ...]], family: str, dice: random.Random, kind: str = ""
) -> str:
    """The one that the family, the kind of data and all together have met least; drawn among equals."""
    ranked = [
        (
            (used[family, each] + used[kind, "kind", each]) / SHARES.get(each, 1.0),
            used["", each] / SHARES.get(each, 1.0),
            dice.random(),
            each,
        )
        for each in choices
    ]
    best = min(ranked)[-1]
    used.update([(family, best), (kind, "kind", best), ("", best)])
    return best


def _mixed(specs: list[Spec]) -> list[Spec]:
    """The roles merged so that each goes through at an even pace."""
    counts = Counter(spec.role for spec in specs)
    seen: Counter[str] = Counter()
    placed = []
    for spec in specs:
        placed.append(((seen[spec.role] + 0.5) / counts[spec.role], spec.role, spec))
        seen[spec.role] += 1
    return [spec for _, _, spec in sorted(placed, key=lambda place: place[:2])]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def show(cache: Path, console: Console) -> None:
    """Tables of what the cache has so far."""
    specs = plan()
    done = [(spec, found) for spec in specs if (found := figures(cache, spec)) is not None]
    console.print(f"{len(done)} of {len(specs)} nets; {sum(found['seconds']['all'] for _, found in done):.0f} s")
    table = Table("family", *(f"{strength:g}" for strength in (WEAK, *STRENGTHS)), "useless", title="gaps")
    for name in FAMILIES:
        cells = []
        for strength in (WEAK, *STRENGTHS, 0.0):
            mine = [found for spec, found in done if spec.family == name and spec.strength == strength]
            cells.append(" ".join(f"{found['gap']:.2f}".replace("0.", ".") for found in mine))
        table.add_row(name, *cells)
    console.print(table)
    taught = [found["gap"] for spec, found in done if spec.role == "taught"]
    console.print(
        f"taught: {sum(value >= 0.1 for value in taught)} with a gap of .10 or more, "
        f"{sum(abs(value) <= 0.03 for value in taught)} of .03 at most, of {len(taught)}"
    )
    table = Table("data", *NETS, title="accuracy of clean nets")
    for kind, counts in CLASS_COUNTS.items():
        for classes in counts:
            cells = [
                " ".join(
                    f"{found['accuracy']:.2f}" for spec, found in done if spec[1:5] == ("none", kind, classes, network)
                )
                for network in NETS
            ]
            table.add_row(f"{kind} {classes}", *cells)
    console.print(table)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("alarm_cache"), help="folder of the nets")
    parser.add_argument("--share", default="0/1", help="which part of the list, as in 0/2 and 1/2")
    parser.add_argument("--most", type=int, help="stop after so many nets")
    parser.add_argument("--networks", nargs="+", default=NETS, help="kinds of nets to train, if not all")
    parser.add_argument("--list", action="store_true", help="show what there is, and train nothing")
    options = parser.parse_args()
    console = Console(width=150)
    if options.list:
        show(options.cache, console)
        return
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, options.share.split("/"))
    mine = [spec for spec in plan()[part::parts] if spec.network in options.networks]
    missing = [spec for spec in mine if figures(options.cache, spec) is None]
    source = provenance("safetensors")
    for index, spec in enumerate(missing[: options.most]):
        if figures(options.cache, spec) is not None:
            continue  # another process was faster
        found = learn(spec, options.cache) | {"provenance": source}
        path = options.cache / f"{spec.key}.json"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(found))
        partial.replace(path)
        told = f"gap {found['gap']:.3f}" if "gap" in found else f"{len(found['gaps'])} gaps"
        seconds = found["seconds"]
        console.print(
            f"{index + 1}/{len(missing)} {spec.key}: accuracy {found['accuracy']:.3f}, {told}, "
            f"{seconds['training']:.0f} of {seconds['all']:.0f} s"
        )


if __name__ == "__main__":
    main()
