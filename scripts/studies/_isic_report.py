"""What the nets of `isic_patches.py` did: figures over seeds, tables and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _first_alarm import first_alarm
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from xai_callbacks import AlarmRule, AuditRecord, Estimate
from xai_callbacks.metrics import summarize
from xai_callbacks.render import ColorScale, overlay

__all__ = ["CUES", "Pair", "curves", "examples", "over_seeds", "tables"]

CUES = ("patch", "grey", "skin")
EDITS = ("added", "removed")
SHOWN = ("pull", "gain", "relevance_lift")
RULES = ("alone", "beside the clean net")

HEADS = {
    "effects": ("pasted: patch", "in grey", "skin", "taken out: patch", "colour only", "as much beside it"),
    "accuracies": (
        *("melanomas found", "with a patch pasted in", "benign right, with a patch", "without one"),
        *("AUC, all images", "AUC, no patches"),
    ),
    "seeds": ("pasted patch", "`cue/patch/pull`", "gain", "heat on patches / their area"),
}

Figures = dict[str, Any]
Bounds = tuple[float | None, float | None]

PAPER, INK, MUTED, HAIRLINE = (252, 252, 250), (24, 27, 33), (84, 89, 98), (206, 206, 202)
# Okabe and Ito: apart in all common forms of colour vision.
COLOURS = {"patch": (0, 114, 178), "grey": (110, 110, 110), "skin": (213, 94, 0)}
WORDS = {
    "patch": {"added": "the coloured patch", "removed": "the coloured patch"},
    "grey": {"added": "the same in grey", "removed": "its colour only"},
    "skin": {"added": "one skin colour", "removed": "as much beside it"},
}


def over_seeds(runs: Sequence[Figures], clean: Sequence[Figures]) -> Figures:
    """Figures of one condition: epochs one by one, and when an alarm was raised.

    Args:
        runs: Figures of each seed, as `isic_patches.one_run` keeps them.
        clean: Those of the nets that never saw a patch, seed by seed.
    """
    return {
        "epochs": [_epoch(at) for at in zip(*(run["epochs"] for run in runs), strict=True)],
        "alarms": {
            rule: {
                cue: [_alarm(cue, run, known if place else None) for run, known in zip(runs, clean, strict=True)]
                for cue in CUES
            }
            for place, rule in enumerate(RULES)
        },
    }


def _epoch(seeds: Sequence[Figures]) -> Figures:
    # A class that rises is named where there is one, which differs from seed to seed.
    keys = set.intersection(*(set(seed["per_probe"]) for seed in seeds))
    per_probe = {key: torch.stack([_values(seed["per_probe"][key]) for seed in seeds]) for key in keys}
    found: Figures = {}
    for edit in EDITS:
        effects = {cue: per_probe[f"cue/{cue}/effect_{edit}"] for cue in CUES}
        found[edit] = {cue: _mean(values, (-1.0, 1.0)) for cue, values in effects.items()}
        differences = {cue: effects["patch"] - effects[cue] for cue in CUES[1:]}
        found[edit] |= {f"patch_minus_{cue}": _mean(values, (-2.0, 2.0)) for cue, values in differences.items()}
    found["relevance_lift"] = _mean(per_probe["gradcam/why_0/relevance_lift/spurious"])
    found["relevance_mass"] = _mean(per_probe["gradcam/why_0/relevance_mass/spurious"], (0.0, 1.0))
    for key in ("pull", "gain"):
        found[key] = _share(seed["estimates"][f"cue/patch/{key}"][0] for seed in seeds)
    found["melanomas_found"] = _share(_found(seed, with_patch=False) for seed in seeds)
    found["melanomas_found_with_patch"] = _share(_found(seed, with_patch=True) for seed in seeds)
    names = [name for name in seeds[0] if name.startswith(("auc_", "right_benign"))]
    return found | {name: _share(seed[name] for seed in seeds) for name in names}


def _values(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _mean(per_seed: Tensor, bounds: Bounds = (None, None)) -> Figures:
    """Mean over seeds and probes; the interval is that of the choice of probes, `per_seed` `(S, N)`."""
    estimate = summarize(per_seed.mean(dim=0), bounds=bounds)
    ends = {"low": estimate.low, "high": estimate.high}
    return {
        "mean": round(estimate.value, 4),
        **{name: None if end is None else round(end, 4) for name, end in ends.items()},
        "per_seed": [round(float(row.nanmean()), 4) for row in per_seed],
        "probes": estimate.valid,
    }


def _share(values: Iterable[float]) -> Figures:
    per_seed = [round(value, 4) for value in values]
    return {"mean": round(statistics.mean(per_seed), 4), "per_seed": per_seed}


def _found(seed: Figures, *, with_patch: bool) -> float:
    """Share of melanomas that are called so, as they are or with a patch pasted in."""
    melanoma = ~_values(seed["per_probe"]["cue/patch/effect_added"]).isnan()
    called = torch.tensor(seed["predictions"])[melanoma] == 1
    if with_patch:
        # There are two classes: an answer that changes becomes the other one.
        called = called == (_values(seed["per_probe"]["cue/patch/consistency"])[melanoma] == 1)
    return float(called.double().mean())


def _alarm(cue: str, run: Figures, clean: Figures | None) -> Figures:
    """When the rule first raises an alarm, beside a clean net or alone, and from when it dates the cue's use."""
    audits = [{key: Estimate(*row) for key, row in figures["estimates"].items()} for figures in run["epochs"]]
    with TemporaryDirectory() as folder:
        rule = AlarmRule()
        if clean is not None:
            known = {key: Estimate(*row) for key, row in clean["epochs"][-1]["estimates"].items()}
            AuditRecord(step=0, metrics=known).save(Path(folder) / "clean.safetensors")
            rule = AlarmRule(reference=Path(folder) / "clean.safetensors")
        epoch, dated = first_alarm(rule, cue, audits) or (None, None)
    return {"raised_at": epoch, "dated": None if dated is None else str(dated)}


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Tables for the page, by name."""
    made = result["provenance"]
    where = f"{made['date']}, {made['machine']}, torch {made['versions']['torch']}"
    source = f"*`scripts/studies/isic_patches.py`, {where}.*"
    rows = {table: [list(heads)] for table, heads in HEADS.items()}
    rows["seeds"][0] += [f"alarm at epoch, {rule}" for rule in RULES]
    for figures in result["conditions"].values():
        last = figures["epochs"][-1]
        rows["effects"].append([_interval(last[edit][cue]) for edit in EDITS for cue in CUES])
        rows["accuracies"].append(_accuracies(last))
        alarms = [[alarm["raised_at"] for alarm in of_rule["patch"]] for of_rule in figures["alarms"].values()]
        rows["seeds"].append(
            [_listed(each["per_seed"]) for each in (last["added"]["patch"], *(last[key] for key in SHOWN))]
            + [", ".join("none" if epoch is None else str(epoch) for epoch in epochs) for epochs in alarms]
        )
    names = ["patches in training", *(_condition(name, result) for name in result["conditions"])]
    return {table: f"{_markdown(names, cells)}\n\n{source}" for table, cells in rows.items()}


def _accuracies(figures: Figures) -> list[str]:
    shares = ("melanomas_found", "melanomas_found_with_patch", "right_benign_with_patches")
    cells = [f"{figures[key]['mean']:.0%}" for key in (*shares, "right_benign_without_patches")]
    return cells + [f"{figures[key]['mean']:.3f}" for key in ("auc_all", "auc_without_patches")]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:z.2f}" for value in values)


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join([name, *cells]) for name, cells in zip(names, rows, strict=True)]
    lines.insert(1, "|".join(["---"] * (1 + len(rows[0]))))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _interval(figures: Figures) -> str:
    value = f"{figures['mean']:z.2f}"
    return value if figures["low"] is None else f"{value} ({figures['low']:z.2f} to {figures['high']:z.2f})"


def _condition(name: str, result: Mapping[str, Any]) -> str:
    share = result["conditions"][name]["patched_share_of_benign"]
    return f"{name} ({share:.0%} of benign)"


# Pictures are drawn large and reduced, which smooths lines.
_LARGE = 3


class _Sheet:
    """A picture to draw on, in points of the finished one."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _LARGE, height * _LARGE), PAPER)
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, ...], width: float = 1) -> None:
        scaled = [(x * _LARGE, y * _LARGE) for x, y in points]
        self.pen.line(scaled, fill=colour, width=max(1, round(width * _LARGE)), joint="curve")

    def area(self, points: Sequence[tuple[float, float]], colour: tuple[int, ...]) -> None:
        self.pen.polygon([(x * _LARGE, y * _LARGE) for x, y in points], fill=colour)

    def dot(self, at: tuple[float, float], colour: tuple[int, ...], radius: float = 3) -> None:
        x, y, r = (value * _LARGE for value in (*at, radius))
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def text(
        self, at: tuple[float, float], text: str, size: int = 14, *, anchor: str = "ls", muted: bool = False
    ) -> None:
        font = ImageFont.load_default(size * _LARGE)
        place = (at[0] * _LARGE, at[1] * _LARGE)
        self.pen.text(place, text, fill=MUTED if muted else INK, font=font, anchor=anchor)

    def paste(self, pixels: np.ndarray, at: tuple[int, int], side: int) -> None:
        tile = Image.fromarray(pixels).resize((side * _LARGE, side * _LARGE), Image.Resampling.BICUBIC)
        self.image.paste(tile, (at[0] * _LARGE, at[1] * _LARGE))

    def reduced(self) -> Image.Image:
        size = (self.image.width // _LARGE, self.image.height // _LARGE)
        return self.image.resize(size, Image.Resampling.LANCZOS)


_PLOT, _GAP, _LEFT, _TOP = (236, 190), 26, 62, 92


def curves(result: Mapping[str, Any]) -> Image.Image:
    """Effects over epochs: a column for each condition, a row for each edit, a line for each cue."""
    conditions = result["conditions"]
    width = _LEFT + len(conditions) * (_PLOT[0] + _GAP)
    sheet = _Sheet(width, _TOP + 2 * (_PLOT[1] + 74) - 18)
    sheet.text((_LEFT, 26), "How much a patch changes the probability of benign", 18)
    sheet.text((_LEFT, 46), "mean over seeds, band: 95 % over probes", 13, muted=True)
    for row, edit in enumerate(EDITS):
        top = _TOP + row * (_PLOT[1] + 74)
        _legend(sheet, edit, top - 10)
        for column, (name, figures) in enumerate(conditions.items()):
            left = _LEFT + column * (_PLOT[0] + _GAP)
            _plot(sheet, (left, top), [at[edit] for at in figures["epochs"]], labelled=not column)
            share = figures["patched_share_of_benign"]
            sheet.text((left + 8, top + 18), f"{name}: {share:.0%} of benign with a patch", 13)
    # Few colours: a palette keeps the file small.
    return sheet.reduced().quantize(256, dither=Image.Dither.NONE)


def _legend(sheet: _Sheet, edit: str, baseline: int) -> None:
    heading = {"added": "Pasted into melanomas:", "removed": "Taken out of benign images:"}[edit]
    sheet.text((_LEFT, baseline), heading, 14)
    left = _LEFT + 200
    for cue in CUES:
        sheet.line([(left, baseline - 5), (left + 20, baseline - 5)], COLOURS[cue], 2.5)
        sheet.text((left + 26, baseline), WORDS[cue][edit], 14)
        left += 180


def _plot(sheet: _Sheet, at: tuple[int, int], epochs: Sequence[Figures], *, labelled: bool) -> None:
    left, top = at
    low, high = -0.25, 1.0

    def place(epoch: int, value: float) -> tuple[float, float]:
        across = (epoch + 0.25) / (len(epochs) - 0.5)
        return left + across * _PLOT[0], top + (high - value) / (high - low) * _PLOT[1]

    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = place(0, value)[1]
        sheet.line([(left, y), (left + _PLOT[0], y)], HAIRLINE if value else MUTED, 1)
        if labelled:
            sheet.text((left - 8, y), f"{value:g}", 13, anchor="rm", muted=True)
    for epoch in range(len(epochs)):
        sheet.text((place(epoch, 0)[0], top + _PLOT[1] + 16), str(epoch), 13, anchor="ms", muted=True)
    sheet.text((left + _PLOT[0] / 2, top + _PLOT[1] + 33), "epoch", 13, anchor="ms", muted=True)
    for cue in reversed(CUES):
        rows = [figures[cue] for figures in epochs]
        if all(row["low"] is not None for row in rows):
            upper = [place(epoch, row["high"]) for epoch, row in enumerate(rows)]
            lower = [place(epoch, row["low"]) for epoch, row in enumerate(rows)]
            sheet.area([*upper, *reversed(lower)], (*COLOURS[cue], 46))
    for cue in reversed(CUES):
        line = [place(epoch, figures[cue]["mean"]) for epoch, figures in enumerate(epochs)]
        sheet.line(line, COLOURS[cue], 2.5)
        for point in line:
            sheet.dot(point, COLOURS[cue])


class Pair:
    """One image without a patch and with it, and what some nets say of both.

    Args:
        title: What it is.
        images: The two, `(2, S, S, 3)` uint8.
        heatmaps: By name of the net, `(2, h, w)`: why benign.
        benign: By name of the net, the probability of benign of both.
    """

    def __init__(
        self, title: str, images: np.ndarray, heatmaps: Mapping[str, np.ndarray], benign: Mapping[str, Sequence[float]]
    ) -> None:
        self.title, self.images, self.heatmaps, self.benign = title, images, heatmaps, benign


_TILE, _SPACE = 150, 10


def examples(pairs: Sequence[Pair]) -> Image.Image:
    """Pairs below each other: the images, and where each net sees benign in them."""
    nets = list(pairs[0].heatmaps)
    columns = 2 * (1 + len(nets))
    groups = ["image", *(f"net '{name}': why benign?" for name in nets)]
    width = 24 + columns * (_TILE + _SPACE) + len(nets) * 14
    sheet = _Sheet(width, 62 + len(pairs) * (_TILE + 50))
    for group, heading in enumerate(groups):
        sheet.text((_column(2 * group), 28), heading, 16)
        for half, words in enumerate(("without a patch", "with a patch")):
            sheet.text((_column(2 * group + half), 50), words, 13, muted=True)
    for row, pair in enumerate(pairs):
        top = 62 + row * (_TILE + 50)
        _row(sheet, pair, top)
    return sheet.reduced()


def _column(index: int) -> int:
    return 16 + index * (_TILE + _SPACE) + index // 2 * 14


def _row(sheet: _Sheet, pair: Pair, top: int) -> None:
    scale = ColorScale()
    for half in range(2):
        sheet.paste(pair.images[half], (_column(half), top), _TILE)
        large = np.asarray(Image.fromarray(pair.images[half]).resize((_TILE * 2, _TILE * 2), Image.Resampling.BICUBIC))
        for net, (name, maps) in enumerate(pair.heatmaps.items()):
            left = _column(2 * (net + 1) + half)
            sheet.paste(overlay(large, maps[half], scale), (left, top), _TILE)
            sheet.text((left, top + _TILE + 18), f"benign {pair.benign[name][half]:.2f}", 14)
    sheet.text((_column(0), top + _TILE + 18), pair.title, 14, muted=True)
