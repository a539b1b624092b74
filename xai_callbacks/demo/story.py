"""Report of the demonstration: a table with a row for each audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate


@dataclass(frozen=True)
class Row:
    """One audit.

    Attributes:
        epoch: Finished training epochs; 0 is the untrained model.
        step: Place on the x-axis of the logs.
        val_acc: Accuracy on validation images, biased as training is; None before training.
        conflict_acc: Accuracy on the same images with patches that contradict the digit; None before training.
        digit: Relevance mass on the strokes for the question "Why P?".
        cue: Relevance mass on the patch.
        novelty: Mean novelty of the probes; larger = more novel.
    """

    epoch: int
    step: int
    val_acc: float | None
    conflict_acc: float | None
    digit: Estimate
    cue: Estimate
    novelty: Estimate

    @property
    def cue_stands_out(self) -> bool:
        """Whether the interval of the patch's relevance lies above chance."""
        return self.cue.low is not None and self.cue.chance is not None and self.cue.low > self.cue.chance


def rows_of(history: History) -> list[Row]:
    """A row for each audit of a run."""
    return [
        Row(
            epoch=0 if record.untrained else record.epoch + 1,
            step=record.step,
            val_acc=record.logged.get("val_acc"),
            conflict_acc=record.logged.get("conflict_acc"),
            digit=record.metrics["gradcam/why/relevance_mass/core"],
            cue=record.metrics["gradcam/why/relevance_mass/spurious"],
            novelty=record.metrics["novelty/gradnorm"],
        )
        for record in history
    ]


def table(rows: Sequence[Row], record: AuditRecord | None) -> Table:
    """The audits as a table that fits into 80 columns; `record` is the newest."""
    count = 0 if record is None else len(record.names)
    layer = "" if record is None else f" at `{record.layer}`"
    grid = Table(
        box=box.SIMPLE_HEAD,
        caption=(
            f'Relevance: share of Grad-CAM\'s answer{layer} to "Why P?" on a region, mean over {count} probes '
            "whose patch contradicts the digit [95 % interval]. Chance: the region's share of the image; red: above "
            "it on the patch. Novelty: gradient norm, larger = more novel."
        ),
        caption_justify="left",
    )
    grid.add_column("\n\nepoch", justify="right")
    grid.add_column("\nval.\naccuracy", justify="right")
    grid.add_column("accuracy\nif cue\nconflicts", justify="right")
    grid.add_column(f"relevance\non digit\n(chance {_percent(rows[0].digit.chance)})", justify="right", no_wrap=True)
    grid.add_column(f"relevance\non cue\n(chance {_percent(rows[0].cue.chance)})", justify="right", no_wrap=True)
    grid.add_column("\n\nnovelty", justify="right")
    for row in rows:
        grid.add_row(
            str(row.epoch),
            "–" if row.val_acc is None else f"{row.val_acc:.0%}",
            "–" if row.conflict_acc is None else f"{row.conflict_acc:.0%}",
            Text(_interval(row.digit)),
            Text(_interval(row.cue), "red" if row.cue_stands_out else ""),
            f"{row.novelty.value:z.1f}",
        )
    return grid


def _percent(share: float | None) -> str:
    """A share of relevance as text."""
    return "–" if share is None or math.isnan(share) else f"{share:.{_digits(share)}%}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _percent(estimate.value)
    digits = _digits(estimate.value)
    low, high = f"{100 * estimate.low:.{digits}f}", f"{100 * estimate.high:.{digits}f}"
    return f"{_percent(estimate.value)} [{low}, {high}]"


def _digits(share: float) -> int:
    """Decimals of a percentage: small ones need one."""
    return 1 if share < 0.1 else 0
