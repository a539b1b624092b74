"""Where figures come from: the command, the versions, the date and the class of machine that made them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["provenance", "source", "write_json"]

ROOT = Path(__file__).resolve().parents[1]


def provenance(*packages: str) -> dict[str, Any]:
    """Facts to keep beside figures, as JSON values.

    Args:
        *packages: Distributions whose versions matter beside torch and torchvision.
    """
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path("scripts") / script.name
    return {
        "command": shlex.join(["python", name.as_posix(), *sys.argv[1:]]),
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used",
        "versions": {name: _version(name) for name in ("torch", "torchvision", *packages)}
        | {"python": platform.python_version()},
    }


def source(script: str, result: dict[str, Any]) -> str:
    """Where a table comes from, in one line."""
    return f"`scripts/{script}`, {result['date']}, {result['machine']}, torch {result['versions']['torch']}."


def write_json(path: Path, result: object) -> None:
    """Keep figures as text that differs line by line; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
