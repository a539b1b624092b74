"""What attaching an explainer does to your training.

The same Lightning training is run with nothing attached, with nothing again (the control), with `AuditCallback`, and
with pytorch-grad-cam, captum, torch-cam and shap called from a plain callback as their documentation shows. After each
run weights, buffers, optimizer state, the user's logged metrics, the loss curve, random streams, train/eval flags,
hooks, attributes and `.grad` are compared with the first run. Equal means equal: `torch.equal`, no tolerance anywhere.

    python scripts/bench_interference.py --json docs/results/interference.json

Takes a few minutes on one CPU thread; the other libraries come with `pip install .[bench]`, and those that are absent
are listed as not installed. Exit status: 0, 1 if `AuditCallback` changed anything, 3 if the control differs (then
this machine does not repeat a training exactly, and no row would mean anything).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

from _interference_tools import OURS, TOOLS, Tool
from _provenance import provenance, write_json
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from xai_callbacks.doctor.comparing import Disturbance, compare
from xai_callbacks.doctor.digits import load_digits
from xai_callbacks.doctor.training import SCENARIOS, Run, Scenario, train

NOT_REPRODUCIBLE = 3
CONTROL = TOOLS[0]

LEGEND = (
    "identical: all that was compared is equal. traces left: the same model was trained, but random streams, .grad, "
    "flags or hooks differ. changed: another model was trained. crashed: training did not finish. raised: no heatmaps."
)

# What a user keeps of a training: a difference here means that another model was trained, or cannot be loaded.
TRAINING = frozenset({"parameters", "buffers", "optimizer", "metrics", "losses", "state_dict"})


@dataclass(frozen=True)
class Row:
    """One tool in one scenario; `run` is None if the tool is not installed.

    Deliveries are calls of a plain callback that returned; of one that logs by itself, the longest series it added.
    """

    tool: Tool
    scenario: Scenario
    run: Run | None = None
    differences: tuple[Disturbance, ...] = ()
    deliveries: int = 0

    @property
    def idle(self) -> bool:
        """Whether something was attached and returned nothing: then "identical" would say little."""
        return self.run is not None and self.tool.attach is not None and self.deliveries == 0

    @property
    def training_identical(self) -> bool:
        """Whether the user ends up with the same model, optimizer state, metrics and loss curve."""
        return self.run is not None and not self.run.crash and not any(d.what in TRAINING for d in self.differences)

    @property
    def identical(self) -> bool:
        """Whether the tool did its work and nothing at all differs."""
        return self.run is not None and not self.sentences()

    @property
    def outcome(self) -> str:
        """The verdict in a few words."""
        if self.run is None:
            return "not installed"
        if self.identical:
            return "identical"
        if self.run.crash:
            return "crashed"
        if self.idle and not self.run.errors and self.training_identical:
            return "did nothing"
        result = "changed" if not self.training_identical else "traces left" if self.differences else "same"
        return f"raised, {result}" if self.run.errors else result

    def sentences(self) -> list[str]:
        """All that differs, most important first."""
        if self.run is None:
            return ["not installed"]
        if self.run.crash:
            steps = len(self.run.snapshot.losses)
            found = [f"training crashed after {steps} steps: {self.run.crash}"]
        else:
            found = ["returned nothing"] if self.idle and not self.run.errors else []
        found += [f"raised: {error}" for error in dict.fromkeys(self.run.errors)]
        return found + [difference.words for difference in self.differences]


def measure(tool: Tool, scenario: Scenario, reference: Run) -> Row:
    """Train once with the tool attached and compare with the reference run."""
    if not tool.installed():
        return Row(tool, scenario)
    run = train(scenario, None if tool.attach is None else partial(tool.attach, load_digits(), scenario.hook))
    added = (len(series) for key, series in run.snapshot.metrics.items() if key not in reference.logged)
    differences = compare(reference.snapshot, run.snapshot, finished=run.crash is None)
    return Row(tool, scenario, run, differences, max(added, default=0) if run.calls is None else run.calls)


def run_scenario(scenario: Scenario, tools: Sequence[Tool], console: Console) -> list[Row]:
    """Reference run, control, every tool whose hook fits, and the control once more.

    A tool may leave something in the process itself (a patched function, a global switch): the last control shows it.
    """
    console.print(f"[bold]{scenario.name}[/]: {scenario.title}")
    reference = train(scenario)
    rows = [measure(CONTROL, scenario, reference)]
    if rows[0].identical:
        rows += [measure(tool, scenario, reference) for tool in tools if scenario.hook in tool.hooks]
        again = measure(CONTROL, scenario, reference)
        rows += [] if again.identical else [again]
    for row in rows:
        console.print(f"  {row.tool.title}: [bold {style_of(row)}]{row.outcome}[/]", highlight=False)
        details = ", ".join(shorten(sentence, 110, placeholder=" ...") for sentence in row.sentences())
        if details:
            console.print(Padding(escape(details), (0, 0, 0, 6)), style="dim", highlight=False)
    return rows


def style_of(row: Row) -> str:
    """Colour of an outcome."""
    return "green" if row.identical else "yellow" if row.training_identical or row.run is None else "red"


def table_of(rows: Sequence[Row]) -> Table:
    """Tools down, scenarios across, outcomes in the cells."""
    table = Table(title="What attaching it does to your training", title_style="bold", caption=LEGEND)
    table.add_column("attached", width=27)
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    for scenario in scenarios:
        table.add_column(scenario.name, width=15)
    for tool in dict.fromkeys(row.tool for row in rows):
        cells = {row.scenario: f"[{style_of(row)}]{row.outcome}[/]" for row in rows if row.tool == tool}
        table.add_row(tool.title, *(cells.get(scenario, "") for scenario in scenarios))
    return table


def as_json(rows: Sequence[Row], seconds: float) -> dict[str, object]:
    """The table as plain data, with all that is needed to repeat it."""
    facts = provenance("pytorch-lightning", "torchmetrics", "numpy")
    for row in rows:
        facts["versions"] |= row.tool.versions()
    return {
        "rows": [
            {
                "tool": row.tool.title,
                "scenario": row.scenario.name,
                "identical": row.identical,
                "training_identical": row.training_identical,
                "outcome": row.outcome,
                "differences": row.sentences(),
                "deliveries": row.deliveries,
                "seconds": round(row.run.seconds, 2) if row.run is not None else 0.0,
                "versions": row.tool.versions(),
            }
            for row in rows
        ],
        "scenarios": {scenario.name: scenario.title for scenario in SCENARIOS},
        "seed": 0,
        "seconds": round(seconds, 1),
        **facts,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tools", nargs="+", choices=[tool.key for tool in TOOLS], metavar="TOOL", help="only these: %(choices)s"
    )
    parser.add_argument(
        "--scenarios", nargs="+", choices=[s.name for s in SCENARIOS], metavar="NAME", help="only these: %(choices)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, return the exit status."""
    options = parse(arguments)
    logging.disable(logging.WARNING)
    console = Console(width=100)
    started = time.perf_counter()
    tools = [tool for tool in TOOLS[1:] if options.tools is None or tool.key in options.tools]
    rows: list[Row] = []
    for scenario in SCENARIOS:
        if options.scenarios is None or scenario.name in options.scenarios:
            rows += run_scenario(scenario, tools, console)
    console.print(table_of(rows))
    if options.json is not None:
        write_json(options.json, as_json(rows, time.perf_counter() - started))
    return verdict(rows, console)


def verdict(rows: Sequence[Row], console: Console) -> int:
    """Say in one sentence what the table shows, and give the exit status."""
    if not all(row.identical for row in rows if row.tool == CONTROL):
        console.print(
            "[red]A training with nothing attached did not repeat exactly: this machine is not reproducible, or one of "
            "the tools left something behind in the process. No row means anything.[/]"
        )
        return NOT_REPRODUCIBLE
    console.print("Control: every training with nothing attached repeated exactly.")
    ours = [row for row in rows if row.tool.package == OURS and row.run is not None]
    if not all(row.identical for row in ours):
        console.print("[red]AuditCallback left a difference.[/]")
        return 1
    if ours:
        console.print(f"AuditCallback left all {len(ours)} of its trainings bit-identical.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
