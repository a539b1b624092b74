"""The pages about probes: the worst of them, all of them, one of them, one of them over time."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.gallery import words
from xai_callbacks.gallery.heat import Pixels, doubts, first_answer, grey_line, heat
from xai_callbacks.gallery.words import answer, asked_of, tone, truth, when
from xai_callbacks.history import evenly_spaced
from xai_callbacks.metrics import Threshold, found_on
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, MapSet
from xai_callbacks.render import Cell, ColorScale, Line, Row, render_page

WORST: Final = 5
SHORT: Final = 4  # characters of an answer that leave room for "says"
MAX_FRAMES: Final = 8
STRIP_WIDTH: Final = 280
# Side of a tile by number of audits: few are drawn larger, so that the size of the file hardly grows with them.
STRIP_TILES: Final = (224, 168, 136, 104, 88, 80, 56, 56)
STRIP_QUESTIONS: Final = 2


def overview(probes: ProbeSet, record: AuditRecord, drawn: Sequence[int], scale: ColorScale) -> Pixels:
    """What goes wrong and why, at a glance: a landscape page of some 368 x 192 pixels with the worst drawn probes."""
    cells, asked = _cells(probes, record, _worst_first(record, drawn)[:WORST], scale, sure=False)
    about = Line(asked and f"{asked} Orange: for it, blue: against.", "muted", rows=1)
    grey = grey_line(_first_doubts(record))
    lines = [*words.headline(record), Line(words.confusion(probes, record), rows=1), grey if grey.text else about]
    lines = [line for line in lines if line.text][:3]
    title = " · ".join(filter(None, (when(record), _accuracy(record))))
    return render_page([Row(cells, size=64, lines=2)], title=title, lines=lines, scale=scale, compact=True)


def all_probes(probes: ProbeSet, record: AuditRecord, drawn: Sequence[int], scale: ColorScale) -> Pixels:
    """All drawn probes, those the model is most wrong about first, with the heat of the first question."""
    cells, asked = _cells(probes, record, _worst_first(record, drawn), scale)
    wrong, accuracy = sum(cell.tone == "wrong" for cell in cells), _accuracy(record)
    count = words.plural(record.metrics["accuracy"].valid if accuracy else len(record.names), "probe")
    shown = f"{wrong or 'none'} of the {len(drawn)} shown {'are' if wrong else 'is'} wrong"
    said = f"{accuracy} of {count}; {shown}" if accuracy else f"{len(drawn)} of {count}"
    lines = [Line(said), Line(words.confusion(probes, record)), *words.findings(record)]
    lines += [Line(sentence, "watch") for sentence in record.failed[:2]]
    lines.append(grey_line(_first_doubts(record)))
    row = Row(cells, asked, 112 if len(cells) <= 9 else 80, lines=4)
    return render_page([row], title=when(record), lines=lines, scale=scale)


def _cells(
    probes: ProbeSet, record: AuditRecord, order: Sequence[int], scale: ColorScale, *, sure: bool = True
) -> tuple[list[Cell], str]:
    """Probes with the heat of the first question, with what is said of them; and that question."""
    name = first_answer(record) or next(iter(record.maps), None)
    maps = [None] * len(order) if name is None else heat(record.maps[name], order, scale)[0]
    asked = "" if name is None or record.maps[name].about == "image" else record.headings[0]
    cells, grey = [], any(_first_doubts(record))
    for index, heatmap in zip(order, maps, strict=True):
        said, marked = answer(probes, record, index, sure=sure), tone(record, index)
        said = f"says {said}" if not sure and 0 < len(said) <= SHORT else said
        known = "" if marked == "right" else truth(probes, index)
        cells.append(Cell(probes.pixels[index].numpy(), f"{said}\n{known}", heatmap, marked, grey=grey))
    return cells, asked and f"heat: {'Why this answer?' if record.questions[0] == 'why' else asked}"


def _first_doubts(record: AuditRecord) -> list[str]:
    """What is wrong with the heat of the first question."""
    name = first_answer(record) or next(iter(record.maps), None)
    return [] if name is None else doubts(record, name)[:1]


def _accuracy(record: AuditRecord) -> str:
    accuracy = None if record.correct is None else record.metrics.get("accuracy")
    return "" if accuracy is None or math.isnan(accuracy.value) else f"accuracy {100 * accuracy.value:.0f} %"


def _worst_first(record: AuditRecord, drawn: Sequence[int]) -> list[int]:
    """Sure errors first, sure right answers last; of values the largest errors first."""

    def key(index: int) -> tuple[float, float]:
        if record.correct is None or record.predictions is None:
            return 0.0, 0.0
        if record.truth is not None and record.truth.is_floating_point():
            error = float((record.predictions[index] - record.truth[index]).abs().float().mean())
            return (-error if math.isfinite(error) else -math.inf), 0.0
        right = float(record.correct[index])
        sure = 0.0 if record.confidences is None else float(record.confidences[index])
        return (0.5 if math.isnan(right) else right), (sure if right == 1 else -sure)

    return sorted(drawn, key=key)


def panel(
    probes: ProbeSet, record: AuditRecord, index: int, scale: ColorScale, found: Threshold | None = None
) -> Pixels:
    """One probe: a row for each explainer, a tile for each question; a question that comes twice is drawn once.

    With `found`, the regions that each map finds are outlined on its tile.
    """
    image = probes.pixels[index].numpy()
    regions = {name: mask[index].numpy() for name, mask in probes.masks.items()}
    rows = []
    for name, given in record.maps.items():
        maps = heat(given, [index], scale)[:, 0]
        asked = [titles[index] for titles in record.titles] if given.about == "question" else [""]
        doubted, cells = doubts(record, name), list[Cell]()
        for title in dict.fromkeys(asked):
            row = asked.index(title)
            circled = {} if found is None else _found(given, row, index, image.shape[:2], found)
            words_below = f"{title}\n{doubted[row]}".strip()
            grey = bool(doubted[row])
            cells.append(Cell(image, words_below, maps[row], regions=regions | circled, grey=grey))
        unit = "(share of its strongest)" if given.units == "relative" else ""
        named = len(record.maps) > 1 or given.about == "image"
        rows.append(Row(cells, f"{name} {unit}" if named else unit, lines=8 if any(doubted) else 4))
    said, marked = answer(probes, record, index), tone(record, index)
    lines = [Line(when(record), "muted"), Line(f"says {said}" if said else "", marked)]
    lines += [] if marked == "right" else [Line(truth(probes, index))]
    return render_page(rows, title=probes.names[index], lines=lines, lead=Cell(image, regions=regions), scale=scale)


def _found(
    given: MapSet, question: int, index: int, size: tuple[int, int], threshold: Threshold
) -> dict[str, NDArray[np.bool_]]:
    """All regions that one map finds, as one mask `size` with its name."""
    peak = given.peaks[question] if given.peaks else 0.0
    masks = [each.mask.numpy() for each in found_on(given.heatmaps[question, index], size, threshold, peak=peak)]
    return {"found": np.any([np.zeros(size, bool), *masks], axis=0)}


def comparable_audits(audits: Sequence[AuditRecord], record: AuditRecord) -> list[AuditRecord]:
    """Up to eight audits with maps of the kind that a record has, evenly spaced, that record last; empty if none."""
    name = first_answer(record)
    if name is None:
        return []
    alike = [each for each in audits if name in each.maps and each.questions == record.questions]
    alike = [each for each in alike if each.maps[name].kind == record.maps[name].kind]
    return [alike[place] for place in evenly_spaced([each.step for each in alike], MAX_FRAMES)]


def filmstrip(probes: ProbeSet, audits: Sequence[AuditRecord], index: int, scale: ColorScale) -> Pixels:
    """One probe over audits, up to four side by side: the first two questions; every tile says what it answers."""
    name = first_answer(audits[-1]) or ""
    image, size = probes.pixels[index].numpy(), STRIP_TILES[len(audits) - 1]
    drawn = [(each, heat(each.maps[name], [index], scale)[:, 0]) for each in audits]
    questions, columns = _told_apart(audits, index), min(4, STRIP_WIDTH // size)
    rows = []
    for start in range(0, len(audits), columns):
        block = drawn[start : start + columns]
        rows.append(Row([_head(probes, audit, index, questions[0]) for audit, _ in block], size=size, lines=4))
        for question in questions:
            cells = [
                Cell(image, asked_of(audit, question, index), given[question], grey=bool(doubts(audit, name)[question]))
                for audit, given in block
            ]
            rows.append(Row(cells, size=size))
    grey = grey_line(doubts(audit, name)[question] for audit in audits for question in questions)
    lines = [Line(truth(probes, index)), Line(name if len(audits[-1].maps) > 1 else "", "muted"), grey]
    lead = Cell(image, width=64)
    return render_page(rows, title=probes.names[index], lines=lines, lead=lead, scale=scale, width=STRIP_WIDTH)


def _head(probes: ProbeSet, record: AuditRecord, index: int, asked: int) -> Cell:
    """What stands above a column; the answer only if the first question is not about it."""
    said = ["untrained" if record.untrained else f"epoch {record.epoch}", f"step {words.step_in_few(record.step)}"]
    about_it = False
    if record.facts is not None and record.predictions is not None and record.predictions.ndim == 1:
        prediction = record.predictions[index]
        about_it = prediction.is_floating_point() or bool(record.facts[asked, index] == prediction)
    if not about_it:
        said.append(f"says {answer(probes, record, index, sure=False)}")
    return Cell(None, "\n".join(said), tone=tone(record, index))


def _told_apart(audits: Sequence[AuditRecord], index: int) -> list[int]:
    """The first questions that were not the same at all audits, that about the label first."""
    questions = audits[-1].questions
    order = sorted(range(len(questions)), key=lambda place: questions[place] != "why_label")
    first = {tuple(each.titles[place][index] for each in audits): place for place in reversed(order)}
    return sorted(first.values(), key=order.index)[:STRIP_QUESTIONS]
