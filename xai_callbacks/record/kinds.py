"""Whether values that were read from a file are of the kinds that fields are declared with."""

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Check = Callable[[object], bool]


@lru_cache(32)
def checks_of(kind: type) -> dict[str, Check]:
    """A check for each field of a dataclass or named tuple, by its name."""
    return {name: _check(hint) for name, hint in get_type_hints(kind).items()}


def _check(hint: Any) -> Check:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        some = [_check(each) for each in parts]
        return lambda value: any(check(value) for check in some)
    if origin is tuple:  # all are of any length
        item = _check(parts[0])
        return lambda value: isinstance(value, tuple) and all(map(item, value))
    if origin is Mapping:
        of = _check(parts[1])
        return lambda value: isinstance(value, Mapping) and all(map(of, value.values()))
    if hint in (int, float):
        return lambda value: isinstance(value, int | float)
    if hint is str or origin is Literal:  # None where rules and measures of a user left it out
        return lambda value: value is None or isinstance(value, str)
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        fields = checks_of(hint)
        return lambda value: (
            isinstance(value, hint) and all(check(getattr(value, name)) for name, check in fields.items())
        )
    return lambda value: hint in (Any, object) or isinstance(value, hint)
