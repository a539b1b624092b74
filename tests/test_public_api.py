"""The public surface, written down: nobody changes a name or a signature without seeing it in a diff.

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


class _Text:
    """Prints an annotation the same, whether its module postpones the evaluation of annotations or not."""

    def __init__(self, annotation: Any) -> None:
        self.text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self.text


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [
        each if each.annotation is each.empty else each.replace(annotation=_Text(each.annotation))
        for each in signature.parameters.values()
    ]
    parameters = [
        each.replace(default=_Text(each.default.__qualname__)) if inspect.isfunction(each.default) else each
        for each in parameters
    ]
    returns = signature.return_annotation
    if returns is not signature.empty:
        returns = _Text(returns)
    return str(signature.replace(parameters=parameters, return_annotation=returns))


def _members(cls: type) -> dict[str, str]:
    """Public attributes that a class or its ancestors of ours define, with signatures."""
    members: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):
        if not ancestor.__module__.startswith(PACKAGE):
            continue
        for name, value in vars(ancestor).items():
            if not name.startswith("_"):
                members[name] = _describe_member(value)
        for name in vars(ancestor).get("__annotations__", {}):
            if not name.startswith("_"):
                members.setdefault(name, "field")
    return dict(sorted(members.items()))


def _describe_member(value: Any) -> str:
    if isinstance(value, property):
        return "property"
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {_signature(value.__func__)}"
    if inspect.isfunction(value):
        return _signature(value)
    return "field"


def _has_own_constructor(cls: type) -> bool:
    """Whether a class or an ancestor of ours says how it is made; builtin constructors differ between Pythons."""
    ours = [ancestor for ancestor in cls.__mro__ if ancestor.__module__.startswith(PACKAGE)]
    return any(name in vars(ancestor) for ancestor in ours for name in ("__init__", "__new__"))


def _describe(value: Any) -> Any:
    if inspect.isclass(value):
        constructor = _signature(value) if _has_own_constructor(value) else "inherited"
        return {"class": constructor, "bases": [base.__name__ for base in value.__bases__], "members": _members(value)}
    if inspect.isroutine(value):
        return _signature(value)
    return f"{type(value).__name__} {value!r}"  # a constant or a type alias


def _public_modules() -> list[str]:
    package = importlib.import_module(PACKAGE)
    rooms = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return [PACKAGE, *(f"{PACKAGE}.{room}" for room in sorted(rooms))]


def surface() -> dict[str, dict[str, Any]]:
    """Every name in the `__all__` of the package and of its rooms, described."""
    modules = {name: importlib.import_module(name) for name in _public_modules()}
    return {
        name: {public: _describe(getattr(module, public)) for public in sorted(module.__all__)}
        for name, module in modules.items()
    }


def write_snapshot() -> None:
    """Write the surface down as it is now."""
    SNAPSHOT.write_text(json.dumps(surface(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", _public_modules())
def test_public_names_and_signatures_are_as_written_down(name: str):
    assert SNAPSHOT.is_file(), f"{SNAPSHOT.name} is missing. {UPDATE}"
    written = json.loads(SNAPSHOT.read_text(encoding="utf-8"))

    assert surface()[name] == written.get(name), f"The public surface of `{name}` changed. {UPDATE}"


def test_no_room_left_the_written_surface():
    assert _public_modules() == list(json.loads(SNAPSHOT.read_text(encoding="utf-8"))), UPDATE


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
