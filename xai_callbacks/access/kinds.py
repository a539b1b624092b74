"""Where the walk of `kept_state` goes, and where it ends: the table of kinds."""

from __future__ import annotations

import array
import ctypes
import datetime
import enum
import functools
import gc
import mmap
import pathlib
import random
import threading
import types
import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai_callbacks.access.contents import (
    Handler,
    Part,
    keep_array,
    keep_attributes,
    keep_bit_generator,
    keep_bytes,
    keep_mapping,
    keep_memory,
    keep_python_random,
    keep_random_state,
    keep_seed_sequence,
    keep_sequence,
    keep_set,
    keep_torch_generator,
)
from xai_callbacks.access.iterators import GENERATORS, needs_stand_in, parts_of
from xai_callbacks.access.namespaces import (
    Method,
    is_library,
    keep_bound,
    keep_cell,
    keep_class,
    keep_function,
    keep_instance,
    keep_method,
    keep_partial,
    keep_script,
    keep_slots,
)
from xai_callbacks.access.tensors import keep_tensor

__all__ = ["PLAIN", "RANDOM", "handlers_of"]

RANDOM = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    np.random.SeedSequence,
)
"""Sources of random numbers."""

PLAIN = {types.NoneType, bool, int, float, complex, str, bytes, range, slice, types.EllipsisType}
"""Classes, not those derived from them, whose objects never change."""

# What a forward pass does not change, and what must not be touched.
_ENDS = (
    *(torch.dtype, torch.device, torch.Size, np.generic, np.memmap, mmap.mmap, random.SystemRandom),
    *(enum.Enum, pathlib.PurePath, datetime.date, datetime.timedelta, types.GenericAlias),
    *(types.CodeType, types.FrameType, types.TracebackType, types.GetSetDescriptorType, types.MemberDescriptorType),
    *(types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
    *(weakref.ReferenceType, weakref.ProxyType, weakref.CallableProxyType),
)

# Where classes live whose objects have a life outside the model, as have those of every class that derives from one.
_FOREIGN = tuple(
    f"{name}."
    for name in (
        *("xai_callbacks", "pytorch_lightning", "lightning", "lightning_fabric", "torch.optim", "torch.utils"),
        *("torch.fx", "torch.distributed", "torch.jit", "torch._dynamo", "torch._inductor", "torch._functorch"),
        *("torch._ops", "torch.amp", "torch.cuda", "torch.profiler", "tensorboard", "tensorboardX", "wandb", "mlflow"),
        *("neptune", "comet_ml", "clearml", "matplotlib", "PIL", "tqdm", "rich", "datasets.arrow_dataset"),
        *("datasets.iterable_dataset", "logging", "io", "_io", "threading", "asyncio", "concurrent", "subprocess"),
        *("socket", "selectors", "ssl", "sqlite3", "tempfile", "zipfile", "tarfile", "inspect", "importlib"),
        *("multiprocessing.process", "multiprocessing.queues", "multiprocessing.pool", "multiprocessing.managers"),
        *("multiprocessing.context", "multiprocessing.connection", "multiprocessing.synchronize"),
    )
)
_OF_MODELS = ("Mixin", "AttributeDict")  # Lightning's classes for parts of a model


def handlers_of(cls: type) -> tuple[Handler, ...]:
    """A handler for each side of the objects of a class; none where the walk ends."""
    if issubclass(cls, GENERATORS):
        return (_iterator,)
    if cls in PLAIN or issubclass(cls, _ENDS) or _is_foreign(cls):
        return ()
    found: list[Handler] = [handler for kinds, handler in _KINDS if issubclass(cls, kinds)]
    if not issubclass(cls, (type, types.ModuleType, threading.local, Method)):
        if cls.__dictoffset__:
            found.append(keep_instance)
        if any("__slots__" in vars(base) for base in cls.__mro__):
            found.append(keep_slots)
    if not found:
        found.append(_iterator if needs_stand_in(cls) else _written_in_c)
    return tuple(found)


def _is_foreign(cls: type) -> bool:
    return not issubclass(cls, (nn.Module, Tensor, Method)) and any(
        f"{base.__module__}.".startswith(_FOREIGN) and not base.__name__.endswith(_OF_MODELS) for base in cls.__mro__
    )


def _elements(value: tuple[Any, ...] | frozenset[Any]) -> Part:
    return Part(children=enumerate(value))


def _iterator(value: Any) -> Part:
    return Part(children=enumerate(parts_of(value)))


def _written_in_c(value: object) -> Part:
    """What it refers to can be found, what it holds itself cannot."""
    return Part(children=[("", item) for item in gc.get_referents(value)])


def _class(value: type) -> Part:
    return Part() if _is_foreign(value) else keep_class(value)


def _globals(value: types.ModuleType) -> Part:
    if is_library(value.__name__):
        return Part()
    return Part(children=[(name, item) for name, item in list(vars(value).items()) if issubclass(type(item), RANDOM)])


_KINDS: list[tuple[Any, Handler]] = [
    (Tensor, lambda value: Part(keep_tensor(value))),
    (dict, keep_mapping),
    (defaultdict, keep_attributes("default_factory")),
    ((list, deque), keep_sequence),
    (set, keep_set),
    ((tuple, frozenset), _elements),
    (np.ndarray, keep_array),
    ((bytearray, array.array), keep_bytes),
    (ctypes._SimpleCData.__mro__[1], keep_memory),
    (torch.Generator, keep_torch_generator),
    (random.Random, keep_python_random),
    (np.random.Generator, lambda value: Part(children=[("bit_generator", value.bit_generator)])),
    (np.random.RandomState, keep_random_state),
    (np.random.BitGenerator, keep_bit_generator),
    (np.random.SeedSequence, keep_seed_sequence),
    (types.FunctionType, keep_function),
    (Method, keep_method),
    (types.CellType, keep_cell),
    ((types.MethodType, types.BuiltinMethodType, types.MethodWrapperType), keep_bound),
    (functools.partial, keep_partial),
    ((staticmethod, classmethod), lambda value: Part(children=[("", value.__func__)])),
    (type, _class),
    (types.ModuleType, _globals),
    (threading.local, lambda value: keep_mapping(value.__dict__)),
    (torch.jit.ScriptModule, keep_script),
]
