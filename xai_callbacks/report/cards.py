"""Cards of probes: answers and heat of each model at each stop of the slider."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.gallery.heat import color_scale, doubts, heat
from xai_callbacks.gallery.words import answer, tone, truth, when
from xai_callbacks.history import History, evenly_spaced
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.report.pictures import PLACES, Layers, enlarged, layer_size, photo
from xai_callbacks.report.texts import Brief, epoch, letter

CLASS_NAME: Final = 24  # characters of the name of a class in the caption of a picture
STOPS: Final = 20  # of the slider at most

Stop = Sequence[AuditRecord]  # what is shown of each model
Fields = Sequence[NDArray[np.float32] | None]  # heat (N, h, w) of each kind


class Asked(NamedTuple):
    """One kind of heat: what an explainer says to a question, or of the image whatever is asked."""

    explainer: str
    question: int
    key: str
    words: str


def stops_of(histories: Sequence[History]) -> list[Stop]:
    """The audits whose tensors are kept, side by side: of each model the latest up to an epoch, or else its first."""
    audits = []
    for history in histories:
        last = history[-1]
        alike = [each for each in history.comparable(last) if not each.thinned and each.questions == last.questions]
        audits.append(alike)

    def position(record: AuditRecord) -> tuple[int, bool, int]:
        return record.epoch, not record.untrained, record.step if len(audits) == 1 else 0

    stops: list[Stop] = []
    for place in sorted({position(each) for series in audits for each in series}):
        shown = [max([each for each in series if position(each) <= place] or series[:1], key=position)
                 for series in audits]  # fmt: skip
        if not stops or any(new is not old for new, old in zip(shown, stops[-1], strict=True)):
            stops.append(shown)
    return [stops[place] for place in evenly_spaced(range(len(stops)), STOPS)]


def asked_in(records: Stop) -> list[Asked]:
    """All kinds of heat of the latest audits, those of the baseline first."""
    found: dict[str, Asked] = {}
    several = len({name for record in records for name in record.maps}) > 1
    for record in records:
        for name, given in record.maps.items():
            about_image = given.about == "image"
            for place, question in enumerate([""] if about_image else record.questions):
                words = "whatever is asked" if about_image else record.headings[place]
                key = name if about_image else f"{name}/{question}"
                found.setdefault(key, Asked(name, place, key, f"{words} · {name}" if several else words))
    return list(found.values())


def cards(probes: ProbeSet, rows: Sequence[int], stops: Sequence[Stop], names: Sequence[str]) -> dict[str, Any]:
    """What the page says and shows of some probes: `data` for its script, and the `cards` as they first appear."""
    asked, layers = asked_in(stops[-1]), Layers(color_scale(probes))
    count = len(rows) * len(stops) * len(asked) * (2 * len(names) - 1)
    heats = _heats(rows, stops, asked, layers, layer_size(count, probes.pixels.shape[1], probes.pixels.shape[2]))
    groups = stops[-1][0].groups
    brief = Brief(probes.class_names or (), CLASS_NAME)
    told = [_told(probes, rows, stop, asked, brief) for stop in stops]
    data = {
        "letters": [letter(place) for place in range(len(names))],
        "names": list(names),
        "asked": [each.words for each in asked],
        "stops": [_stop_words(stop) for stop in stops],
        "placeWords": PLACES,
        "images": layers.images,
        "places": layers.places,
        "cards": [{"heat": heats[place], "told": [each[place] for each in told]} for place in range(len(rows))],
    }
    return {
        "data": data,
        "asked": asked,
        "scale": layers.scale,
        "classes_in_full": brief.used,
        "cards": [_card(probes, data, place, index, groups) for place, index in enumerate(rows)],
    }


def _heats(
    rows: Sequence[int], stops: Sequence[Stop], asked: Sequence[Asked], layers: Layers, size: tuple[int, int]
) -> list[list[list[list[int]]]]:
    """Places among layers by probe, stop, model and then differences from the first model, and kind of heat."""
    heats: list[list[list[list[int]]]] = [[] for _ in rows]
    drawn: dict[int, tuple[AuditRecord, Fields, list[list[int]]]] = {}
    for stop in stops:
        for place, record in enumerate(stop):
            if place not in drawn or drawn[place][0] is not record:
                fields = _fields(record, rows, asked, layers, size)
                drawn[place] = record, fields, _added(fields, len(rows), layers)
        baseline = drawn[0][1]
        found = [drawn[place][2] for place in range(len(stop))]
        for place in range(1, len(stop)):
            both = zip(drawn[place][1], baseline, strict=True)
            found.append(_added([None if a is None or b is None else a - b for a, b in both], len(rows), layers))
        for row, each in enumerate(heats):
            each.append([[kind[row] for kind in kinds] for kinds in found])
    return heats


def _fields(
    record: AuditRecord, rows: Sequence[int], asked: Sequence[Asked], layers: Layers, size: tuple[int, int]
) -> Fields:
    maps = {name: enlarged(heat(given, rows, layers.scale), size) for name, given in record.maps.items()}
    return [maps[each.explainer][each.question] if each.explainer in maps else None for each in asked]


def _added(fields: Fields, count: int, layers: Layers) -> list[list[int]]:
    """Places of each kind, of each probe; the first, which is empty, where there is no heat of a kind."""
    none: list[list[int]] = [] if fields else [[0] * count]
    return none + [[0] * count if kind is None else [layers.add(each) for each in kind] for kind in fields]


def _told(
    probes: ProbeSet, rows: Sequence[int], stop: Stop, asked: Sequence[Asked], brief: Brief
) -> list[list[dict[str, Any]]]:
    """What each model answers to each probe, and what is asked of it."""
    doubted = [{name: doubts(record, name) for name in record.maps} for record in stop]
    return [
        [
            {
                "says": brief(answer(probes, record, index)).replace(" %", "\u00a0%"),
                "tone": tone(record, index),
                "when": epoch(record),
                "asked": [brief(_title(record, each, index)) for each in asked],
                "doubt": [doubted[place].get(each.explainer, {each.question: ""})[each.question] for each in asked],
            }
            for place, record in enumerate(stop)
        ]
        for index in rows
    ]


def _title(record: AuditRecord, asked: Asked, index: int) -> str:
    if asked.explainer not in record.maps or record.maps[asked.explainer].about == "image":
        return asked.words
    return record.titles[asked.question][index]


def _stop_words(stop: Stop) -> str:
    latest = max(stop, key=lambda record: (record.epoch, not record.untrained))
    return when(latest) if len(stop) == 1 else epoch(latest)


def _card(probes: ProbeSet, data: dict[str, Any], place: int, index: int, groups: Sequence[str]) -> dict[str, Any]:
    """A card at the last stop, with the first kind of heat."""
    told, found = data["cards"][place]["told"][-1], data["cards"][place]["heat"][-1]
    return {
        "place": place,
        "name": probes.names[index],
        "truth": truth(probes, index),
        "class": truth(probes, index).removeprefix("is ") if probes.task.classifies else "",
        "group": groups[index] if groups else "",
        "photo": photo(probes.pixels[index].numpy()),
        "told": told,
        "images": [data["images"][each[0]] for each in found],
        "places": [PLACES[data["places"][each[0]]] for each in found],
    }


def values_of(records: Stop, rows: Sequence[int]) -> dict[str, list[list[float | None]]]:
    """What probes can be sorted by: metrics and scores by key, of each model; nothing that only names."""
    found = {}
    for key in dict.fromkeys(key for record in records for key in [*record.per_probe, *record.scores]):
        given = [record.per_probe.get(key, record.scores.get(key)) for record in records]
        declared = [each.unit for record in records if (each := record.key(key)) is not None]
        if "label" not in declared:
            found[key] = [[None if each is None else _plain(float(each[row])) for row in rows] for each in given]
    return found


def _plain(value: float) -> float | None:
    """A number as JSON can hold it, with four digits."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
