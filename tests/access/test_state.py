"""Whatever hangs on a model is afterwards as it was before: contents, identity, places."""

from __future__ import annotations

import array
import ctypes
import functools
import gc
import itertools
import multiprocessing
import random
import threading
import types
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from tests.access.owners import Frozen, Helper, Owner, Pair, Slotted, plain, torch_generator
from xai_callbacks.access import undisturbed

RNG = {  # what is made, and what a forward pass does to it
    "torch.Generator": (torch_generator, lambda it: torch.rand(3, generator=it)),
    "Generator": (lambda: np.random.default_rng(0), lambda it: it.normal()),
    "Generator, Mersenne": (lambda: np.random.Generator(np.random.MT19937(0)), lambda it: it.random(dtype=np.float32)),
    "Generator, spawning": (lambda: np.random.default_rng(0), lambda it: it.spawn(2)),
    "RandomState": (lambda: np.random.RandomState(0), lambda it: it.randn()),
    "SeedSequence": (lambda: np.random.SeedSequence(0), lambda it: it.spawn(1)),
    "PCG64": (lambda: np.random.PCG64(0), lambda it: it.random_raw()),
    "Random": (lambda: random.Random(0), lambda it: it.gauss(0, 1)),
    "Sobol": (lambda: torch.quasirandom.SobolEngine(2, seed=0), lambda it: it.draw(2)),
}


class Stack(list):
    depth = 1


def locked(array):
    array.setflags(write=False)
    return array


def mask(it):
    it[1] = 5


CONTAINERS = {
    "list": (lambda: [1, [2]], lambda it: (it.append(3), it[1].clear())),
    "list of a class": (lambda: Stack([1]), lambda it: (it.pop(), setattr(it, "depth", 2))),
    "dict": (lambda: {"a": {"b": 1}, 2: 3}, lambda it: (it.pop("a").clear(), it.update(c=1))),
    "dict, order": (lambda: {"a": 1, "b": 2}, lambda it: it.update(a=it.pop("a"))),
    "dict, key": (lambda: {Helper(calls=0): 1}, lambda it: next(iter(it)).__dict__.update(calls=1)),
    "OrderedDict": (lambda: OrderedDict(a=1, b=2), lambda it: it.move_to_end("a")),
    "defaultdict": (lambda: defaultdict(list, a=[1]), lambda it: (it["a"].append(1), it["b"])),
    "defaultdict, factory": (lambda: defaultdict(list), lambda it: setattr(it, "default_factory", int)),
    "Counter": (lambda: Counter("abb"), lambda it: it.update("ab")),
    "UserDict": (lambda: UserDict(a=1), lambda it: it.update(a=2, b=3)),
    "deque": (lambda: deque([1, 2, 3], maxlen=3), lambda it: (it.append(4), it.rotate())),
    "set": (lambda: {1, 2}, lambda it: (it.add(3), it.remove(1))),
    "tuple": (lambda: ([1], torch.zeros(1)), lambda it: (it[0].append(2), it[1].add_(1))),
    "namedtuple": (lambda: Pair([1], {}), lambda it: (it.first.append(2), it.second.update(a=1))),
    "frozenset": (lambda: frozenset([Helper()]), lambda it: [setattr(each, "x", 1) for each in it]),
    "read-only mapping": (lambda: types.MappingProxyType({"a": [1]}), lambda it: it["a"].append(1)),
    "bytearray": (lambda: bytearray(b"abc"), lambda it: it.append(1)),
    "array": (lambda: array.array("d", [1.0, float("nan")]), lambda it: (it.append(2.0), it.pop(0))),
    "ctypes": (lambda: ctypes.c_int(3), lambda it: setattr(it, "value", 4)),
    "shared number": (lambda: multiprocessing.Value("i", 3), lambda it: setattr(it, "value", 4)),
    "slots": (Slotted, lambda it: (setattr(it, "calls", 1), setattr(it, "late", 1), it.rng.random())),
    "frozen dataclass": (Frozen, lambda it: (it.rng.random(), it.seen.append(1))),
    "object": (lambda: Helper(calls=0, gone=1), lambda it: (vars(it).pop("gone"), vars(it).update(calls=1, new=1))),
    "object's dict": (lambda: Helper(calls=0), lambda it: setattr(it, "__dict__", {"calls": 1})),
    "object's class": (Helper, lambda it: setattr(it, "__class__", type("Other", (Helper,), {}))),
    "namespace": (lambda: types.SimpleNamespace(x=1), lambda it: setattr(it, "x", 2)),
    "thread's own": (threading.local, lambda it: setattr(it, "x", 2)),
}

ARRAYS = {
    "numbers": (lambda: np.array([0.0, np.nan]), lambda it: np.copyto(it, [-0.0, 1.0])),
    "no dimensions": (lambda: np.array(3), lambda it: it.__iadd__(1)),
    "records": (lambda: np.zeros(2, [("a", "i4"), ("b", "f8")]), lambda it: it["b"].fill(1)),
    "objects": (lambda: np.array([{"a": 1}, None], object), lambda it: (it[0].clear(), it.fill(3))),
    "resized": (lambda: np.arange(3), lambda it: it.resize(5, refcheck=False)),
    "view": (lambda: np.arange(6)[::2], lambda it: it.fill(7)),
    "masked": (lambda: np.ma.array([1, 2], mask=[0, 1]), mask),
    "locked": (lambda: np.arange(3), locked),
    "unlocked": (lambda: locked(np.arange(3)), lambda it: (it.setflags(write=True), it.fill(9))),
    "read-only view": (lambda: locked(np.arange(3).view()), lambda it: it.base.fill(7)),
}

TENSORS = {
    "values": (lambda: torch.tensor([0.0, float("nan")]), lambda it: it.copy_(torch.tensor([-0.0, 1.0]))),
    "through .data": (lambda: torch.zeros(2), lambda it: it.data.fill_(1)),
    "other .data": (lambda: torch.zeros(2), lambda it: setattr(it, "data", torch.ones(3))),
    "resized": (lambda: torch.arange(2.0), lambda it: it.resize_(4).fill_(3)),
    "transposed": (lambda: torch.rand(2, 3), lambda it: it.t_()),
    "repeated": (lambda: torch.zeros(2, 1).expand(2, 5), lambda it: it[:, 0].fill_(3)),
    "graph": (lambda: torch.zeros(2), lambda it: it.add_(torch.ones(2, requires_grad=True))),
    "attribute": (lambda: torch.zeros(2), lambda it: setattr(it, "note", 1)),
    "gradient": (lambda: torch.zeros(2, requires_grad=True), lambda it: it.sum().backward()),
    "requires_grad": (lambda: torch.zeros(2), lambda it: it.requires_grad_()),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex128), lambda it: it.fill_(1j)),
    "sparse": (lambda: torch.eye(2).to_sparse(), lambda it: it.mul_(2)),
    "nested": (lambda: [{"a": torch.zeros(2)}], lambda it: it[0]["a"].add_(1)),
    "replaced": (lambda: {"a": torch.zeros(2)}, lambda it: it.update(a=torch.ones(2))),
}

ALL = {
    f"{group}: {kind}": case
    for group, cases in [("random", RNG), ("container", CONTAINERS), ("array", ARRAYS), ("tensor", TENSORS)]
    for kind, case in cases.items()
}


@pytest.mark.parametrize("raises", [False, True], ids=["", "raises"])
@pytest.mark.parametrize("kind", ALL)
def test_contents_return(kind, raises):
    make, act = ALL[kind]
    model = Owner(thing := make())
    before = plain(thing)
    try:
        with undisturbed(model):
            act(thing)
            assert plain(thing) != before
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert plain(thing) == before
    assert model.thing is thing


def keyword_default(it):
    def function(*, it=it):
        return it

    return function


def with_attribute(it):
    def function():
        return function.it

    function.it = it
    return function


def on_tensor(it):
    tensor = torch.zeros(1)
    tensor.it = it
    return tensor


HOLDERS = {
    "list": lambda it: [1, it],
    "dict": lambda it: {"a": {"b": it}},
    "tuple": lambda it: ((it,),),
    "deque": lambda it: deque([it]),
    "array": lambda it: np.array([it, None], object),
    "object": lambda it: Helper(inner=Helper(it=it)),
    "dataclass": lambda it: Frozen(seen=[it]),
    "closure": lambda it: lambda: it,
    "default": lambda it: lambda it=it: it,
    "keyword default": keyword_default,
    "partial": lambda it: functools.partial(print, it),
    "partial, keyword": lambda it: functools.partial(print, it=it),
    "method": lambda it: Helper(it=it).method,
    "function's attribute": with_attribute,
    "module in a list": lambda it: [Owner(it)],
    "lru_cache": lambda it: functools.lru_cache(lambda: it),
    "iterator": lambda it: map(lambda _: it, [1, 2, 3]),  # noqa: C417
    "tensor's attribute": on_tensor,
}


@pytest.mark.parametrize(
    "kind", ["random: torch.Generator", "random: RandomState", "tensor: values", "container: dict"]
)
@pytest.mark.parametrize("holder", HOLDERS)
def test_contents_return_wherever_they_hang(holder, kind):
    make, act = ALL[kind]
    model = Owner(HOLDERS[holder](thing := make()))
    before = plain(thing)
    with undisturbed(model):
        act(thing)
        assert plain(thing) != before
    assert plain(thing) == before


# ---- identity


def test_what_is_shared_stays_shared():
    model = Owner([1])
    model.other, model.rngs = model.thing, [torch_generator()] * 2
    shared, rng = model.thing, model.rngs[0]
    with undisturbed(model):
        model.thing.append(2)
        model.other = [3]
        model.rngs[0], model.rngs[1] = None, torch_generator()
    assert model.thing is model.other is shared
    assert model.rngs[0] is model.rngs[1] is rng
    assert shared == [1]


def test_circles_are_walked_once():
    model = Owner(Helper(calls=0))
    model.thing.model, model.circle = model, [{}]
    model.circle[0]["self"] = model.circle
    with undisturbed(model):
        model.thing.calls += 1
        model.circle.clear()
    assert model.thing.calls == 0
    assert model.circle[0]["self"] is model.circle


def test_deep_nesting_is_no_recursion():
    model = Owner(inner := [])
    for _ in range(5000):
        model.thing = [model.thing]
    with undisturbed(model):
        inner.append(1)
    assert inner == []


def test_new_parts_go_and_removed_ones_come_back_in_their_place():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    first, names = model[0], list(model.state_dict())
    with undisturbed(model):
        del model[0]
        model.late, model.extra = nn.Linear(1, 1), nn.Parameter(torch.zeros(1))
        model[0].weight = nn.Parameter(torch.zeros(2, 2))
    assert model[0] is first
    assert list(model.state_dict()) == names
    assert len(model) == 3


def test_nothing_is_kept_alive():
    model = Owner([Helper(x=torch.zeros(3), rng=torch_generator(), ids=itertools.count())])
    gone = weakref.ref(model), weakref.ref(model.thing[0]), weakref.ref(model.thing[0].x)
    gc.disable()
    try:
        with undisturbed(model):
            model.thing[0].x += 1
        del model
        assert [one() for one in gone] == [None] * 3
    finally:
        gc.enable()
