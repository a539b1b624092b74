"""`xai-audit demo`."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from xai_callbacks.cli.output import OK, console, progress, say, write_json
from xai_callbacks.errors import AuditError


def demo_arguments(parser: ArgumentParser) -> None:
    """Add the options of `demo`."""
    parser.add_argument("--strength", type=ClosedUnitInterval, default=0.95, help="Share of cues that agree.")
    parser.add_argument("--epochs", type=PositiveInt, default=6, help="Training epochs.")
    parser.add_argument("--train-images", type=PositiveInt, default=3000, help="Training images.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of data and training.")
    parser.add_argument("--out", type=str, default="runs/demo", help="Folder of all runs.")
    parser.add_argument("--pictures", type=str, help="Folder in which to save pictures of a probe, and of all.")
    parser.add_argument("--probe", type=str, help="Its name, such as digit3-cue7-0815; a misled one by default.")


def demo(args: Any) -> int:
    """Watch a shortcut being learned: train a small network on digits with a decoy, with the audit attached.

    A patch in one corner of each image has a colour that agrees with the digit for a share of the training images. The
    network may read the digit or the patch; validation accuracy cannot tell which. The audit can. One or two minutes.

    Examples:
      xai-audit demo                   the colour agrees with 95 % of the digits: a tempting shortcut
      xai-audit demo --strength 0.1    the colour says nothing about the digit
    """
    from xai_callbacks.demo import demonstrate, save_pictures
    from xai_callbacks.demo.story import rows_of, table

    out, begin = console(), time.perf_counter()
    if not args.json:
        chance = " (chance: it says nothing)" if args.strength == 0.1 else ""
        share = f"{args.strength:.0%} of the images{chance}"
        say(out, f"Training on digits whose corner patch has the colour of the right class in {share}.")
    options = {name: getattr(args, name) for name in ("epochs", "train_images", "seed", "out")}
    with progress("training") as bar:
        done = demonstrate(args.strength, **options, on_step=bar)
    rows = rows_of(done.audit.history)
    if not rows:
        raise AuditError("Expected audits of the run, but none succeeded; the warnings say why.")
    record = done.audit.history[-1]
    pictured = None if args.pictures is None else save_pictures(done, args.pictures, args.probe)
    if args.json:
        write_json({"epochs": rows, "findings": record.findings, "run": str(done.folder)})
        return OK
    out.print(table(rows, record))
    for finding in sorted(record.findings, key=lambda each: -each.urgency):
        say(out, finding.sentence, "bold" if finding.serious else "")
        out.print()
    say(out, f"Training with {len(rows)} audits took {time.perf_counter() - begin:.0f} s.", "dim")
    if pictured:
        say(out, f"Pictures of {pictured} and of all probes are in {args.pictures}.")
    say(out, f"The run is in {done.folder}. See panels, filmstrips and curves in TensorBoard:")
    say(out, f"  {_tensorboard_command(args.out)}", "bold")
    return OK


def _tensorboard_command(folder: str) -> str:
    beside = Path(sys.executable).with_name("tensorboard")
    program = os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
    return shlex.join([program if beside.exists() else "tensorboard", "--logdir", folder])
