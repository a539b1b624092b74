"""`xai-audit doctor`."""

from typing import Any

from jsonargparse import ArgumentParser

from xai_callbacks.cli.named import named
from xai_callbacks.cli.output import FAIL, OK, console, say, write_json


def doctor_arguments(parser: ArgumentParser) -> None:
    """Add the options of `doctor`."""
    target = "A callback, a class or function that makes one, or the call of an explainer, as package.module:name."
    parser.add_argument("target", type=str, metavar="TARGET", help=target)
    parser.add_argument("--scenarios", nargs="*", help="plain, accumulation, train-epoch-end, frozen; all by default.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random streams.")


def doctor(args: Any) -> int:
    """Find what a callback, or a call `(module, images, labels)` of an explainer, disturbs in a training run.

    A small net is trained with it and without, and compared bit by bit: weights, modes, `.grad`, buffers, random
    streams, hooks. Exit code 1 if anything differs.

    Examples:
      xai-audit doctor my_project.callbacks:HeatmapCallback
      xai-audit doctor my_project.explain:saliency --scenarios plain frozen
    """
    from xai_callbacks.doctor import diagnose

    found = diagnose(named(args.target), seed=args.seed, scenarios=args.scenarios)
    if args.json:
        write_json(found.as_dict())
    for line in () if args.json else str(found).splitlines():
        say(console(), line)
    return OK if found.healthy else FAIL
