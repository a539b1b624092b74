"""The public names, written down: nobody adds, drops or moves one without seeing it in a diff.

To accept a change: `python tests/test_public_api.py`, then read the diff of tests/api_surface.json.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "xai_callbacks"
SNAPSHOT = Path(__file__).with_name("api_surface.json")
UPDATE = "If the change is meant, run `python tests/test_public_api.py`, read the diff, and note it in CHANGELOG.md."


def _public_modules() -> list[str]:
    package = importlib.import_module(PACKAGE)
    rooms = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return [PACKAGE, *(f"{PACKAGE}.{room}" for room in sorted(rooms))]


def surface() -> dict[str, list[str]]:
    """Every name in the `__all__` of the package and of its rooms."""
    return {name: sorted(importlib.import_module(name).__all__) for name in _public_modules()}


def write_snapshot() -> None:
    """Write the surface down as it is now."""
    SNAPSHOT.write_text(json.dumps(surface(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def test_public_names_are_as_written_down():
    assert surface() == json.loads(SNAPSHOT.read_text(encoding="utf-8")), UPDATE


def test_names_are_written_once_and_exist():
    for name in _public_modules():
        module = importlib.import_module(name)
        assert len(set(module.__all__)) == len(module.__all__), name
        assert [public for public in module.__all__ if not hasattr(module, public)] == [], name


def test_the_package_offers_what_its_rooms_do():
    package = importlib.import_module(PACKAGE)
    for name in package.__all__:
        room = importlib.import_module(f"{PACKAGE}.{package._HOMES[name]}")
        assert getattr(package, name) is getattr(room, name)
        assert name in room.__all__
    assert sorted(package._HOMES) == sorted(package.__all__)


def _needs_docstring(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


@pytest.mark.parametrize("name", _public_modules())
def test_public_names_have_docstrings(name: str):
    module = importlib.import_module(name)
    values = {public: getattr(module, public) for public in module.__all__}

    assert [public for public, value in values.items() if _needs_docstring(value) and not inspect.getdoc(value)] == []


if __name__ == "__main__":
    write_snapshot()
    print(f"Wrote {SNAPSHOT}")
