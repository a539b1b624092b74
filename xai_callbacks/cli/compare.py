"""`xai-audit compare` and `xai-audit report`."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from xai_callbacks.cli.named import models_at
from xai_callbacks.cli.output import OK, console, estimate, number, say, shown, table, write_json
from xai_callbacks.errors import ConfigurationError, first_of

if TYPE_CHECKING:
    from rich.table import Table

    from xai_callbacks.compare import Comparison, Difference
    from xai_callbacks.history import History

_PATHS = "Runs, histories, records, or folders of audited checkpoints, which are read in alphabetical order."
_BASELINE = "Name of the model that the others are held against; by default the first."
_FLIPS = {"gained": "wrong before, right now", "lost": "right before, wrong now", "changed": "another wrong answer"}
_BEYOND = {True: "beyond noise", False: "within noise", None: "cannot tell"}
_MOST_ROWS, _MOST_NAMES = 12, 5
_ALIKE = 0.005  # smaller distances of heatmaps would be shown as 0.00


def compare_arguments(parser: ArgumentParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument("paths", nargs="+", type=str, metavar="PATH", help=_PATHS)
    parser.add_argument("--baseline", type=str, help=_BASELINE)
    parser.add_argument("--seeds", nargs="+", type=str, default=[], help="Runs of one training with other seeds.")
    parser.add_argument("--all", action="store_true", help="Show all metrics.")


def compare(args: Any) -> int:
    """Compare models on the same probes: which one to ship and why, in metrics, answers and heatmaps.

    What is beyond noise is told by a sign-flip test over the probes, corrected for the number of metrics; with --seeds,
    by what runs of one training differ by as well.

    Examples:
      xai-audit compare runs/demo/strength-0.1 runs/demo/strength-0.95
      xai-audit compare audits --baseline before --json
    """
    from xai_callbacks.compare import compare as compared

    found = compared(_models(args), seeds=_seeds(args))
    if args.json:
        write_json(found.as_dict())
        return OK
    out = console()
    for place, sentence in enumerate(found.verdict):
        say(out, sentence, "" if place else "bold")
    for name, difference in found.differences.items():
        out.print(_table(found, name, difference, _MOST_ROWS if not args.all else len(difference.metrics)))
        for sentence in _sentences(found, name, difference):
            say(out, sentence)
    for note in found.notes:
        say(out, note, "dim")
    return OK


def report_arguments(parser: ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("paths", nargs="+", type=str, metavar="PATH", help=_PATHS)
    parser.add_argument("--baseline", type=str, help=_BASELINE)
    parser.add_argument("--seeds", nargs="+", type=str, default=[], help="As of compare.")
    parser.add_argument("--out", type=str, default="report.html", help="File to write.")
    parser.add_argument("--probes", type=str, help="File of the probe set; by default the one beside the histories.")
    parser.add_argument("--title", type=str, default="", help="Title of the page.")
    parser.add_argument("--open", action="store_true", help="Open it in the browser.")


def report(args: Any) -> int:
    """Write one self-contained HTML page about a model, or about several side by side.

    Examples:
      xai-audit report runs/demo/strength-0.1 runs/demo/strength-0.95 --out report.html --open
    """
    from xai_callbacks.compare import compare as compared
    from xai_callbacks.compare import find_probes
    from xai_callbacks.probes import ProbeSet
    from xai_callbacks.report import write_html

    models = _models(args)
    probes = args.probes or find_probes(args.paths)
    if probes is None:
        raise ConfigurationError("Expected probes.safetensors beside the histories, but found none. Pass --probes.")
    seeds = _seeds(args)
    if seeds and len(models) == 1:
        raise ConfigurationError("Expected no `seeds`, as one model is compared with none. Leave them out, or add one.")
    given = models if len(models) == 1 else compared(models, seeds=seeds)
    path = write_html(given, args.out, ProbeSet.load(probes), title=args.title)
    if args.json:
        write_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        say(console(), f"The report is in {path}.")
    if args.open:
        webbrowser.open(Path(path).absolute().as_uri())
    return OK


def _models(args: Any) -> "dict[str, History]":
    """Histories by name, the baseline first."""
    models = models_at(args.paths)
    if args.baseline is None:
        return models
    if args.baseline not in models:
        names = ", ".join(map(repr, models))
        raise ConfigurationError(f"Expected `baseline` to be the name of a model, {names}, but got {args.baseline!r}.")
    return {args.baseline: models[args.baseline], **models}


def _seeds(args: Any) -> "list[History]":
    try:
        return list(models_at(args.seeds).values()) if args.seeds else []
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("`paths`", "`seeds`")) from error


def _table(found: "Comparison", name: str, difference: "Difference", most: int) -> "Table":
    """Metrics of a model beside those of the baseline: how often it is right, then the most certain differences."""
    from xai_callbacks.compare import quality_key

    more = len(difference.metrics) - most
    left_out = f" {more} more metrics with --all." if more > 0 else ""
    first = quality_key([found.record(name)])
    rows: list[tuple[object, ...]] = [
        (each.key, number(each.a.value), number(each.b.value), estimate(each.difference), _BEYOND[each.beyond])
        for each in sorted(difference.metrics, key=lambda each: each.key != first)[:most]
    ]
    grid = table(f"{name} against {found.baseline}", "metric", found.baseline, name, "difference", "", rows=rows)
    grid.caption = shown(f"95 % intervals over probes; noise is told by {found.noise}.{left_out}")
    return grid


def _sentences(found: "Comparison", name: str, difference: "Difference") -> list[str]:
    """Answers that changed, reasons that differ, heatmaps and layers that agree."""
    names = found.record(name).names
    told = [_listed(words, [names[place] for place in getattr(difference, kind)]) for kind, words in _FLIPS.items()]
    apart = {place: float(difference.distance[place]) for place in difference.reasons}
    reasons = [f"{names[place]} ({number(distance)})" for place, distance in apart.items() if distance >= _ALIKE]
    told.append(_listed("same answer for other reasons, by distance of heatmaps (1 is unrelated)", reasons))
    for key, each in difference.agreements.items():
        asked = each.distance[each.same & ~each.distance.isnan()]
        told.append(f"heatmaps of {key}: distance {number(float(asked.mean()))} on {len(asked)} probes")
    told += [f"CKA of {layer}: {number(value)}" for layer, value in difference.cka.items()]
    return [sentence for sentence in told if sentence]


def _listed(words: str, names: Sequence[str]) -> str:
    """The first names and how many there are; empty for none."""
    return f"{words}: {first_of(names, _MOST_NAMES)}" if names else ""
