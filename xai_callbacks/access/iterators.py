"""Stand-ins for iterators: what cannot be turned back is not used in the first place."""

from __future__ import annotations

import types
from collections.abc import Callable
from copy import copy
from typing import Any, NoReturn

from torch.utils.data.dataloader import _BaseDataLoaderIter

from xai_callbacks.errors import ConfigurationError

__all__ = ["GENERATORS", "StandIns", "needs_stand_in", "parts_of"]

GENERATORS = (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType, _BaseDataLoaderIter)
"""Iterators that cannot be copied."""

_BOUND = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
_WRITTEN_IN_C = ("builtins", "itertools", "collections", "_collections")


class _Refusing:
    """Hangs at a path where an iterator hung that cannot be copied, and refuses to give its next value."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __iter__(self) -> _Refusing:
        return self

    def __next__(self, *_: object) -> NoReturn:
        raise ConfigurationError(
            f"Expected `{self.where}` to be left alone while the model is looked at, but a forward pass asked this "
            "iterator for its next value, which cannot be given back. Advance it in the training step only, or use an "
            "iterator that can be copied, such as itertools.count, or a random generator."
        )

    send = throw = close = __anext__ = asend = __next__


def needs_stand_in(cls: type) -> bool:
    """Whether a stand-in may have to hang where an instance hangs.

    That is an iterator whose position Python code cannot set, such as `itertools.count`, or what holds one for ever.
    """
    return issubclass(cls, (tuple, *GENERATORS, *_BOUND)) or any(
        "__next__" in vars(base) and base.__module__ in _WRITTEN_IN_C for base in cls.__mro__
    )


def parts_of(iterator: Any) -> tuple[Any, ...]:
    """What an iterator is made of, such as the function and the iterator that `map` was given."""
    return () if isinstance(iterator, GENERATORS) else (_reduced(iterator) or ((), ()))[1]


def _reduced(iterator: Any) -> Any:
    """What rebuilds an iterator, `(make, arguments)` or `(make, arguments, state)`; None if nothing does."""
    try:
        reduced = iterator.__reduce__()
    except Exception:  # whatever a class raises that cannot be copied
        return None
    return reduced if isinstance(reduced, tuple) else None


class StandIns:
    """Finds for an iterator a copy of it, one for all places where it hangs; for anything else, that itself."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[object, object]] = {}

    def of(self, value: Any, where: Callable[[], str]) -> Any:
        """The stand-in of what hangs at a path, or the value itself where it needs none."""
        if not needs_stand_in(type(value)):
            return value
        if id(value) not in self._made:
            self._made[id(value)] = (value, self._make(value, where))
        return self._made[id(value)][1]

    def _make(self, value: Any, where: Callable[[], str]) -> Any:
        if isinstance(value, tuple):
            items = [self.of(item, where) for item in value]
            same = all(one is other for one, other in zip(items, value, strict=True))
            return value if same else tuple.__new__(type(value), items)
        if isinstance(value, _BOUND):
            owner = self.of(value.__self__, where)
            if owner is value.__self__:
                return value
            if isinstance(value, types.MethodType):
                return types.MethodType(value.__func__, owner)
            return getattr(owner, value.__name__)
        if hasattr(type(value), "__copy__"):  # itertools.tee
            return copy(value)
        reduced = None if isinstance(value, GENERATORS) else _reduced(value)
        if reduced is None:
            return _Refusing(where())
        make, arguments, *states = reduced
        other = make(*(self.of(argument, where) for argument in arguments))
        if states and states[0] is not None:
            other.__setstate__(self._state(states[0], where))
        return other

    def _state(self, state: Any, where: Callable[[], str]) -> Any:
        """Iterators and lists in a state are the iterator's own, such as what `itertools.cycle` has seen so far."""
        if isinstance(state, tuple):
            return tuple(self._state(item, where) for item in state)
        return list(state) if isinstance(state, list) else self.of(state, where)
