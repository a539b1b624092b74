"""What studies on the nets of `train_alarm_zoo.py` share: their options, what they keep beside a net, their result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _provenance import provenance


def options(description: str | None) -> argparse.Namespace:
    """`--cache` and `--json`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("alarm_cache"), help="folder of the nets")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def kept(path: Path, make: Callable[..., Any], *arguments: Any) -> Any:
    """What a file holds, or what is made and written to it."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(make(*arguments)))
        partial.replace(path)
        Console().print(path.stem)
    return json.loads(path.read_text())


def report(found: Mapping[str, Any], path: Path | None) -> None:
    """Print figures, and write them with where they come from."""
    Console().print_json(json.dumps(found))
    if path is not None:
        path.write_text(json.dumps({**found, "provenance": provenance()}, indent=1) + "\n")
