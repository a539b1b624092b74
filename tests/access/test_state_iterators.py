"""Iterators that hang on a model go on where they were, or refuse to go on."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.access.owners import Frozen, Helper, Owner, Pair
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError

ITERATORS = {
    "count": (lambda: itertools.count(5, 2), [5, 7]),
    "cycle": (lambda: itertools.cycle([1, 2, 3]), [1, 2, 3, 1, 2]),
    "cycle, second time": (lambda: advanced(itertools.cycle([1, 2, 3]), 4), [2, 3, 1]),
    "cycle of an iterator": (lambda: itertools.cycle(iter(range(2))), [0, 1, 0]),
    "list": (lambda: advanced(iter([1, 2, 3]), 1), [2, 3]),
    "dict": (lambda: iter({"a": 1, "b": 2}), ["a", "b"]),
    "map": (lambda: map(str, itertools.count()), ["0", "1"]),
    "zip": (lambda: zip("abc", itertools.count(), strict=False), [("a", 0), ("b", 1)]),
    "enumerate": (lambda: advanced(enumerate("abc"), 1), [(1, "b"), (2, "c")]),
    "islice": (lambda: advanced(itertools.islice(itertools.count(), 1, 9, 3), 1), [4, 7]),
    "chain": (lambda: advanced(itertools.chain([1], iter([2, 3])), 1), [2, 3]),
    "chain of iterators": (lambda: itertools.chain.from_iterable(iter([[1], [2]])), [1, 2]),
    "accumulate": (lambda: advanced(itertools.accumulate([1, 2, 3]), 1), [3, 6]),
    "product": (lambda: advanced(itertools.product([0, 1], repeat=2), 1), [(0, 1), (1, 0)]),
    "tee": (lambda: itertools.tee([1, 2, 3])[0], [1, 2]),
    "until": (lambda: iter(iter([1, 2, 0]).__next__, 0), [1, 2]),
}


def advanced(iterator, count):
    for _ in range(count):
        next(iterator)
    return iterator


@pytest.mark.parametrize("kind", ITERATORS)
def test_iterators_go_on_where_they_were(kind):
    make, expected = ITERATORS[kind]
    model = Owner(make())
    iterator = model.thing
    for _ in range(2):
        with undisturbed(model):
            assert [next(model.thing) for _ in expected] == expected
    assert model.thing is iterator
    assert [next(iterator) for _ in expected] == expected


def of_thread(ids):
    local = threading.local()
    local.ids = ids
    return local


TICKS = {
    "list": (lambda ids: [ids], lambda it: next(it[0])),
    "dict": (lambda ids: {"ids": ids}, lambda it: next(it["ids"])),
    "deque": (lambda ids: deque([ids]), lambda it: next(it[0])),
    "tuple": (lambda ids: (1, (ids,)), lambda it: next(it[1][0])),
    "named tuple": (lambda ids: Pair(1, ids), lambda it: next(it.second)),
    "object": (lambda ids: Helper(ids=ids), lambda it: next(it.ids)),
    "method": (lambda ids: ids.__next__, lambda it: it()),
    "partial": (lambda ids: functools.partial(next, ids), lambda it: it()),
    "closure": (lambda ids: lambda: next(ids), lambda it: it()),
    "default": (lambda ids: lambda ids=ids: next(ids), lambda it: it()),
    "class": (lambda ids: type("Numbered", (), {"ids": ids, "__module__": __name__})(), lambda it: next(it.ids)),
    "array": (lambda ids: np.array([ids, None], object), lambda it: next(it[0])),
    "frozen dataclass": (lambda ids: Frozen(seen=ids), lambda it: next(it.seen)),
    "module": (lambda ids: [Owner(ids)], lambda it: next(it[0].thing)),
    "thread's own": (of_thread, lambda it: next(it.ids)),
}


@pytest.mark.parametrize("holder", TICKS)
def test_iterators_go_on_wherever_they_hang(holder):
    hold, tick = TICKS[holder]
    ids = itertools.count()
    model = Owner(hold(ids))
    model.shared = ids
    thing = model.thing
    assert tick(model.thing) == 0
    with undisturbed(model):
        assert (tick(model.thing), next(model.shared), tick(model.thing)) == (1, 2, 3)
    assert model.shared is ids
    assert model.thing is thing
    assert (tick(model.thing), next(ids)) == (1, 2)


def counting():
    yield from itertools.count()


@pytest.mark.parametrize("holder", TICKS)
def test_generators_that_cannot_be_copied_refuse_and_stay_where_they_were(holder):
    hold, tick = TICKS[holder]
    model = Owner(hold(counting()))
    assert tick(model.thing) == 0
    message = r"Expected `model\.thing.*` to be left alone .* itertools\.count"
    with pytest.raises(ConfigurationError, match=message), undisturbed(model):
        tick(model.thing)
    assert tick(model.thing) == 1


def test_generators_that_are_not_advanced_do_no_harm():
    model = Owner(counting())
    with undisturbed(model):
        pass
    assert next(model.thing) == 0


def test_iterators_of_data_loaders_refuse():
    model = Owner(iter(DataLoader(range(4))))
    with pytest.raises(ConfigurationError, match=r"model\.thing"), undisturbed(model):
        next(model.thing)
    assert next(model.thing) == 0
