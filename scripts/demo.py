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
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from _demo_report import rows_of, table, verdict, write_json
from decoy_digits import CLASS_NAMES, CUE_COLOURS, GROUP_NAMES, PROBE_FIELDS, DecoyDataModule, SmallCNN
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from xai_callbacks import AuditCallback, Auditor, CueTrial, Gallery, PatchCue, ProbeSet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["main"]

PROBES_PER_CLASS = 4
EXTRAS = {"rich": "rich", "sklearn": "scikit-learn"}


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
    data, audit = _train(args, console)
    rows = rows_of(audit.history)
    if not rows:
        print("error: no audit succeeded; the warnings above say why.", file=sys.stderr)
        return 1
    console.print(table(rows, audit.last_record))
    sentence = verdict(rows[-1])
    console.print(f"\n[bold]Verdict[/]  {sentence}\n")
    for finding in () if audit.last_record is None else audit.last_record.findings:
        console.print(f"{finding.sentence}\n")
    seconds = time.perf_counter() - begin
    console.print(f"Training with {len(rows)} audits took {seconds:.0f} s.", style="dim")
    if args.json is not None:
        write_json(args.json, rows, sentence)
    saved = args.pictures is None or _save_pictures(args, data, audit, console)
    console.print("See panels, filmstrips and curves in TensorBoard:")
    console.print(f"  {_tensorboard_command(args.out)}", style="bold", soft_wrap=True)
    return 0 if saved else 1


def _train(args: argparse.Namespace, console: Console) -> tuple[DecoyDataModule, AuditCallback]:
    """Train with the audit attached."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with _calm(), _one_thread(), Progress(*columns, console=console, transient=True) as progress:
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
        colours = [[value / 255 for value in colour] for colour in CUE_COLOURS]
        audit = AuditCallback(Auditor(probes, trials=[CueTrial(PatchCue(colours, CLASS_NAMES, at="spurious"))]))
        board = TensorBoardLogger(args.out, name=f"strength-{args.strength:g}", default_hp_metric=False)
        trainer = pl.Trainer(
            max_epochs=args.epochs,
            accelerator="cpu",
            callbacks=[audit, line],
            logger=[board, CSVLogger(board.log_dir, name="", version="csv")],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(SmallCNN(), datamodule=data)
    return data, audit


def _save_pictures(args: argparse.Namespace, data: DecoyDataModule, audit: AuditCallback, console: Console) -> bool:
    """Save the last pictures of one probe, and those of all; False if that probe was not drawn."""
    from PIL import Image

    assert audit.auditor is not None  # narrows the type
    drawn = {picture.tag: picture for picture in Gallery(audit.auditor.probes).draw(audit.history)}
    numbered = {tag.split("_", 2)[-1]: tag.partition("/")[2] for tag in drawn if tag.startswith("audit_panel/")}
    name = args.probe or _telling_probe(data, audit, drawn=set(numbered))
    if name not in numbered:
        console.print(f"No panel of a probe called {name}; there are {', '.join(sorted(numbered))}.", style="red")
        return False
    args.pictures.mkdir(parents=True, exist_ok=True)
    saved = {
        "panel": f"audit_panel/{numbered[name]}",
        "filmstrip": f"audit_filmstrip/{numbered[name]}",
        "most_novel": "audit_summary/most_novel_gradnorm",
        "looked_used": "audit_summary/cue_patch",
    }
    for kind, tag in saved.items():
        if tag not in drawn:  # where all heatmaps are empty there is nothing to set against use
            continue
        Image.fromarray(drawn[tag].pixels).save(args.pictures / f"{kind}.png", optimize=True)
    console.print(f"Pictures of {name} and of all probes are in {args.pictures}.", soft_wrap=True)
    return True


def _telling_probe(data: DecoyDataModule, audit: AuditCallback, drawn: set[str]) -> str | None:
    """The first drawn probe that the model takes for the class of its patch; failing that, the first drawn one."""
    cues = {data.conflict.name(index): int(data.conflict.cues[index]) for index in range(len(data.conflict))}
    record = audit.last_record
    names = () if record is None else record.names
    answers = [] if record is None or record.predictions is None else record.predictions.tolist()
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: as fast for so small a network, and the figures do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    parser.add_argument("--pictures", type=Path, help="also save pictures of a probe and of all in this folder")
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
