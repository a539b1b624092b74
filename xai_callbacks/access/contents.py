"""What lies in containers, arrays and random generators, and how it is put back."""

from __future__ import annotations

import array
import ctypes
import mmap
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = [
    "Children",
    "Handler",
    "Part",
    "identical",
    "keep_array",
    "keep_attributes",
    "keep_bit_generator",
    "keep_bytes",
    "keep_mapping",
    "keep_memory",
    "keep_python_random",
    "keep_random_state",
    "keep_seed_sequence",
    "keep_sequence",
    "keep_set",
    "keep_torch_generator",
]


class Part(NamedTuple):
    """One side of an object.

    Attributes:
        restore: Puts it back as it was; does not touch what hangs on it.
        children: What hangs on it, by name.
        put: Hangs something else there under that name; None where that is not possible.
        around: What it can reach, though it does not belong to it.
    """

    restore: Callable[[], None] | None = None
    children: Iterable[tuple[object, Any]] = ()
    put: Callable[[Any, Any], None] | None = None
    around: Iterable[tuple[object, Any]] = ()


Handler = Callable[[Any], Part]
Children = list[tuple[object, Any]]

_KEY = object()  # name of what hangs on a mapping as a key


def identical(some: Collection[object], others: Collection[object]) -> bool:
    """Whether both hold the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def keep_attributes(*names: str) -> Handler:
    """A handler for attributes that every object of a kind has."""

    def handler(value: Any) -> Part:
        kept = [(name, getattr(value, name)) for name in names]

        def restore() -> None:
            for name, item in kept:
                if getattr(value, name) is not item:
                    setattr(value, name, item)

        return Part(restore, kept, lambda name, item: setattr(value, name, item))

    return handler


def keep_mapping(value: dict[Any, Any]) -> Part:
    """A dict of any class, with its order."""
    # Not the methods of a subclass: they may check, convert, count or log.
    base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    keys, values = list(base.keys(value)), list(base.values(value))

    def put(key: object, item: object) -> None:
        if key is not _KEY:
            base.__setitem__(value, key, item)

    children: Iterable[tuple[object, Any]] = zip(keys, values, strict=True)
    if any(type(key) is not str for key in keys):
        children = chain(children, ((_KEY, key) for key in keys))
    return Part(partial(_refill, base, value, keys, values), children, put)


def _refill(base: Any, value: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    if not identical(base.keys(value), keys):
        base.clear(value)
    elif identical(base.values(value), values):
        return
    for key, item in zip(keys, values, strict=True):
        base.__setitem__(value, key, item)


def keep_sequence(value: list[Any] | deque[Any]) -> Part:
    """A list or deque of any class."""
    base: Any = list if isinstance(value, list) else deque
    items = list(base.__iter__(value))

    def restore() -> None:
        if not identical(list(base.__iter__(value)), items):
            base.clear(value)
            base.extend(value, items)

    def put(index: int, item: object) -> None:
        base.__setitem__(value, index, item)

    return Part(restore, enumerate(items), put)


def keep_set(value: set[Any]) -> Part:
    """A set of any class."""
    items = list(set.__iter__(value))

    def restore() -> None:
        if not identical(list(set.__iter__(value)), items):
            set.clear(value)
            set.update(value, items)

    return Part(restore, enumerate(items))


def keep_bytes(value: bytearray | array.array[Any]) -> Part:
    """Bytes or numbers whose count can change."""
    content: Any = value[:]

    def restore() -> None:
        if bytes(value) != bytes(content):
            value[:] = content

    return Part(restore)


def keep_memory(value: Any) -> Part:
    """A number or structure of `ctypes`, perhaps shared between processes."""
    content = bytes(value)

    def restore() -> None:
        if bytes(value) != content:
            ctypes.memmove(ctypes.addressof(value), content, len(content))

    return Part(restore)


def keep_array(value: np.ndarray[Any, Any]) -> Part:
    """An array of any class and type; one that lies in a file is left alone."""
    owner: Any = value
    while isinstance(owner.base, np.ndarray) and not isinstance(owner, np.memmap):
        owner = owner.base
    if isinstance(owner, np.memmap) or isinstance(owner.base, mmap.mmap):
        return Part()
    writeable, shape, dtype = value.flags.writeable, value.shape, value.dtype
    if not writeable and value.base is not None:
        return Part(children=[("base", value.base)])
    content = np.array(value, subok=False)

    def restore() -> None:
        if value.dtype != dtype:
            raise TypeError(f"its dtype is now {value.dtype}")
        if value.shape != shape:
            np.ndarray.resize(value, shape, refcheck=False)
        plain = np.ndarray.view(value, np.ndarray)
        if plain.tobytes() != content.tobytes():  # bits; of objects, their addresses
            plain.flags.writeable = True
            np.copyto(plain, content)
        if value.flags.writeable != writeable:
            value.flags.writeable = writeable

    def put(index: int, item: object) -> None:
        np.ndarray.view(value, np.ndarray).flat[index] = item

    return Part(restore, enumerate(content.flat) if dtype.kind == "O" else (), put if writeable else None)


def keep_torch_generator(value: torch.Generator) -> Part:
    """A generator of torch, on any device."""
    state = value.get_state()

    def restore() -> None:
        if not torch.equal(value.get_state(), state):
            value.set_state(state)

    return Part(restore)


def keep_python_random(value: random.Random) -> Part:
    """A generator of Python."""
    state = value.getstate()
    return Part(lambda: value.setstate(state))


def keep_random_state(value: np.random.RandomState) -> Part:
    """NumPy's generator of old, with the normal number it may have in store."""
    state = value.get_state(legacy=False)
    return Part(lambda: value.set_state(state), [("bit_generator", value._bit_generator)])


def keep_bit_generator(value: Any) -> Part:
    """What NumPy's generators draw from, with the seeds of those it may spawn."""
    state = value.state
    return Part(lambda: setattr(value, "state", state), [("seed_seq", getattr(value, "seed_seq", None))])


def keep_seed_sequence(value: Any) -> Part:
    """A sequence of seeds, with the number of those it has spawned."""
    *_, state = value.__reduce__()
    spawned = value.n_children_spawned
    return Part(lambda: None if value.n_children_spawned == spawned else value.__setstate__(state))
