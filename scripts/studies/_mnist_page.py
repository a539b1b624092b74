"""Tables and picture of docs/mnist_shortcuts.md, made from the kept results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from _mnist_settings import SETTINGS, Digits
from _mnist_shortcuts import CLASSES, Cued
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["filled", "interval", "picture"]

Pixels = NDArray[np.uint8]

MARGIN, CAPTION = 12, 26
# Test set and captions of each block of the picture.
SHOWN = {
    "decoy_ross": ("random", "Decoy-MNIST, training: 255 - 25 x digit", "test: the shade of any digit"),
    "coloured_1": ("independent", "Coloured MNIST, training: 1 % in another colour", "test: any colour"),
    "irm": ("reversed", "IRM, training: below 5? five labelled no, five yes", "test: colours swapped in 90 %"),
}


def accuracy_table(result: Mapping[str, Any]) -> str:
    """One row a setting: accuracies in percent, published ones in brackets."""
    names = ("train", "independent", "reversed", "conflicting", "without")
    lines = [
        "| setting | seeds | train | cue independent of the label | cue reversed | never the own cue | no cue |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["settings"].values():
        cells = [_accuracy_cell(row, "random" if name == "independent" else name, name) for name in names]
        lines.append(f"| {row['title']} | {len(row['onset'])} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _source(result)])


def _accuracy_cell(row: Mapping[str, Any], *names: str) -> str:
    for name in names:
        if name in row["accuracy"]:
            found = row["accuracy"][name]
            seeds = [100 * value for value in found["per_seed"]]
            span = f" ({min(seeds):.1f} to {max(seeds):.1f})" if len(seeds) > 1 else ""
            published = f"; published {row['published'][name]}" if name in row["published"] else ""
            return f"{100 * found['mean']:.1f}{span}{published}"
    return "-"


def audit_table(result: Mapping[str, Any]) -> str:
    """One row a setting: what the audits say of the net that is kept, and since when."""
    lines = [
        "| setting | `cue/.../pull`, by seed | `cue/.../gap`, by seed | alarm after epoch, by seed | state at the end "
        "| worst group | conflict gap | conditional MI |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["settings"].values():
        pulls, gaps = ("; ".join(interval(each) for each in row["cue"][name]) for name in ("pull", "gap"))
        since = ", ".join("never" if epoch is None else str(epoch) for epoch in row["onset"])
        groups = [f"{row['group'][name]['mean']:.2f}" for name in ("wga", "conflict_gap", "cond_mi")]
        cells = [pulls, gaps, since, ", ".join(dict.fromkeys(row["state"])), *groups]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _source(result)])


def interval(estimate: Mapping[str, Any]) -> str:
    """An estimate and its interval in words."""
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def ross_table(result: Mapping[str, Any]) -> str:
    """Some epochs of seed 0 of Ross's net."""
    lines = [
        "| epoch | train | random shade | `cue/decoy/pull` | `cue/decoy/gap` | conflict gap | worst group |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = result["settings"]["decoy_ross"]["epochs_of_seed_0"]
    for row in rows:
        if row["epoch"] in (0, 1, 2, 4, 8, 16, 32, rows[-1]["epoch"]):
            right = [f"{100 * row['accuracy'][name]:.1f}" for name in ("train", "random")]
            cells = [*right, interval(row["pull"]), interval(row["gap"]), f"{row['conflict_gap']:.2f}"]
            lines.append(f"| {row['epoch']} | " + " | ".join(cells) + f" | {row['wga']:.2f} |")
    return "\n".join([*lines, "", _source(result)])


def cdep_table(result: Mapping[str, Any]) -> str:
    """Every epoch of CDEP's net, with what it looks at."""
    lines = [
        "| epoch | random shade | reversed | `cue/decoy/pull` | `gradcam/why/relevance_mass/spurious` | conflict gap |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["settings"]["decoy_cdep"]["epochs_of_seed_0"]:
        right = [f"{100 * row['accuracy'][name]:.1f}" for name in ("random", "reversed")]
        cells = [*right, interval(row["pull"]), interval(row["relevance_mass"]), f"{row['conflict_gap']:.2f}"]
        lines.append(f"| {row['epoch']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _source(result)])


def _source(result: Mapping[str, Any]) -> str:
    made = result["provenance"]
    minutes = sum(row["cpu_seconds"] for row in result["settings"].values()) / 60
    where = f"{made['date']}, {made['machine']}, torch {made['versions']['torch']}"
    return f"*`scripts/studies/mnist_shortcuts.py`, {where}; {minutes:.0f} CPU minutes in all.*"


TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy": accuracy_table,
    "audit": audit_table,
    "ross": ross_table,
    "cdep": cdep_table,
}


def filled(text: str, result: Mapping[str, Any]) -> str:
    """A document with its tables made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
        if begin in text:
            before, after = text.partition(begin)[0], text.partition(end)[2]
            text = f"{before}{begin}\n{table(result)}\n{end}{after}"
    return text


def picture(data: Digits, *, zoom: int = 3) -> Image.Image:
    """A block a setting: a digit of each class drawn at random in training on the left, at test on the right."""
    blocks = [_block(data, name, *captions, zoom=zoom) for name, captions in SHOWN.items()]
    page = np.full((sum(block.height for block in blocks), max(block.width for block in blocks), 3), 255, np.uint8)
    top = 0
    for block in blocks:
        page[top : top + block.height, : block.width] = np.asarray(block)
        top += block.height
    return Image.fromarray(page)


def _block(data: Digits, name: str, test: str, train_caption: str, test_caption: str, *, zoom: int) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    task = SETTINGS[name].task(data, generator)
    rows = [_row(_examples(images, zoom, generator)) for images in (task.train, task.tests[test])]
    height, width = rows[0].shape[:2]
    block = Image.new("RGB", (2 * width + 3 * MARGIN, height + CAPTION + MARGIN), "white")
    pen, font = ImageDraw.Draw(block), ImageFont.load_default(size=15)
    for left, row, caption in zip((MARGIN, width + 2 * MARGIN), rows, (train_caption, test_caption), strict=True):
        pen.text((left, CAPTION - 4), caption, fill="black", font=font, anchor="ls")
        block.paste(Image.fromarray(row), (left, CAPTION))
    return block


def _examples(data: Cued, zoom: int, generator: torch.Generator) -> list[Pixels]:
    """An image of each class at random, five of each if there are two, as large pixels of 28 x 28."""
    order = torch.randperm(len(data), generator=generator)
    classes = int(data.labels.max()) + 1
    rows = [order[data.labels[order] == label][: CLASSES // classes] for label in range(classes)]
    images = data.images[torch.cat(rows)]
    if images.shape[1] == 2:
        images = torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    times = zoom * 28 // images.shape[-1]
    shown = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return [np.kron(image, np.ones((times, times, 1), np.uint8)) for image in shown]


def _row(tiles: Sequence[Pixels]) -> Pixels:
    """Tiles side by side, white between them."""
    return np.concatenate([np.pad(tile, ((0, 0), (0, 3), (0, 0)), constant_values=255) for tile in tiles], axis=1)
