"""Every error this package raises on purpose, under one root.

Messages follow one form: "Expected `x` to be ..., but got .... <what to do>".
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeGuard

__all__ = [
    "AuditError", "ConfigurationError", "DroppedError", "NoveltyError", "OutputError", "ProbeSetError",
    "TargetLayerError", "XAICallbacksError", "blaming", "first_of", "in_words", "is_number", "is_out_of_memory",
    "require_bool", "require_choice", "require_different", "require_instance", "require_integer", "require_name",
    "require_number", "texts_of", "with_settings",
]  # fmt: skip

_SHOWN = 80  # characters of a wrong value that a message repeats


class XAICallbacksError(Exception):
    """Root of all errors raised by `xai_callbacks`."""


class ProbeSetError(XAICallbacksError, ValueError):
    """A probe, or a whole probe set, is malformed. The message names the probe."""


class ConfigurationError(XAICallbacksError, ValueError):
    """The audit was asked for something it cannot do. Raised before the first training step."""


class TargetLayerError(ConfigurationError):
    """A target layer does not exist, is ambiguous, or carries no feature map."""


class OutputError(ConfigurationError):
    """The outputs of the model cannot be read as logits `(N, K)` or values `(N, V)`."""


class AuditError(XAICallbacksError, RuntimeError):
    """One audit failed although its configuration was sound, e.g. on non-finite logits."""


class DroppedError(AuditError):
    """Pictures were left out for want of time. It depends on the machine, so that it is told and never ends a run."""


class NoveltyError(AuditError):
    """A novelty score says nothing: it is NaN, infinite, or the same for all probes."""


def require_integer(name: str, value: object, *, minimum: int, hint: str = "") -> None:
    """Raise a `ConfigurationError` unless an argument counts something; `True` and `2.0` are no counts."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        advice = f" {hint}" if hint else ""
        raise ConfigurationError(f"Expected `{name}` to be an integer of {minimum} or more, but got {value!r}.{advice}")


def require_bool(name: str, value: object) -> None:
    """Raise a `ConfigurationError` unless an argument is a bool; the text "false" of a file is true to Python."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"Expected `{name}` to be True or False, but got {value!r}.")


def require_choice(name: str, value: object, choices: Sequence[str], *, of: str = "") -> None:
    """Raise a `ConfigurationError` unless an argument, `of` a thing that is named if need be, is one of some words."""
    if value not in choices:
        whose = f" of {of}" if of else ""
        raise ConfigurationError(f"Expected `{name}`{whose} to be one of {', '.join(choices)}, but got {value!r}.")


def require_instance(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise a `ConfigurationError` unless an argument is of a class, or one of several; `wanted` says so in words."""
    if not isinstance(value, kind):
        shown = repr(value)
        # A tensor or a list of images says nothing by its numbers.
        got = f"{type(value).__name__} {shown}" if len(shown) <= _SHOWN else type(value).__name__
        raise ConfigurationError(f"Expected `{name}` to be {wanted}, but got {got}.")


def require_name(what: str, value: object) -> None:
    """Raise a `ConfigurationError` unless what is named, such as "`name` of a cue", can be in keys and paths."""
    if not isinstance(value, str) or not re.fullmatch(r"\.*[\w-][\w.-]*", value):
        raise ConfigurationError(f"Expected {what} to be letters, digits, '_', '-' and '.', but got {value!r}.")


def require_different(what: str, names: Iterable[str], hint: str) -> None:
    """Raise a `ConfigurationError` unless names of things of a kind differ; `{}` in the hint is one that does not."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        told = hint.format(twice[0])
        raise ConfigurationError(f"Expected {what} with different names, but got {twice[0]!r} twice. {told}")


def texts_of(name: str, value: object) -> tuple[str, ...]:
    """Read one text or several, or raise a `ConfigurationError`."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ConfigurationError(f"Expected `{name}` to be a text or a list of texts, but got {value!r}.")
    return tuple(value)


def first_of(names: Sequence[str], most: int) -> str:
    """The first names and how many there are besides, such as "a, b and 3 more"; empty for none."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_number(value: object) -> TypeGuard[float]:
    """Whether an argument is a finite int or float; `True` and `"1"` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def require_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    ends: Literal["()", "(]", "[)"] = "[)",
    of: str = "",
    hint: str = "",
) -> float:
    """Read a finite number from `low` to `high`, or raise a `ConfigurationError`.

    An end with a round bracket in `ends` is left out. See `require_choice` for `of`.
    """
    included = [end for end, bracket in ((low, ends[0]), (high, ends[1])) if bracket in "[]"]
    if is_number(value) and (low < value < high or value in included):
        return float(value)
    wanted = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if low == -math.inf:
        wanted = "a finite number"
    elif high == math.inf:
        wanted = f"a number of {low:g} or more" if ends[0] == "[" else f"a finite number above {low:g}"
    whose, advice = f" of {of}" if of else "", f" {hint}" if hint else ""
    raise ConfigurationError(f"Expected `{name}`{whose} to be {wanted}, but got {value!r}.{advice}")


def with_settings(thing: object) -> str:
    """Type and public plain settings of a thing, such as `KNearest(k=10)`; what it has learnt is none."""

    def is_plain(value: object) -> bool:
        if isinstance(value, tuple | list):
            return all(is_plain(each) for each in value)
        return value is None or isinstance(value, str | int | float)

    given = {name: each for name, each in vars(thing).items() if not name.startswith("_") and is_plain(each)}
    return f"{type(thing).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a library says that a device, or the machine, has no memory left."""
    told = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in told or "can't allocate memory" in told


def in_words(error: BaseException) -> str:
    """One sentence or more. Errors of ours are such; others may go on for many lines."""
    if isinstance(error, XAICallbacksError):
        return str(error)
    first = next(iter(str(error).splitlines()), "").rstrip(".")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."


@contextmanager
def blaming(what: str, task: str, argument: str) -> Iterator[None]:
    """Raise a `ConfigurationError` that says which part of an `argument` failed at what; errors of ours say so."""
    try:
        yield
    except XAICallbacksError:
        raise
    except Exception as error:
        advice = "Lower `chunk_size`" if is_out_of_memory(error) else "Mend it"
        raise ConfigurationError(
            f"Expected {what} to {task}, but it raised {in_words(error)} {advice}, or leave it out of `{argument}`."
        ) from error
