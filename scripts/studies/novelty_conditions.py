"""Condition novelty: how well do scores of a classifier of clean digits notice how an image was taken or stored?

For each seed a small net learns clean digits of MNIST, all ten classes. Known are clean test images, novel are other
test images under each condition of `interventions` at five levels; level 0, other clean images, shows what chance looks
like. A documented stand-in for CURE-TSR, which cannot be downloaded freely. `pixel_mean_distance` is a control that
looks at nothing but the mean pixel, and accuracy tells what a condition does to the net: a score that notices what does
no harm is no better for it.

    python scripts/studies/novelty_conditions.py --json docs/results/novelty_conditions.json

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
from _small_nets import Images, accuracy, all_scores, load, mean_and_interval, score_groups, train

from xai_callbacks.interventions import CONDITIONS, LEVELS, apply_condition
from xai_callbacks.metrics import novelty_auroc

SCORES = (
    *("max_softmax", "energy", "mahalanobis", "gradnorm", "confounding_labels"),
    *("gradient_norm_all", "purview_distance", "pixel_mean_distance"),
)
CLEAN = "clean"

Figures = dict[str, dict[str, dict[int, float]]]


def one_seed(seed: int, options: argparse.Namespace) -> Figures:
    """AUROC by score, condition and level; and under `accuracy`, that of the net."""
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(1000 + seed)
    training = load(options.data / "mnist", "train").draw(options.images, generator)
    test = load(options.data / "mnist", "t10k").draw(2 * options.test_images, generator)
    known, others = test.pixels[: options.test_images], test.pixels[options.test_images :]
    labels = test.labels[options.test_images :]
    model = train(training, 10, epochs=options.epochs, seed=seed)
    groups = {(CLEAN, 0): others} | {
        (condition, level): apply_condition(others, condition, level, seed=seed)
        for condition in CONDITIONS
        for level in LEVELS
    }
    named = {"known": known} | {f"{condition} {level}": pixels for (condition, level), pixels in groups.items()}
    chosen = [score for score in all_scores() if score.name in SCORES]
    scores = score_groups(model, chosen, training.draw(options.fit_images, generator), named)
    found: Figures = {name: {condition: {} for condition in (CLEAN, *CONDITIONS)} for name in ("accuracy", *SCORES)}
    for (condition, level), pixels in groups.items():
        found["accuracy"][condition][level] = accuracy(model, Images(pixels, labels))
        for name in SCORES:
            by_group = scores[name]
            found[name][condition][level] = novelty_auroc(by_group["known"], by_group[f"{condition} {level}"])
    print(f"  seed {seed}: {found['accuracy'][CLEAN][0]:.3f} of clean images right", end=", ")
    print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    return found


def summarized(runs: Sequence[Figures]) -> dict[str, Any]:
    """Mean and interval over seeds, by score, condition and level; under `mean`, that over all levels of it."""
    result: dict[str, Any] = {}
    for name, conditions in runs[0].items():
        result[name] = {}
        for condition, levels in conditions.items():
            rows = [run[name][condition] for run in runs]
            result[name][condition] = {str(level): mean_and_interval([row[level] for row in rows]) for level in levels}
            means = [sum(row.values()) / len(row) for row in rows]
            result[name][condition]["mean"] = mean_and_interval(means)
    return result


def show(result: dict[str, Any], seeds: int) -> None:
    """Print one row for each condition and level."""
    table = Table(title=f"AUROC by condition and level, mean over {seeds} seed(s); larger = more novel, chance .5")
    for column in ("condition", *result):
        table.add_column(column.replace("_", " "), justify="left" if column == "condition" else "right")
    for condition in (CLEAN, *CONDITIONS):
        for level in [key for key in result["accuracy"][condition] if key != "mean"]:
            means = [f"{by_condition[condition][level]['mean']:.3f}" for by_condition in result.values()]
            table.add_row(f"{condition} {level}", *means, end_section=level in ("0", "5"))
    Console(width=130).print(table)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=12_000, help="training images, of 60,000")
    parser.add_argument("--fit-images", type=int, default=2000, help="of them, those that scores learn from")
    parser.add_argument("--test-images", type=int, default=1000, help="known ones, and as many under each condition")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    runs = [one_seed(seed, options) for seed in range(options.seeds)]
    summary = summarized(runs)
    show(summary, options.seeds)
    result: dict[str, Any] = {
        "scores": {name: rows for name, rows in summary.items() if name != "accuracy"},
        "accuracy": summary["accuracy"],
        "setup": {
            "seeds": list(range(options.seeds)),
            "epochs": options.epochs,
            "training_images": options.images,
            "fit_images": options.fit_images,
            "test_images_a_group": options.test_images,
            "interval": "95 %, Student's t over seeds",
            **provenance(),
        },
    }
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
