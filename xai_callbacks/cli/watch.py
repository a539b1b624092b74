"""`xai-audit watch`: a live table of a running history."""

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat

from xai_callbacks.cli.named import models_at
from xai_callbacks.cli.output import OK, console, estimate, shown, table, write_json

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

    out, history = console(), _history(args.run)
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
            if before != seen and (newer := _history(args.run))[-1].time > history[-1].time:
                history = newer
                out.print(_page(history)) if live is None else live.update(_page(history), refresh=True)
    return OK


def _history(path: str) -> "History":
    """The history below a path that was written to last."""
    return max(models_at([path]).values(), key=lambda history: history[-1].time)


def _changed(history: "History") -> int:
    """When a record was last written, in ns: reading all of them takes longer than asking."""
    return 0 if history.folder is None else history.folder.stat().st_mtime_ns


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
