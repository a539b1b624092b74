"""`xai-audit doctor`."""

from typing import Any

from jsonargparse import ArgumentParser

from xai_callbacks.cli.output import FAIL, OK, console, say, write_json
from xai_callbacks.cli.probes import named


def doctor_arguments(parser: ArgumentParser) -> None:
    """Add the options of `doctor`."""
    parser.add_argument(
        "target", type=str, metavar="TARGET", help="Callback, its class or a function, as package.module:name."
    )


def doctor(args: Any) -> int:
    """Train a small net with and without a callback, or a call of an explainer, and name what it disturbs.

    Compared bit by bit: weights, modes, `.grad`, buffers, random streams, hooks. Exit code 1 if anything differs.

    Examples:
      xai-audit doctor my_project.callbacks:HeatmapCallback
    """
    from xai_callbacks.doctor import diagnose

    found = diagnose(named(args.target)).disturbances
    if args.json:
        write_json({"target": args.target, "disturbances": found})
    elif not found:
        say(console(), f"{args.target} disturbs nothing: training is bit-identical with and without it.", "green")
    for each in () if args.json else found:
        say(console(), f"{each.what}: {each.words}", "red")
    return FAIL if found else OK
