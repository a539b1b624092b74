"""`xai-audit watch`: a live table of a running history."""

import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat

from xai_callbacks.cli.output import OK, console, error_console, estimate, say, shown, table, write_json
from xai_callbacks.errors import XAICallbacksError

if TYPE_CHECKING:
    from rich.console import Group

    from xai_callbacks.history import History

_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 24  # audits in a sparkline


def watch_arguments(parser: ArgumentParser) -> None:
    """Add the options of `watch`."""
    parser.add_argument("run", type=str, metavar="RUN", help="Folder of a run, or its history.")
    parser.add_argument("--every", type=PositiveFloat, default=2.0, help="Seconds between two looks.")
    parser.add_argument("--once", action="store_true", help="Look once.")


def watch(args: Any) -> int:
    """Follow a run while it trains: newest metrics with their course, findings. Ends on Ctrl-C.

    In a pipe each new audit is printed below the one before; --json prints one look.

    Examples:
      xai-audit watch lightning_logs/version_0
      xai-audit watch runs/demo/strength-0.95 --once
    """
    from rich.live import Live

    told: set[str] = set()
    # A single look must be at the latest audit; of a run that goes on there will be later ones.
    out, history = console(), _history(args.run, told, latest=args.once or args.json)
    if args.json:
        record = history[-1]
        write_json({name: getattr(record, name) for name in ("step", "epoch", "metrics", "findings", "failed")})
        return OK
    seen, follows = 0, out.is_terminal and not args.once
    if not follows:
        out.print(_page(history))
    with Live(_page(history), console=out, auto_refresh=False) if follows else nullcontext() as live:
        while not args.once:
            time.sleep(args.every)
            before, seen = seen, _changed(history)
            if before != seen and (newer := _newer(args.run, history, told)) is not history:
                history = newer
                out.print(_page(history)) if live is None else live.update(_page(history), refresh=True)
    return OK


def _history(path: str, told: set[str], *, latest: bool = False) -> "History":
    """The history below a path that was written to last; says of each audit that cannot be read once.

    With `latest` that is an error for the latest audit.
    """
    from xai_callbacks.compare import read_models

    models = read_models([path], latest=latest).values()
    _warn((sentence for history in models for sentence in history.unreadable.values()), told)
    return max(models, key=lambda history: history[-1].time)


def _newer(path: str, history: "History", told: set[str]) -> "History":
    """A history that was written to later; the same where there is none, or nothing can be read for now."""
    try:
        found = _history(path, told)
    except XAICallbacksError as error:
        _warn([str(error)], told)
        return history
    return found if found[-1].time > history[-1].time else history


def _warn(sentences: Iterable[str], told: set[str]) -> None:
    for sentence in sentences:
        if sentence not in told:
            told.add(sentence)
            say(error_console(), f"warning: {sentence}", "yellow")


def _changed(history: "History") -> int:
    """When a record was last written, in ns: reading all of them takes longer than asking; 0 if that is unknown."""
    with suppress(OSError):  # it was deleted
        return 0 if history.folder is None else history.folder.stat().st_mtime_ns
    return 0


def _page(history: "History") -> "Group":
    from rich.console import Group
    from rich.text import Text

    record = history[-1]
    when = "before training" if record.untrained else f"epoch {record.epoch}"
    rows = []
    for key, each in record.metrics.items():
        course = [found.value for _, found in history.estimates(key)]
        rows.append((key, estimate(each), sparkline(course)))
    title = f"Audit {len(history)}: {when}, step {record.step}"
    grid = table(title, "metric", "value", "course", rows=rows)
    findings = [Text(shown(finding.sentence)) for finding in record.findings]
    return Group(*findings, grid)  # what does not fit on the screen is cut below


def sparkline(values: list[float]) -> str:
    """One character a value, from the lowest to the highest; a space for NaN. The latest 24."""
    values = values[-_POINTS:]
    finite = [value for value in values if abs(value) < float("inf")]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    reach = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / reach * 7)] if value in finite else " " for value in values)
