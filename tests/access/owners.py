"""Modules and objects that own things, and how a thing looks in plain values."""

from __future__ import annotations

import random
import types
from collections import deque, namedtuple
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn


class Owner(nn.Module):
    """A module that owns one thing."""

    def __init__(self, thing):
        super().__init__()
        self.thing = thing


class Helper:
    """An object of which nobody knows."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def method(self):
        return vars(self)


class Slotted:
    __slots__ = ("calls", "late", "rng")

    def __init__(self):
        self.calls, self.rng = 0, random.Random(0)


@dataclass(frozen=True)
class Frozen:
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    seen: list = field(default_factory=list)


Pair = namedtuple("Pair", "first second")


def torch_generator():
    return torch.Generator().manual_seed(0)


def plain(it):
    """The whole state of a thing, with the classes of all its parts, comparable with `==`."""
    return type(it).__name__, _content(it), [(name, plain(item)) for name, item in _attributes(it)]


def _content(it):
    if isinstance(it, torch.Tensor):
        return _bits(it), it.is_leaf, it.requires_grad, it.grad_fn, plain(it.grad if it.is_leaf else None)
    if isinstance(it, np.ndarray):
        items = [plain(item) for item in it.flat] if it.dtype == object else it.tobytes()
        return str(it.dtype), it.shape, it.flags.writeable, items
    if isinstance(it, dict | types.MappingProxyType):
        return getattr(it, "default_factory", None), [(plain(key), plain(item)) for key, item in it.items()]
    if isinstance(it, list | tuple | deque):
        return [plain(item) for item in it]
    if isinstance(it, set | frozenset):
        return sorted(repr(plain(item)) for item in it)
    return _stream(it)


def _stream(it):
    if isinstance(it, torch.Generator):
        return it.get_state().tolist()
    if isinstance(it, random.Random):
        return it.getstate()
    if isinstance(it, np.random.Generator | np.random.RandomState):
        kept = it.get_state(legacy=False) if isinstance(it, np.random.RandomState) else None
        return plain(kept), _stream(it._bit_generator if kept else it.bit_generator)
    if isinstance(it, np.random.BitGenerator):
        return plain(it.state), _stream(it.seed_seq)
    if isinstance(it, np.random.SeedSequence):
        return it.n_children_spawned
    shown = repr(it)
    return "" if " object at 0x" in shown or shown.startswith("<local") else shown


def _bits(tensor):
    if tensor.layout != torch.strided:
        return tensor.to_dense().tolist()
    whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    integers = {4: torch.int32, 8: torch.int64}[whole.element_size()]
    return tensor.dtype, tensor.shape, tensor.stride(), whole.detach().view(integers).tolist()


def _attributes(it):
    slots = [name for name in getattr(type(it), "__slots__", ()) if hasattr(it, name)]
    return [*getattr(it, "__dict__", {}).items(), *((name, getattr(it, name)) for name in slots)]
