"""Pages about scores, cues and kinds of heatmaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xai_callbacks.gallery.heat import first_answer, heat
from xai_callbacks.gallery.words import answer, plural, tone, truth, when
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.render import Cell, ColorScale, Line, Row, field_chart, line_chart, render_page

__all__ = ["clusters", "most_novel", "quadrants"]

Pixels = NDArray[np.uint8]

WIDTH: Final = 352
THUMBNAIL: Final = 64
CHART: Final = (64, 112)
WORDS: Final = WIDTH - THUMBNAIL - CHART[1] - 16
RANKED: Final = 5
FIELD: Final = (300, WIDTH)
EXAMPLE: Final = 64
# Effect above which a cue is drawn as used where no rule says so.
USED: Final = 0.03
# Classes drawn: those with more than one kind of heatmap first.
CLASSES: Final = 6
KIND: Final = 80
EXAMPLES: Final = 3
NUMBERS: Final = "cluster/number"

QUADRANTS: Final = (
    # used, looked at, in words
    (True, True, "used and looked at"),
    (True, False, "used, not looked at"),
    (False, True, "looked at, not used"),
    (False, False, "neither"),
)


def most_novel(probes: ProbeSet, audits: Sequence[AuditRecord], name: str, scale: ColorScale) -> Pixels:
    """The probes that one score finds most novel, with the share of probes less novel at each of the audits."""
    record = audits[-1]
    scores = record.scores[name]
    past = [each for each in audits if name in each.scores and len(each.scores[name]) == len(scores)]
    ranks = [share_below(each.scores[name]) for each in past]
    order = scores.argsort(descending=True, stable=True)[:RANKED].tolist()
    rows = []
    for place, index in enumerate(order, start=1):
        words = [f"{place}. {probes.names[index]}", f"score {float(scores[index]):.4g}"]
        said = answer(probes, record, index)
        words += [f"says {said}" if said else "", truth(probes, index)]
        cells = [
            Cell(probes.pixels[index].numpy()),
            Cell(None, "\n".join(filter(None, words)), width=WORDS),
            Cell(line_chart([float(rank[index]) for rank in ranks], CHART), exact=True, width=CHART[1]),
        ]
        rows.append(Row(cells, size=THUMBNAIL, lines=5))
    lines = [
        Line(f"larger = more novel; {len(order)} of {plural(len(scores), 'probe')}"),
        Line(when(record), "muted"),
        Line(f"charts: share of probes less novel, step {past[0].step} to {record.step}", "muted"),
    ]
    return render_page(rows, title=f"Most novel by {name}", lines=lines, scale=scale)


def share_below(values: Tensor) -> Tensor:
    """Share of the other values that are smaller, ties counting half, `(N,)` float32 in [0, 1]; .5 without others."""
    below = torch.searchsorted(values.sort().values, values, side="left").double()
    up_to = torch.searchsorted(values.sort().values, values, side="right").double()
    others = max(1, len(values) - 1)
    return ((below + up_to - 1) / 2 / others).float() if len(values) > 1 else torch.full((len(values),), 0.5)


def quadrants(probes: ProbeSet, record: AuditRecord, scale: ColorScale) -> Iterator[tuple[str, Pixels]]:
    """For each cue that the probes carry in a region: where each probe lies between looked at and used."""
    for cue, region in record.cue_regions.items():
        key = f"{first_answer(record)}/{next(iter(record.questions), '')}/relevance_mass/{region}"
        used, looked = record.per_probe.get(f"cue/{cue}/effect"), record.per_probe.get(key)
        if used is None or looked is None:
            continue
        known = (used.isfinite() & looked.isfinite()).nonzero()[:, 0].tolist()
        if known:
            chance = record.chances[key][known].nanmean().clamp(0, 1).nan_to_num(0) if key in record.chances else 0.0
            points = {row: (min(max(float(looked[row]), 0.0), 1.0), float(used[row])) for row in known}
            yield cue, _quadrants(probes, record, cue, points, float(chance), scale)


def _quadrants(
    probes: ProbeSet,
    record: AuditRecord,
    cue: str,
    points: dict[int, tuple[float, float]],
    chance: float,
    scale: ColorScale,
) -> Pixels:
    about = [each.threshold for each in record.findings if each.about == f"cue/{cue}/effect"]
    threshold = next((each for each in about if each is not None), USED)
    chart = field_chart([*points.values()], chance=chance, threshold=threshold, size=FIELD, type_size=15)
    rows = [Row([Cell(chart, exact=True, width=WIDTH)])]
    for is_used, is_looked_at, words in QUADRANTS:
        inside = [
            row
            for row, (looked, used) in points.items()
            if (used > threshold, looked > chance) == (is_used, is_looked_at)
        ]
        furthest = sorted(inside, key=lambda row: -abs(points[row][1]) - points[row][0])[: WIDTH // EXAMPLE]
        cells = [Cell(probes.pixels[row].numpy(), tone=tone(record, row)) for row in furthest]
        rows.append(Row(cells, f"{words}: {len(inside)} ({len(inside) / len(points):.0%})", EXAMPLE))
    lines = [
        Line(when(record), "muted"),
        Line(f"{len(points)} of {plural(len(probes), 'probe')}; only use is alarming"),
    ]
    return render_page(rows, title=f"Cue {cue}: looked at or used?", lines=lines, scale=scale)


class _Kind(NamedTuple):
    """Probes of one class whose heatmaps look alike."""

    number: int
    members: list[int]


def clusters(probes: ProbeSet, record: AuditRecord, scale: ColorScale) -> Iterator[tuple[str, Pixels]]:
    """For some classes, those with more kinds of heatmaps first: what each kind looks like."""
    numbers, explainer = record.per_probe.get(NUMBERS), first_answer(record)
    classes = record.predictions if record.truth is None else record.truth
    if numbers is None or explainer is None or classes is None or classes.ndim != 1:
        return
    question = record.questions.index("why_label") if "why_label" in record.questions else 0
    found: dict[int, list[_Kind]] = {}
    for label in sorted({int(each) for each in classes}):
        of_class = numbers.where(classes == label, torch.nan)
        kinds = sorted({int(each) for each in of_class[of_class.isfinite()]})
        if kinds:
            found[label] = [_Kind(kind, (of_class == kind).nonzero()[:, 0].tolist()) for kind in kinds]
    for label in sorted(found, key=lambda each: (-len(found[each]), each))[:CLASSES]:
        rows = [_kind(probes, record, kind, (explainer, question), scale) for kind in found[label]]
        lines = [Line(when(record), "muted"), Line("each: the mean, then the probes most like it")]
        name = probes.class_name(label)
        yield name, render_page(rows, title=f"Kinds of heatmaps: {name}", lines=lines, scale=scale)


def _kind(probes: ProbeSet, record: AuditRecord, kind: _Kind, asked: tuple[str, int], scale: ColorScale) -> Row:
    explainer, question = asked
    maps = heat(record.maps[explainer], kind.members, scale)[question]
    mean = maps.mean(axis=0)
    typical = np.argsort(((maps - mean) ** 2).sum(axis=(1, 2)), kind="stable")[:EXAMPLES]
    pixels = probes.pixels[kind.members].double().mean(dim=0).round().to(torch.uint8).numpy()
    cells = [Cell(pixels, "mean", mean, "muted")]
    for place in typical.tolist():
        index = kind.members[place]
        said = answer(probes, record, index, sure=False)
        cells.append(Cell(probes.pixels[index].numpy(), said, maps[place], tone(record, index)))
    words = [f"kind {kind.number}: {plural(len(kind.members), 'probe')}"]
    right = math.nan if record.correct is None else float(record.correct[kind.members].nanmean())
    if not math.isnan(right):
        words.append(f"{100 * right:.0f} % right")
    prefix = f"{explainer}/{record.questions[question]}/relevance_mass/"
    for key in record.per_probe:
        share = float(record.per_probe[key][kind.members].nanmean()) if key.startswith(prefix) else math.nan
        if not math.isnan(share):
            words.append(f"{100 * share:.0f} % of the heat in {key.removeprefix(prefix)}")
    return Row(cells, ", ".join(words), KIND, lines=2)
