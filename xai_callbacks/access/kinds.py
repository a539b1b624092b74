"""Kinds of objects: how the attributes of each are put back, where the walk of `kept_state` goes, and where it ends."""

from __future__ import annotations

import datetime
import enum
import gc
import mmap
import pathlib
import random
import sys
import threading
import types
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai_callbacks.access.contents import CONTENTS, Children, Handler, Part, keep_attributes, keep_mapping, keep_names
from xai_callbacks.access.iterators import GENERATORS, needs_stand_in, parts_of

__all__ = ["PLAIN", "RANDOM", "handlers_of", "is_library"]

RANDOM = (
    *(torch.Generator, random.Random, np.random.Generator, np.random.RandomState),
    *(np.random.BitGenerator, np.random.SeedSequence),
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
# Classes and functions of these are no part of a user's model; objects of these classes are.
_LIBRARIES = sys.stdlib_module_names | {
    *("xai_callbacks", "pytorch_lightning", "lightning", "lightning_fabric", "torch", "torchvision", "torchaudio"),
    *("torchmetrics", "numpy", "scipy", "sklearn", "pandas", "timm", "transformers"),
}
_HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)

_keep_defaults = keep_attributes("__defaults__", "__kwdefaults__")


def handlers_of(cls: type) -> tuple[Handler, ...]:
    """A handler for each side of the objects of a class; none where the walk ends."""
    if issubclass(cls, GENERATORS):
        return (_iterator,)
    if cls in PLAIN or issubclass(cls, _ENDS) or _is_foreign(cls):
        return ()
    found: list[Handler] = [handler for kinds, handler in _KINDS if issubclass(cls, kinds)]
    if not issubclass(cls, (type, types.ModuleType, threading.local, Method)):
        if cls.__dictoffset__:
            found.append(_keep_instance)
        if any("__slots__" in vars(base) for base in cls.__mro__):
            found.append(_keep_slots)
    if not found:
        found.append(_iterator if needs_stand_in(cls) else _written_in_c)
    return tuple(found)


def _is_foreign(cls: type) -> bool:
    return not issubclass(cls, (nn.Module, Tensor, Method)) and any(
        f"{base.__module__}.".startswith(_FOREIGN) and not base.__name__.endswith(_OF_MODELS) for base in cls.__mro__
    )


def _iterator(value: Any) -> Part:
    return Part(children=enumerate(parts_of(value)))


def _written_in_c(value: object) -> Part:
    """What it refers to can be found, what it holds itself cannot."""
    return Part(children=[("", item) for item in gc.get_referents(value)])


def _globals(value: types.ModuleType) -> Part:
    if is_library(value.__name__):
        return Part()
    return Part(children=[(name, item) for name, item in list(vars(value).items()) if issubclass(type(item), RANDOM)])


@dataclass(eq=False)
class Method:
    """A function in a class: what is around it does not belong to it, such as a list in which somebody counts calls."""

    function: types.FunctionType


def is_library(module: object) -> bool:
    """Whether code of a module is none of the user's."""
    return str(module).partition(".")[0] in _LIBRARIES


def _home(module: object) -> types.ModuleType | None:
    """The file of some code, if it is the user's."""
    return None if is_library(module) else sys.modules.get(str(module))


def _keep_instance(value: Any) -> Part:
    """The attributes and the class of an object."""
    try:
        namespace: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:  # written in C, and for its own use
        return Part()
    cls = type(value)
    if not namespace and cls in (Tensor, nn.Parameter):  # nearly all tensors
        return Part(namespace.clear)
    part, children = keep_mapping(namespace), None
    hooks: list[tuple[Any, Children]] = []
    if issubclass(cls, nn.Module):
        children = [(name, item) for name, item in namespace.items() if name not in _HOOK_TABLES]
        hooks = [(table, list(table.items())) for name in _HOOK_TABLES if (table := namespace.get(name))]

    def restore() -> None:
        if type(value) is not cls:
            object.__setattr__(value, "__class__", cls)
        if object.__getattribute__(value, "__dict__") is not namespace:
            object.__setattr__(value, "__dict__", namespace)
        part.restore()  # type: ignore[misc]  # a mapping has one
        for table, kept in hooks:
            if not dict(kept).keys() <= table.keys():
                # Those registered meanwhile stay: somebody holds their handles.
                now = {**dict(kept), **table}
                table.clear()
                table.update(now)

    around = [("hook", hook) for _, kept in hooks for _, hook in kept]
    return Part(restore, part.children if children is None else children, part.put, around)


def _keep_slots(value: Any) -> Part:
    """The attributes of an object for which its class has `__slots__`."""
    slots: dict[str, Any] = {
        name: slot
        for base in reversed(type(value).__mro__)
        if "__slots__" in vars(base)
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType)
    }

    def read() -> dict[str, Any]:
        found = {}
        for name, slot in slots.items():
            with suppress(AttributeError):
                found[name] = slot.__get__(value)
        return found

    def put(name: str, item: object) -> None:
        slots[name].__set__(value, item)

    return keep_names(read, put, lambda name: slots[name].__delete__(value))


def _keep_class(value: type) -> Part:
    """The attributes of a user's class, and of those it derives from."""
    if is_library(value.__module__):
        return Part()

    def read() -> dict[str, Any]:
        # Names with two underscores are Python's own; of these only functions are looked at.
        return {name: item for name, item in vars(value).items() if not name.startswith("__")}

    part = keep_names(read, partial(type.__setattr__, value), partial(type.__delattr__, value))
    children: Children = [(name, item) for name, item in part.children if not isinstance(item, _FUNCTIONS)]
    children += [(name, Method(each)) for name, item in vars(value).items() for each in _functions(item)]
    children += [("", base) for base in value.__bases__] + [("", _home(value.__module__))]
    return part._replace(children=children)


def _functions(value: object) -> list[types.FunctionType]:
    if isinstance(value, property):
        found: list[object] = [value.fget, value.fset, value.fdel]
    else:
        found = [value.__func__ if isinstance(value, (staticmethod, classmethod)) else value]
    return [each for each in found if isinstance(each, types.FunctionType)]


def _keep_function(value: types.FunctionType | Method) -> Part:
    """The defaults of a function, and its closure, which is merely around a function in a class."""
    function = value.function if isinstance(value, Method) else value
    part = _keep_defaults(function)
    closure: Children = list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    children: Children = [*part.children, ("", _home(function.__globals__.get("__name__")))]
    if isinstance(value, Method):
        return part._replace(children=children, around=closure)
    return part._replace(children=children + closure)


def _keep_cell(value: types.CellType) -> Part:
    """A variable of a closure, perhaps without a value."""

    def read() -> dict[str, Any]:
        with suppress(ValueError):
            return {"cell_contents": value.cell_contents}
        return {}

    return keep_names(read, partial(setattr, value), partial(delattr, value))


def _keep_partial(value: partial[Any]) -> Part:
    """The function and the arguments of a partial."""

    def read() -> dict[str, Any]:
        return {"func": value.func, "args": value.args, "keywords": value.keywords}

    def put(name: str, item: object) -> None:
        value.__setstate__((*(read() | {name: item}).values(), vars(value)))  # type: ignore[attr-defined]

    return keep_names(read, put)


def _keep_script(value: Any) -> Part:
    """The attributes of a scripted module, which live in C++; lists and dicts come out as copies."""
    names = value._concrete_type.get_attributes()
    part = keep_names(lambda: {name: value._c.getattr(name) for name in names}, value._c.setattr)
    return Part(part.restore, [*part.children, *value._parameters.items(), *value._modules.items()])


_KINDS: list[tuple[Any, Handler]] = [
    *CONTENTS,
    ((types.FunctionType, Method), _keep_function),
    (types.CellType, _keep_cell),
    (  # bound methods; their function is that of a class
        (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType),
        lambda value: Part(children=[("", value.__self__)], around=[("", getattr(value, "__func__", None))]),
    ),
    (partial, _keep_partial),
    ((staticmethod, classmethod), lambda value: Part(children=[("", value.__func__)])),
    (torch.jit.ScriptModule, _keep_script),
    (type, lambda value: Part() if _is_foreign(value) else _keep_class(value)),
    (types.ModuleType, _globals),
    (threading.local, lambda value: keep_mapping(value.__dict__)),
]
