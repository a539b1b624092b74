"""`write_html`: the page on which a person decides which checkpoint to ship."""

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from xai_callbacks.compare import Comparison, compare, quality, quality_key
from xai_callbacks.errors import AuditError, ConfigurationError, in_words, require_instance, require_integer
from xai_callbacks.files import write_whole
from xai_callbacks.gallery.words import confusion, plural
from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.report.cards import cards, stops_of, values_of
from xai_callbacks.report.curves import curve
from xai_callbacks.report.moved import moved
from xai_callbacks.report.pictures import QUALITY, TINY, legend, photo
from xai_callbacks.report.texts import (
    Brief,
    asides,
    difference_rows,
    findings,
    interval,
    judged,
    letter,
    metric_rows,
    metrics_of,
    model,
    number,
    straight,
    words_of,
)

EVIDENCE: Final = 4  # probes shown beside the verdict
REASONS: Final = 4  # pairs of the same answer for different reasons
FEWEST, MOST = 3, 6  # metrics beside the verdict
NAME: Final = 40  # characters of the name of a model
NAMELESS: Final = "the model"
FLIPS: Final = ("gained", "lost", "changed")


def write_html(
    given: Comparison | History | Mapping[str, History],
    path: str | os.PathLike[str],
    probes: ProbeSet,
    *,
    title: str = "",
    max_probes: int = 64,
) -> Path:
    """Write one HTML file that needs nothing else: of a run, or of models compared.

    It opens from disk, asks nothing of any network, and shows every name as text. Heatmaps are shown of the audits
    whose tensors are kept, of at most 20 over the run. 64 probes of 224 pixels with three questions at 20 audits take
    less than 15 MB; photos are WebP of quality 80.

    Args:
        given: A comparison; the history of a run; or several histories by name, which are compared, the first being the
            baseline.
        path: Of the file; written whole or not at all, an older one is replaced. Folders are made as needed.
        probes: The probes of the audits.
        title: Of the page; empty for one that says who is shown.
        max_probes: Most probes with a card: of models those that differ most, of a run evenly spaced ones. Metrics are
            of all.

    Returns the path. Raises:
        ConfigurationError: An argument is of a wrong type or out of range, or what is given cannot be compared.
        AuditError: There is no audit of these probes with its tensors, or the file cannot be written.
    """
    require_instance("probes", probes, ProbeSet, "a ProbeSet")
    require_instance("title", title, str, "text")
    require_integer("max_probes", max_probes, minimum=1)
    require_instance("path", path, (str, os.PathLike), "the path of a file")
    if not os.fspath(path) or os.path.isdir(path):
        got = f"{str(path)!r} is a folder" if os.fspath(path) else "it is empty"
        raise ConfigurationError(f"Expected `path` to be that of a file, but {got}. Name a file.")
    models, comparison = _understood(given)
    records = [_latest(name, history, probes) for name, history in models.items()]
    return _written(_rendered(_context(models, records, comparison, probes, title, max_probes)), Path(path))


def _understood(given: Any) -> tuple[dict[str, History], Any]:
    """Histories by name, and their comparison where there are several."""
    if isinstance(given, History):
        return {NAMELESS: given}, None
    if isinstance(given, Mapping) and all(isinstance(each, History) for each in given.values()) and given:
        if len(given) == 1:
            return dict(given), None
        given = compare(given)
    require_instance("given", given, Comparison, "a Comparison, a History, or histories by name")
    return dict(given.models), given


def _latest(name: str, history: History, probes: ProbeSet) -> AuditRecord:
    """The audit of a model that the page is about."""
    whose, record = "" if name == NAMELESS else f" of {name!r}", history.last
    if record is None:
        where = f" in {str(history.folder)!r}" if history.folder else ""
        raise AuditError(f"Expected a history{whose} with an audit, but there is none{where}. Audit the model first.")
    if record.thinned:
        raise AuditError(
            f"Expected audits{whose} with their heatmaps, but those of step {record.step} were dropped. "
            "Read the history from its folder, as in History('<log_dir>/audit/history')."
        )
    if len(record.names) != len(probes) or record.fingerprint not in ("", probes.fingerprint):
        raise AuditError(
            f"Expected audits{whose} of the probes {probes.fingerprint}, but the latest is of {record.fingerprint}. "
            "Give the probe set that was audited, such as ProbeSet.load('<log_dir>/audit/probes.safetensors')."
        )
    return record


def _context(
    models: Mapping[str, History],
    records: Sequence[AuditRecord],
    comparison: Comparison | None,
    probes: ProbeSet,
    title: str,
    max_probes: int,
) -> dict[str, Any]:
    """All that the template shows, as plain values."""
    brief = Brief(list(models), NAME)
    names = [brief(name) for name in models]
    rows = [round(place) for place in np.linspace(0, len(probes) - 1, min(max_probes, len(probes)))]
    if comparison is not None:
        rows = sorted(each.index for each in comparison.ranking()[:max_probes])
    stops = stops_of(list(models.values()))
    shown = cards(probes, rows, stops, names)
    place = {index: where for where, index in enumerate(rows)}
    first, (why, order, whose) = judged(records), _evidence(records, comparison, probes)
    keys = metrics_of(records, first)
    table = [] if comparison else metric_rows(next(iter(models.values())).without_tensors()[0], records[0], keys)
    others = [] if comparison is None else _others(comparison, first, records, place, probes)
    drawn = [each for key in keys if (each := curve(key, dict(zip(names, models.values(), strict=True)))) is not None]
    few = max(min(len(first), MOST), FEWEST)
    said = [model(where, *each) for where, each in enumerate(zip(names, records, strict=True))]
    data = shown["data"] | {"values": values_of(records, rows), **_disagreement(comparison, shown["asked"], rows)}
    in_full = brief.used | shown["classes_in_full"]
    return shown | {
        "names_in_full": in_full,
        "title": title or _titled(names, records[0]),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "models": said,
        "probes": plural(len(probes), "probe"),
        "fingerprint": probes.fingerprint,
        "verdict": [brief(each) for each in comparison.verdict]
        if comparison
        else [text for text, _ in said[0]["headline"]],
        "notes": [brief(each) for each in comparison.notes] if comparison else [*records[0].failed, *records[0].notes],
        "noise": comparison.noise if comparison else "",
        "tone": "" if comparison or not said[0]["headline"] else said[0]["headline"][0][1],
        "confusion": "" if comparison else confusion(probes, records[0]),
        "evidence_why": why,
        "evidence_whose": whose,
        "evidence_of": [place[index] for index in order if index in place][:EVIDENCE],
        "findings": findings(records),
        "first": first,
        "curves": drawn,
        "rows": table,
        "others": others,
        "numbers": (others[0]["rows"] if others else table)[:few],
        "by_model": [
            (key, words_of(records, key), [interval(each.metrics.get(key)) for each in records]) for key in keys[:few]
        ],
        "data": straight(data),
        "left_out": f"{len(rows)} of {plural(len(probes), 'probe')}" if len(rows) < len(probes) else "",
        "quality": QUALITY,
        "ratio": f"{probes.pixels.shape[2]} / {probes.pixels.shape[1]}",
        "size": probes.pixels.shape[1:3],
        "tiny": max(probes.pixels.shape[1:3]) <= TINY,
        "mean_photo": photo(np.rint(probes.pixels.numpy().mean(axis=0)).astype(np.uint8)),
        "legend": legend(shown["scale"]),
    }


def _titled(names: Sequence[str], record: AuditRecord) -> str:
    if len(names) > 2:
        return f"{names[0]} and {plural(len(names) - 1, 'other')}"
    nameless = f"Run {record.run[:8]}" if record.run else "A run without a name"
    return nameless if names[0] == NAMELESS else " against ".join(names)


def _evidence(
    records: Sequence[AuditRecord], comparison: Comparison | None, probes: ProbeSet
) -> tuple[str, list[int], list[int]]:
    """What is shown beside the verdict: in words, which probes first, and of which models.

    Probes of which the loudest alarm says most, with the best model that raises none; or else those about which models
    differ most, or a run is most surely wrong.
    """
    loud = [(each.value or 0, place, each) for place, record in enumerate(records) for each in record.findings
            if each.state in ("alarm", "watch") and each.about in record.per_probe]  # fmt: skip
    if loud:
        _, blamed, finding = max(loud, key=lambda each: each[0])
        values = records[blamed].per_probe[finding.about].nan_to_num(-math.inf)
        best = max(range(len(records)), key=lambda place: _soundness(records[place]))
        words = f"The {finding.state} in pictures: where {finding.about} is largest"
        return words, values.argsort(descending=True, stable=True).tolist(), sorted({blamed, best})
    record, everything = records[0], list(range(len(probes)))
    if comparison is not None:
        ranking = comparison.ranking()
        furthest = [*comparison.models].index(ranking[0].model)
        return "Where they differ most", [each.index for each in ranking], [0, furthest]
    if record.correct is None or record.confidences is None or not bool((record.correct < 1).any()):
        return "Some of the probes", everything, [0]
    right, sure = record.correct.nan_to_num(0.5).tolist(), record.confidences.nan_to_num(0).tolist()
    return "Where it is surely wrong", sorted(everything, key=lambda index: (right[index], -sure[index])), [0]


def _soundness(record: AuditRecord) -> tuple[bool, float]:
    """Orders models: those that nothing speaks against, then by how right they are."""
    key = quality_key([record])
    sound = not any(each.serious for each in record.findings)
    return sound, quality(record.metrics[key], key) if key else 0.0


def _disagreement(comparison: Comparison | None, asked: Sequence[Any], rows: Sequence[int]) -> dict[str, Any]:
    """How far each other model is from the baseline: in what it says, and in why by kind of heat."""
    others = [] if comparison is None else list(comparison.differences.values())

    def of(values: Tensor | None) -> list[float | None]:
        chosen = [math.nan] * len(rows) if values is None else values[list(rows)].tolist()
        return [round(each, 4) if math.isfinite(each) else None for each in chosen]

    return {
        "says": [of(each.says) for each in others],
        "why": [
            [of(each.agreements[kind.key].distance if kind.key in each.agreements else None) for kind in asked]
            for each in others
        ],
        "flips": [
            {name: [where for where, index in enumerate(rows) if index in getattr(each, name)] for name in FLIPS}
            for each in others
        ],
    }


def _others(
    comparison: Comparison,
    first: Sequence[str],
    records: Sequence[AuditRecord],
    place: Mapping[int, int],
    probes: ProbeSet,
) -> list[dict[str, Any]]:
    """What differs between each other model and the baseline."""

    def linked(indexes: Sequence[int], distance: Tensor | None = None) -> list[tuple[str, int | None]]:
        said = ["" if distance is None else f" ({number(float(distance[index]), 2)})" for index in indexes]
        return [(probes.names[index] + words, place.get(index)) for index, words in zip(indexes, said, strict=True)]

    return [
        {
            "place": where,
            "letter": letter(where),
            "rows": difference_rows(each.metrics, first, records[where]),
            "flips": {kind: linked(getattr(each, kind)) for kind in FLIPS},
            "of": each,
            "reasons": linked(each.reasons, each.distance),
            "moved": moved(comparison, name, probes),
            "pairs": [place[index] for index in each.reasons if index in place][:REASONS],
        }
        for where, (name, each) in enumerate(comparison.differences.items(), start=1)
    ]


def _rendered(context: Mapping[str, Any]) -> str:
    """The page; its policy lets no style and no script through but those of this file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("xai_callbacks.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=straight,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"asides": asides, "number": number}
    style, script = (environment.get_template(name).render(context) for name in ("style.css", "script.js"))
    return environment.get_template("page.html").render(
        context, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _written(text: str, path: Path) -> Path:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise AuditError(f"Expected `path` to be where a file can be written, but got {in_words(error)}") from error
    return path
