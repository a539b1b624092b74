"""Contents of tensors, containers, arrays and random generators, and how they are put back."""

import array
import ctypes
import mmap
import operator
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """One side of an object."""

    restore: Callable[[], None] | None = None  # puts it back as it was; does not touch what hangs on it
    children: Iterable[tuple[object, Any]] = ()  # what hangs on it, by name
    put: Callable[[Any, Any], None] | None = None  # hangs something else there under that name, where that is possible
    around: Iterable[tuple[object, Any]] = ()  # what it can reach, though it does not belong to it


Handler = Callable[[Any], Part]
Children = list[tuple[object, Any]]


def keep_names(
    read: Callable[[], dict[Any, Any]], put: Callable[[Any, Any], None], delete: Callable[[Any], None] | None = None
) -> Part:
    """What is read, put and deleted by name."""
    kept = read()

    def restore() -> None:
        now = read()
        if delete is not None:
            for name in now.keys() - kept.keys():
                delete(name)
        for name, item in kept.items():
            if name not in now or now[name] is not item:
                put(name, item)

    return Part(restore, kept.items(), put)


def keep_attributes(*names: str) -> Handler:
    """A handler for attributes that every object of a kind has."""
    return lambda value: keep_names(lambda: {name: getattr(value, name) for name in names}, partial(setattr, value))


def keep_mapping(value: dict[Any, Any]) -> Part:
    """A dict of any class, with its order."""
    # Not the methods of a subclass: they may check, convert, count or log.
    base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    keys, values = list(base.keys(value)), list(base.values(value))

    def restore() -> None:
        if not _identical(base.keys(value), keys):
            base.clear(value)
        elif _identical(base.values(value), values):
            return
        for key, item in zip(keys, values, strict=True):
            base.__setitem__(value, key, item)

    return Part(restore, zip(keys, values, strict=True), partial(base.__setitem__, value))


def _identical(some: Collection[object], others: Collection[object]) -> bool:
    """Whether both hold the same objects in the same order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _keep_items(base: Any, fill: Callable[[Any, list[Any]], object]) -> Handler:
    """A handler for a list, deque or set of any class."""

    def handler(value: Any) -> Part:
        items = list(base.__iter__(value))

        def restore() -> None:
            if not _identical(list(base.__iter__(value)), items):
                base.clear(value)
                fill(value, items)

        return Part(restore, enumerate(items), None if base is set else partial(base.__setitem__, value))

    return handler


def _keep_whole(read: Callable[[Any], Any], write: Callable[[Any, Any], object], names: Iterable[str] = ()) -> Handler:
    """A handler for what is read and written as a whole, and for attributes that it keeps all its life."""
    return lambda value: Part(
        partial(write, value, read(value)),  # type: ignore[arg-type]
        [(name, getattr(value, name, None)) for name in names],
    )


def _keep_array(value: np.ndarray[Any, Any]) -> Part:
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


def _keep_tensor(value: Tensor) -> Part:
    """Memory, shape, the gradient as an object, `requires_grad`, being a leaf, and values, but for parameters'."""
    # Subclasses may refuse even this, such as parameters without a shape.
    with torch._C.DisableTorchFunctionSubclass():
        held = value.detach()  # the same memory, looked at in the same way
        content = None if isinstance(value, nn.Parameter) or held.is_meta else _dense(held).clone()
        leaf, trained, gradient = value.is_leaf, value.requires_grad, value.grad if value.is_leaf else None

    def restore() -> None:
        with torch._C.DisableTorchFunctionSubclass():
            if leaf and not value.is_leaf:
                value.detach_()
            if _place(value) != _place(held):
                value.data = held
            if content is not None and not _same(_dense(value), content):
                with torch.inference_mode(value.is_inference()):
                    _dense(value).copy_(content)
            if leaf and value.grad is not gradient:
                value.grad = gradient
            if leaf and value.requires_grad != trained:
                value.requires_grad_(trained)

    return Part(restore)


def _place(tensor: Tensor) -> object:
    if tensor.layout != torch.strided or tensor.is_meta:
        return tensor.shape
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _dense(tensor: Tensor) -> Tensor:
    """Without the dimensions along which `expand` repeats: they take no memory and cannot be written."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(None) if stride else slice(0, 1) for stride in tensor.stride())]


def _same(tensor: Tensor, content: Tensor) -> bool:
    """Bitwise, so that a NaN equals itself and a negative zero is none."""
    try:
        bits = (each.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8) for each in (tensor, content))
        return torch.equal(*bits)
    except (NotImplementedError, RuntimeError):  # sparse, quantised, nested
        return False


def checksum(tensor: Tensor) -> float:
    """The sum of a tensor, as it comes out on its device; 0 for what has no values or many owners."""
    if type(tensor) is not Tensor or tensor.is_meta:
        return 0.0
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.view(torch.uint8)
    return tensor.sum(dtype=torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None).item()


CONTENTS: list[tuple[Any, Handler]] = [
    (Tensor, _keep_tensor),
    (dict, keep_mapping),
    (dict, lambda value: Part(children=[("", key) for key in dict.keys(value)])),
    (defaultdict, keep_attributes("default_factory")),
    (list, _keep_items(list, list.extend)),
    (deque, _keep_items(deque, deque.extend)),
    (set, _keep_items(set, set.update)),
    ((tuple, frozenset), lambda value: Part(children=enumerate(value))),
    (np.ndarray, _keep_array),
    (
        (bytearray, array.array),
        _keep_whole(lambda value: value[:], lambda value, content: operator.setitem(value, slice(None), content)),
    ),
    (  # numbers and structures of `ctypes`, perhaps shared between processes
        ctypes._SimpleCData.__mro__[1],
        _keep_whole(bytes, lambda value, content: ctypes.memmove(ctypes.addressof(value), content, len(content))),
    ),
    (torch.Generator, _keep_whole(torch.Generator.get_state, torch.Generator.set_state)),
    (np.random.Generator, lambda value: Part(children=[("bit_generator", value.bit_generator)])),
    (  # with the normal number they may have in store, and with the seeds of those they may spawn
        (random.Random, np.random.RandomState, np.random.BitGenerator),
        _keep_whole(
            lambda value: value.__getstate__(),
            lambda value, state: value.__setstate__(state),
            ["_bit_generator", "seed_seq"],
        ),
    ),
    (  # with the number of those it has spawned
        np.random.SeedSequence,
        _keep_whole(lambda value: value.__reduce__()[-1], lambda value, state: value.__setstate__(state)),
    ),
]
"""A handler for each kind of content, by the classes whose objects have it."""
