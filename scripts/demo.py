"""Watch a shortcut being learned: train a small network on digits with a decoy, with the audit attached.

A small convolutional network learns handwritten digits. A patch in one corner of each image has a colour that agrees
with the digit for a share ``--strength`` of the training images (see ``decoy_digits.py``). The network may read the
digit or the patch; validation accuracy cannot tell which, as validation images are biased in the same way. The audit
can: it asks the model about 40 images whose patch contradicts the digit, and measures where the answer comes from.

    scripts/demo                     the colour agrees with 95 % of the digits: a tempting shortcut
    scripts/demo --strength 0.1      the colour says nothing about the digit
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from decoy_digits import CLASS_NAMES, GROUP_NAMES, PROBE_FIELDS, DecoyDataModule, SmallCNN
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from xai_callbacks import AuditCallback, ProbeSet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from xai_callbacks.metrics.summary import Estimate

__all__ = ["Row", "main", "verdict"]

PROBES_PER_CLASS = 4
# Accuracy this much lower on conflicting images than on biased ones is no accident: both are measured on the same 600
# digits, and even for unrelated images two standard errors of the difference would not exceed 0.06.
GAP = 0.10
EXTRAS = {"rich": "rich", "sklearn": "scikit-learn"}


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


class Recorder(pl.Callback):
    """Keeps a `Row` for each audit. Stands after the `AuditCallback` in the trainer's list."""

    def __init__(self, audit: AuditCallback) -> None:
        self.audit = audit
        self.rows: list[Row] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The untrained model."""
        self._keep(trainer, epoch=0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The model after an epoch."""
        self._keep(trainer, epoch=trainer.current_epoch + 1)

    def _keep(self, trainer: pl.Trainer, epoch: int) -> None:
        record = self.audit.last_record
        if record is None:
            return
        measured = {key: float(value) for key, value in trainer.callback_metrics.items()}
        self.rows.append(
            Row(
                epoch=epoch,
                step=record.step,
                val_acc=measured.get("val_acc"),
                conflict_acc=measured.get("conflict_acc"),
                digit=record.metrics["why/relevance_mass/core"],
                cue=record.metrics["why/relevance_mass/spurious"],
                novelty=record.metrics["novelty/gradnorm"],
            )
        )


class ProgressLine(pl.Callback):
    """One line that counts training steps."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("preparing", total=None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Now the number of steps is known."""
        self.progress.update(self.task, total=int(trainer.estimated_stepping_batches))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the epoch."""
        self.progress.update(self.task, description=f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self.progress.advance(self.task)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit status."""
    args = _parse(argv)
    missing = [package for module, package in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"error: the demo needs {' and '.join(missing)}. Install the extra: pip install 'xai-callbacks[demo]', "
            "or run scripts/demo, which does.",
            file=sys.stderr,
        )
        return 1
    return _demonstrate(args)


def _demonstrate(args: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"Training on digits whose corner patch has the colour of the right class in [bold]{args.strength:.0%}[/] of "
        f"the images{' (chance: it says nothing)' if args.strength == 0.1 else ''}."
    )
    begin = time.perf_counter()
    data, rows, audit, logdir = _train(args, console)
    console.print(_table(rows, audit))
    sentence = verdict(rows[-1])
    console.print(f"\n[bold]Verdict[/]  {sentence}\n")
    seconds = time.perf_counter() - begin
    console.print(f"Training with {len(rows)} audits took {seconds:.0f} s.", style="dim")
    if args.json is not None:
        _write_json(args.json, rows, sentence)
    if args.pictures is not None:
        _copy_pictures(args, data, audit, logdir, console)
    console.print("See panels, filmstrips and curves in TensorBoard:")
    console.print(f"  {_tensorboard_command(args.out)}", style="bold", soft_wrap=True)
    return 0


def _train(args: argparse.Namespace, console: Console) -> tuple[DecoyDataModule, list[Row], AuditCallback, Path]:
    """Train with the audit attached; returns the data, a row for each audit, the audit and the run's log folder."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with _calm(), Progress(*columns, console=console, transient=True) as progress:
        line = ProgressLine(progress)
        pl.seed_everything(args.seed, verbose=False)
        data = DecoyDataModule(args.strength, train_images=args.train_images, seed=args.seed)
        probes = ProbeSet.from_dataset(
            data.conflict,
            per_class=PROBES_PER_CLASS,
            fields=PROBE_FIELDS,
            class_names=CLASS_NAMES,
            group_names=GROUP_NAMES,
        )
        audit = AuditCallback(probes)
        recorder = Recorder(audit)
        board = TensorBoardLogger(args.out, name=f"strength-{args.strength:g}", default_hp_metric=False)
        trainer = pl.Trainer(
            max_epochs=args.epochs,
            accelerator="cpu",
            callbacks=[audit, recorder, line],
            logger=[board, CSVLogger(board.log_dir, name="", version="csv")],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(SmallCNN(), datamodule=data)
    return data, recorder.rows, audit, Path(board.log_dir)


def verdict(row: Row) -> str:
    """One sentence about the model of the last audit.

    The rule: the patch is *looked at* if the 95 % interval of its relevance mass lies above chance, and *used* if
    accuracy falls by more than `GAP` when the colour contradicts the digit. The model leans on the patch if both hold.
    If neither does, there is no evidence for the cue tested, which says nothing about other cues. A model that is right
    less than twice as often as chance is not judged.
    """
    if row.val_acc is None or row.conflict_acc is None:
        raise ValueError("Expected accuracies in the last row, but the model was not validated. Train an epoch first.")
    if row.val_acc < 2 / len(CLASS_NAMES):
        return (
            f"The model has learnt too little to be judged: its accuracy is {row.val_acc:.0%}. Train for more epochs."
        )
    looked = row.cue.low is not None and row.cue.chance is not None and row.cue.low > row.cue.chance
    used = row.val_acc - row.conflict_acc > GAP
    relevance = (
        "all heatmaps are empty"
        if row.cue.valid == 0
        else f"{_percent(row.cue.value)} of the relevance lies on it (chance {_percent(row.cue.chance)})"
    )
    falls = f"accuracy falls from {row.val_acc:.0%} to {row.conflict_acc:.0%} where the colour contradicts the digit"
    stays = f"accuracy is {row.val_acc:.0%}, and {row.conflict_acc:.0%} where the colour contradicts the digit"
    if looked and used:
        return f"The model leans on the corner patch: {relevance}, and {falls}."
    if used:
        return f"The model uses the corner patch, though its heatmaps do not show it: {falls}, but {relevance}."
    if looked:
        return f"The model looks at the corner patch, with no evidence that it uses it: {relevance}; {stays}."
    return f"No evidence that the model leans on the cue tested, the corner patch: {relevance}; {stays}."


def _table(rows: Sequence[Row], audit: AuditCallback) -> Table:
    from rich import box
    from rich.table import Table

    record = audit.last_record
    count = 0 if record is None else len(record.predictions)
    layer = "" if record is None else f" at `{record.layer}`"
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=(
            f'Relevance: share of Grad-CAM\'s answer{layer} to "Why P?" on a region, mean over {count} probes '
            "whose patch contradicts the digit [95 % interval]. Chance: the region's share of the image; red: above "
            "it on the patch. Novelty: gradient norm, larger = more novel."
        ),
        caption_justify="left",
    )
    table.add_column("\n\nepoch", justify="right")
    table.add_column("\nval.\naccuracy", justify="right")
    table.add_column("accuracy\nif cue\nconflicts", justify="right")
    table.add_column(f"relevance\non digit\n(chance {_percent(rows[0].digit.chance)})", justify="right", no_wrap=True)
    table.add_column(f"relevance\non cue\n(chance {_percent(rows[0].cue.chance)})", justify="right", no_wrap=True)
    table.add_column("\n\nnovelty", justify="right")
    for row in rows:
        alarming = row.cue.low is not None and row.cue.chance is not None and row.cue.low > row.cue.chance
        table.add_row(
            str(row.epoch),
            _percent(row.val_acc),
            _percent(row.conflict_acc),
            _interval(row.digit),
            f"[red]{_interval(row.cue)}[/]" if alarming else _interval(row.cue),
            f"{row.novelty.value:z.1f}",
        )
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:.{_digits(share)}%}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _percent(estimate.value)
    digits = _digits(estimate.value)
    low, high = f"{100 * estimate.low:.{digits}f}", f"{100 * estimate.high:.{digits}f}"
    return rf"{_percent(estimate.value)} \[{low}, {high}]"


def _digits(share: float) -> int:
    """Decimals of a percentage: small ones need one."""
    return 1 if share < 0.1 else 0


def _write_json(path: Path, rows: Sequence[Row], sentence: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"epochs": [_plain(row) for row in rows], "verdict": sentence}
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(row: Row) -> dict[str, Any]:
    """A row as dictionaries, with None for NaN, which JSON does not have."""
    plain = dict(vars(row))
    for name in ("digit", "cue", "novelty"):
        estimate: Estimate = plain[name]
        plain[name] = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in estimate._asdict().items()
        }
    return plain


def _copy_pictures(
    args: argparse.Namespace, data: DecoyDataModule, audit: AuditCallback, logdir: Path, console: Console
) -> None:
    """Copy the last panel and filmstrip of one probe from the run's event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logdir), size_guidance={"images": 0})
    events.Reload()
    tags = {tag.split("_", 2)[-1]: tag for tag in events.Tags()["images"] if tag.startswith("audit_panel/")}
    name = args.probe or _telling_probe(data, audit, drawn=set(tags))
    if name not in tags:
        console.print(f"No panel of a probe called {name}; there are {', '.join(sorted(tags))}.", style="red")
        return
    args.pictures.mkdir(parents=True, exist_ok=True)
    for kind in ("panel", "filmstrip"):
        picture = events.Images(tags[name].replace("audit_panel/", f"audit_{kind}/"))[-1].encoded_image_string
        (args.pictures / f"{kind}.png").write_bytes(picture)
    console.print(f"Panel and filmstrip of {name} are in {args.pictures}.", soft_wrap=True)


def _telling_probe(data: DecoyDataModule, audit: AuditCallback, drawn: set[str]) -> str | None:
    """The first drawn probe that the model takes for the class of its patch; failing that, the first drawn one."""
    cues = {data.conflict.name(index): int(data.conflict.cues[index]) for index in range(len(data.conflict))}
    names = audit.auditor.probes.names
    record = audit.last_record
    answers = [] if record is None else record.predictions.tolist()
    fooled = [name for name, answer in zip(names, answers, strict=False) if name in drawn and answer == cues[name]]
    return next(iter([*fooled, *(name for name in names if name in drawn)]), None)


def _tensorboard_command(out: Path) -> str:
    beside = Path(sys.executable).with_name("tensorboard")
    program = os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
    return shlex.join([program if beside.exists() else "tensorboard", "--logdir", str(out)])


@contextmanager
def _calm() -> Iterator[None]:
    """Keep to ourselves what Lightning says about devices, workers and loggers."""
    # Where both Lightning packages are installed, either may be the one that speaks.
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strength", type=_share, default=0.95, help="share of cues that agree [%(default)s]")
    parser.add_argument("--epochs", type=_positive, default=6, help="training epochs [%(default)s]")
    parser.add_argument("--train-images", type=_positive, default=3000, help="training images [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the logs [%(default)s]")
    parser.add_argument("--json", type=Path, help="also write the table and the verdict to this file")
    parser.add_argument("--pictures", type=Path, help="also save panel.png and filmstrip.png of a probe in this folder")
    parser.add_argument("--probe", help="the probe of --pictures, such as digit3-cue7-0815 [a misled one]")
    return parser.parse_args(argv)


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, but got {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, but got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
