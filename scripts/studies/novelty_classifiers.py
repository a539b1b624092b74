"""How well do scores of a classifier tell novel images from known ones? Fashion-MNIST, six known classes of ten.

For each seed six classes are drawn and a small net learns to tell them apart. Known are test images of these six, near
those of the other four, far those of MNIST. Scores that learn see training images of the known classes, no score sees a
novel one, and nothing is tuned. Two controls look at nothing but the mean pixel of an image: what they can do is no
merit of a score. Intervals are those of Student's t over seeds, that is over splits of the classes and trainings.

    python scripts/studies/novelty_classifiers.py --json docs/results/novelty_classifiers.json

Takes a few minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _provenance import provenance, write_json
from _small_nets import accuracy, all_scores, load, mean_and_interval, score_groups, train

from xai_callbacks.metrics import novelty_auroc

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
KNOWN = 6


def split_classes(seed: int) -> tuple[list[int], list[int]]:
    """Known and unknown classes of a seed, each in ascending order."""
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:KNOWN]), sorted(order[KNOWN:])


def one_seed(seed: int, options: argparse.Namespace) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """AUROC by comparison and score, and what to know of the seed."""
    begin = time.perf_counter()
    known, unknown = split_classes(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    fashion, test = (load(options.data / "fashion_mnist", split) for split in ("train", "t10k"))
    training = fashion.of_classes(known).draw(options.images, generator)
    model = train(training, KNOWN, epochs=options.epochs, seed=seed)
    seen = test.of_classes(known)
    groups = {
        "known": seen.draw(options.test_images, generator).pixels,
        "near": test.of_classes(unknown).draw(options.test_images, generator).pixels,
        "far": load(options.data / "mnist", "t10k").draw(options.test_images, generator).pixels,
    }
    scores = score_groups(model, all_scores(), training.draw(options.fit_images, generator), groups)
    figures = {
        group: {name: novelty_auroc(by_group["known"], by_group[group]) for name, by_group in scores.items()}
        for group in ("near", "far")
    }
    facts: dict[str, Any] = {
        "seed": seed,
        "known": [NAMES[index] for index in known],
        "unknown": [NAMES[index] for index in unknown],
        "accuracy_train": round(accuracy(model, training), 4),
        "accuracy_test": round(accuracy(model, seen), 4),
    }
    print(f"  seed {seed}: {facts['accuracy_test']:.3f} of known test images right,", end=" ")
    print(f"unknown: {', '.join(facts['unknown'])}; {time.perf_counter() - begin:.0f} s", flush=True)
    return figures, facts


def show(result: dict[str, Any], seeds: int) -> None:
    """Print the table, best near score first."""
    table = Table(title=f"AUROC, mean over {seeds} seeds and 95 % interval (larger = more novel; chance .5)")
    for column in ("score", "near: unknown classes", "far: MNIST"):
        table.add_column(column)
    for name in sorted(result["near"], key=lambda name: -result["near"][name]["mean"]):
        table.add_row(name, *(_words(result[group][name]) for group in ("near", "far")))
    Console(width=100).print(table)


def _words(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f"  ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['mean']:.3f}{interval}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_000, help="training images, of 36,000")
    parser.add_argument("--fit-images", type=int, default=2000, help="of them, those that scores learn from")
    parser.add_argument("--test-images", type=int, default=2000, help="in each of the three groups")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    runs = [one_seed(seed, options) for seed in range(options.seeds)]
    result: dict[str, Any] = {
        group: {name: mean_and_interval([figures[group][name] for figures, _ in runs]) for name in runs[0][0][group]}
        for group in ("near", "far")
    }
    show(result, options.seeds)
    result["setup"] = {
        "seeds": list(range(options.seeds)),
        "epochs": options.epochs,
        "training_images": options.images,
        "fit_images": options.fit_images,
        "test_images_a_group": options.test_images,
        "interval": "95 %, Student's t over seeds",
        "runs": [facts for _, facts in runs],
        **provenance(),
    }
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
