"""Pages about scores, cues and kinds of heatmaps."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xai_callbacks.gallery.heat import Pixels, doubts, first_answer, grey_line, heat
from xai_callbacks.gallery.words import answer, plural, tone, truth, when
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.render import Cell, ColorScale, Line, Row, field_chart, line_chart, render_page

WIDTH: Final = 352
THUMBNAIL: Final = 64
CHART: Final = (64, 112)
WORDS: Final = WIDTH - THUMBNAIL - CHART[1] - 16
RANKED: Final = 5
USED: Final = 0.03  # effect above which a cue is drawn as used where no rule says so
CLASSES: Final = 6  # classes drawn: those with more than one kind of heatmap first
EXAMPLES: Final = 3

QUADRANTS: Final = {  # used, looked at: in words
    (True, True): "used and looked at", (True, False): "used, not looked at",
    (False, True): "looked at, not used", (False, False): "neither",
}  # fmt: skip


def most_novel(probes: ProbeSet, audits: Sequence[AuditRecord], name: str, scale: ColorScale) -> Pixels:
    """The probes that one score finds most novel, with the share of probes less novel at each of the audits."""
    record = audits[-1]
    scores = record.scores[name]
    past = [each for each in audits if name in each.scores]
    ranks = [share_below(each.scores[name]) for each in past]
    order = scores.argsort(descending=True, stable=True)[:RANKED].tolist()
    rows = []
    for place, index in enumerate(order, start=1):
        said = answer(probes, record, index)
        words = [f"{place}. {probes.names[index]}", f"score {float(scores[index]):.4g}"]
        words += [f"says {said}" if said else "", truth(probes, index)]
        cells = [
            Cell(probes.pixels[index].numpy()),
            Cell(None, "\n".join(words), width=WORDS),
            Cell(line_chart([float(rank[index]) for rank in ranks], CHART), width=CHART[1]),
        ]
        rows.append(Row(cells, size=THUMBNAIL, lines=5))
    lines = [
        Line(f"larger = more novel; {len(order)} of {plural(len(scores), 'probe')}"),
        Line(when(record), "muted"),
        Line(f"charts: share of probes less novel, step {past[0].step} to {record.step}", "muted"),
    ]
    return render_page(rows, title=f"Most novel by {name}", lines=lines, scale=scale)


def share_below(values: Tensor) -> NDArray[np.float64]:
    """Share of the other values that are smaller, ties counting half, `(N,)` in [0, 1]."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values.numpy()) - 1) / max(1, len(values) - 1))


def quadrants(probes: ProbeSet, record: AuditRecord, scale: ColorScale) -> Iterator[tuple[str, Pixels]]:
    """For each cue that the probes carry in a region: where each probe lies between looked at and used."""
    asked = f"{first_answer(record)}/{next(iter(record.questions), '')}"
    for cue, region in record.cue_regions.items():
        key, uses = f"{asked}/relevance_mass/{region}", [f"cue/{cue}/pull", f"cue/{cue}/effect"]
        use = next((each for each in uses if each in record.per_probe), None)
        if key not in record.per_probe or use is None:
            continue
        looked, used = record.per_probe[key].clamp(0, 1), record.per_probe[use]
        known = (looked + used).isfinite().nonzero()[:, 0].tolist()
        if known:
            points = {row: (float(looked[row]), float(used[row])) for row in known}
            chances = record.chances.get(key, torch.zeros(len(used)))[known].nanmean()
            about = [each.threshold for each in record.findings if each.about == use]
            threshold = next((each for each in about if each is not None), USED)
            rows = _quadrants(probes, record, points, float(chances.clamp(0, 1).nan_to_num(0)), threshold)
            said = f"{len(points)} of {plural(len(probes), 'probe')}; only use is alarming"
            lines = [Line(when(record), "muted"), Line(said), grey_line(doubts(record, asked.partition("/")[0])[:1])]
            yield cue, render_page(rows, title=f"Cue {cue}: looked at or used?", lines=lines, scale=scale)


def _quadrants(
    probes: ProbeSet, record: AuditRecord, points: dict[int, tuple[float, float]], chance: float, threshold: float
) -> list[Row]:
    chart = field_chart([*points.values()], chance=chance, threshold=threshold, size=(300, WIDTH), type_size=15)
    rows = [Row([Cell(chart)], size=WIDTH)]
    for quadrant, words in QUADRANTS.items():
        inside = [row for row, (looked, used) in points.items() if (used > threshold, looked > chance) == quadrant]
        furthest = sorted(inside, key=lambda row: -abs(points[row][1]) - points[row][0])[: WIDTH // THUMBNAIL]
        cells = [Cell(probes.pixels[row].numpy(), tone=tone(record, row)) for row in furthest]
        rows.append(Row(cells, f"{words}: {len(inside)} ({len(inside) / len(points):.0%})", THUMBNAIL))
    return rows


def clusters(probes: ProbeSet, record: AuditRecord, scale: ColorScale) -> Iterator[tuple[str, Pixels]]:
    """For some classes, those with more kinds of heatmaps first: what each kind looks like."""
    numbers, explainer = record.per_probe.get("cluster/number"), first_answer(record)
    classes = record.predictions if record.truth is None else record.truth
    if numbers is None or explainer is None or classes is None or classes.ndim != 1:
        return
    kinds: dict[int, dict[int, list[int]]] = {}
    for index in numbers.isfinite().nonzero()[:, 0].tolist():
        kinds.setdefault(int(classes[index]), {}).setdefault(int(numbers[index]), []).append(index)
    for label in sorted(kinds, key=lambda each: (-len(kinds[each]), each))[:CLASSES]:
        rows = [_kind(probes, record, explainer, kind, scale) for kind in sorted(kinds[label].items())]
        lines = [Line(when(record), "muted"), Line("each: the mean, then the probes most like it")]
        lines.append(grey_line([doubts(record, explainer)[_clustered(record)]]))
        name = probes.class_name(label)
        yield name, render_page(rows, title=f"Kinds of heatmaps: {name}", lines=lines, scale=scale)


def _clustered(record: AuditRecord) -> int:
    """The question whose heatmaps were clustered."""
    return record.questions.index("why_label") if "why_label" in record.questions else 0


def _kind(probes: ProbeSet, record: AuditRecord, explainer: str, kind: tuple[int, list[int]], scale: ColorScale) -> Row:
    """The mean of probes whose heatmaps look alike, and those most like it."""
    number, members = kind
    question = _clustered(record)
    grey = bool(doubts(record, explainer)[question])
    maps = heat(record.maps[explainer], members, scale)[question]
    mean = maps.mean(axis=0)
    typical = np.argsort(((maps - mean) ** 2).sum(axis=(1, 2)), kind="stable")[:EXAMPLES]
    pixels = probes.pixels[members].double().mean(dim=0).round().to(torch.uint8).numpy()
    cells = [Cell(pixels, "mean", mean, "muted", grey=grey)]
    for place in typical.tolist():
        index = members[place]
        said = answer(probes, record, index, sure=False)
        cells.append(Cell(probes.pixels[index].numpy(), said, maps[place], tone(record, index), grey=grey))
    prefix = f"{explainer}/{record.questions[question]}/relevance_mass/"
    shares = [] if record.correct is None else [("right", record.correct)]
    for key, each in record.per_probe.items():
        if key.startswith(prefix):
            shares.append((f"of the heat in {key.removeprefix(prefix)}", each))
    known = [(noun, float(each[members].nanmean())) for noun, each in shares]
    words = [f"{100 * share:.0f} % {noun}" for noun, share in known if not math.isnan(share)]
    return Row(cells, ", ".join([f"kind {number}: {plural(len(members), 'probe')}", *words]), 80, lines=2)
