"""Kinds of objects: how the attributes of each are put back, where the walk over a model goes, and where it ends."""

import enum
import gc
import mmap
import random
import re
import sys
import threading
import types
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from xai_callbacks.access.contents import CONTENTS, Children, Handler, Part, keep_attributes, keep_mapping, keep_names

# Iterators that cannot be copied.
GENERATORS = (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType, _BaseDataLoaderIter)
BOUND = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
RANDOM = (
    *(torch.Generator, random.Random, np.random.Generator, np.random.RandomState),
    *(np.random.BitGenerator, np.random.SeedSequence),
)
# Classes, not those derived from them, whose objects never change.
PLAIN = {types.NoneType, bool, int, float, complex, str, bytes, range, slice, types.EllipsisType}
# What must not be touched.
_ENDS = (np.memmap, mmap.mmap, random.SystemRandom, enum.Enum, types.CodeType, types.FrameType, types.TracebackType)

# Where classes live whose objects have a life outside the model, as have those of every class that derives from one.
_FOREIGN = re.compile(
    r"(xai_callbacks|pytorch_lightning|lightning|lightning_fabric|tensorboard|tensorboardX|wandb|mlflow|neptune|comet_ml"
    r"|clearml|matplotlib|PIL|tqdm|rich|datasets\.(arrow|iterable)_dataset|logging|io|_io|threading|asyncio|concurrent"
    r"|subprocess|socket|selectors|ssl|sqlite3|tempfile|zipfile|tarfile|inspect|importlib"
    r"|multiprocessing\.(process|queues|pool|managers|context|connection|synchronize)"
    r"|torch\.(optim|utils|fx|distributed|jit|_dynamo|_inductor|_functorch|_ops|amp|cuda|profiler))\."
)
_OF_MODELS = ("Mixin", "AttributeDict")  # Lightning's classes for parts of a model
# Classes and functions of these are no part of a user's model; objects of these classes are.
_LIBRARIES = sys.stdlib_module_names | {
    *("xai_callbacks", "pytorch_lightning", "lightning", "lightning_fabric", "torch", "torchvision", "torchaudio"),
    *("torchmetrics", "numpy", "scipy", "sklearn", "pandas", "timm", "transformers"),
}
_HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)
_WRITTEN_IN_C = ("builtins", "itertools", "collections", "_collections")


def handlers_of(cls: type) -> tuple[Handler, ...]:
    """A handler for each side of the objects of a class; none where the walk ends."""
    if issubclass(cls, GENERATORS):
        return (lambda _: Part(),)
    if cls in PLAIN or issubclass(cls, _ENDS) or _is_foreign(cls):
        return ()
    found: list[Handler] = [handler for kinds, handler in _KINDS if issubclass(cls, kinds)]
    if not issubclass(cls, (type, types.ModuleType, threading.local, Method)):
        if cls.__dictoffset__:
            found.append(_keep_instance)
        if any("__slots__" in vars(base) for base in cls.__mro__):
            found.append(_keep_slots)
    if not found and is_replaced(cls):
        found.append(lambda value: Part(children=enumerate((reduced(value) or ((), ()))[1])))
    elif not found:  # written in C: what it refers to can be found, what it holds itself cannot
        found.append(lambda value: Part(children=[("", item) for item in gc.get_referents(value)]))
    return tuple(found)


def _is_foreign(cls: type) -> bool:
    return not issubclass(cls, (nn.Module, Tensor, Method)) and any(
        _FOREIGN.match(f"{base.__module__}.") and not base.__name__.endswith(_OF_MODELS) for base in cls.__mro__
    )


def is_replaced(cls: type) -> bool:
    """Whether objects are iterators whose position Python code cannot set, or may hold one for ever."""
    return issubclass(cls, (tuple, *GENERATORS, *BOUND)) or any(
        "__next__" in vars(base) and base.__module__ in _WRITTEN_IN_C for base in cls.__mro__
    )


def reduced(iterator: Any) -> tuple[Any, ...] | None:
    """What rebuilds an iterator, `(make, arguments)` or `(make, arguments, state)`; None if nothing does."""
    with suppress(Exception):  # whatever a class raises that cannot be copied
        parts = iterator.__reduce__()
        return parts if isinstance(parts, tuple) else None
    return None


def is_library(module: object) -> bool:
    """Whether code of a module is none of the user's."""
    return str(module).partition(".")[0] in _LIBRARIES


def _home(module: object) -> types.ModuleType | None:
    """The file of some code, if it is the user's."""
    return None if is_library(module) else sys.modules.get(str(module))


@dataclass(eq=False)
class Method:
    """A function in a class: what is around it does not belong to it, such as a list in which somebody counts calls."""

    function: types.FunctionType


def _keep_instance(value: Any) -> Part:
    try:
        namespace: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:  # written in C, and for its own use
        return Part()
    cls = type(value)
    if not namespace and cls in (Tensor, nn.Parameter):  # nearly all tensors
        return Part(namespace.clear)
    part = keep_mapping(namespace)
    tables: list[tuple[Any, dict[Any, Any]]] = []
    if issubclass(cls, nn.Module):
        part = part._replace(children=[pair for pair in namespace.items() if pair[0] not in _HOOK_TABLES])
        tables = [(table, dict(table)) for name in _HOOK_TABLES if (table := namespace.get(name)) is not None]

    def restore() -> None:
        if type(value) is not cls:
            object.__setattr__(value, "__class__", cls)
        if object.__getattribute__(value, "__dict__") is not namespace:
            object.__setattr__(value, "__dict__", namespace)
        part.restore()  # type: ignore[misc]  # a mapping has one
        for table, kept in tables:
            if [*table] != [*kept]:  # a model that hooks itself at its first pass also notes that it has done so
                table.clear()
                table.update(kept)

    return part._replace(restore=restore, around=[("hook", hook) for _, kept in tables for hook in kept.values()])


def _keep_slots(value: Any) -> Part:
    bases = [base for base in reversed(type(value).__mro__) if "__slots__" in vars(base)]
    names: dict[str, Any] = {name: each for base in bases for name, each in vars(base).items()}
    slots = {name: each for name, each in names.items() if isinstance(each, types.MemberDescriptorType)}

    def read() -> dict[str, Any]:
        found = {}
        for name, slot in slots.items():
            with suppress(AttributeError):
                found[name] = slot.__get__(value)
        return found

    return keep_names(read, lambda key, item: slots[key].__set__(value, item), lambda key: slots[key].__delete__(value))


def _keep_class(value: type) -> Part:
    """The attributes of a user's class, and of those it derives from."""
    if is_library(value.__module__):
        return Part()

    def read() -> dict[str, Any]:
        # Names with two underscores are Python's own; of these only functions are looked at.
        return {name: item for name, item in vars(value).items() if not name.startswith("__")}

    part = keep_names(read, partial(type.__setattr__, value), partial(type.__delattr__, value))
    children: Children = [(name, item) for name, item in part.children if not isinstance(item, _FUNCTIONS)]
    for name, item in vars(value).items():
        parts = (item.fget, item.fset, item.fdel) if isinstance(item, property) else (item,)
        plain = [each.__func__ if isinstance(each, (staticmethod, classmethod)) else each for each in parts]
        children += [(name, Method(each)) for each in plain if isinstance(each, types.FunctionType)]
    children += [("", base) for base in value.__bases__] + [("", _home(value.__module__))]
    return part._replace(children=children)


def _keep_function(value: types.FunctionType | Method) -> Part:
    """The defaults of a function, and its closure, which is merely around a function in a class."""
    function = value.function if isinstance(value, Method) else value
    part = keep_attributes("__defaults__", "__kwdefaults__")(function)
    closure: Children = list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    children: Children = [*part.children, ("", _home(function.__globals__.get("__name__")))]
    inside, around = ([], closure) if isinstance(value, Method) else (closure, [])
    return part._replace(children=children + inside, around=around)


def _keep_cell(value: types.CellType) -> Part:
    """A variable of a closure, perhaps without a value."""

    def read() -> dict[str, Any]:
        with suppress(ValueError):
            return {"cell_contents": value.cell_contents}
        return {}

    return keep_names(read, partial(setattr, value), partial(delattr, value))


def _keep_partial(value: partial[Any]) -> Part:

    def read() -> dict[str, Any]:
        return {"func": value.func, "args": value.args, "keywords": value.keywords}

    def put(name: str, item: object) -> None:
        value.__setstate__((*(read() | {name: item}).values(), vars(value)))  # type: ignore[attr-defined]

    return keep_names(read, put)


def _keep_script(value: Any) -> Part:
    """The attributes of a scripted module, which live in C++; lists and dicts come out as copies."""
    names = value._concrete_type.get_attributes()
    part = keep_names(lambda: {name: value._c.getattr(name) for name in names}, value._c.setattr)
    return part._replace(children=[*part.children, *value._parameters.items(), *value._modules.items()], put=None)


_KINDS: list[tuple[Any, Handler]] = [
    *CONTENTS,
    ((types.FunctionType, Method), _keep_function),
    (types.CellType, _keep_cell),
    (BOUND, lambda value: Part(children=[("", value.__self__)], around=[("", getattr(value, "__func__", None))])),
    (partial, _keep_partial),
    ((staticmethod, classmethod), lambda value: Part(children=[("", value.__func__)])),
    (torch.jit.ScriptModule, _keep_script),
    (type, lambda value: Part() if _is_foreign(value) else _keep_class(value)),
    (types.ModuleType, lambda value: Part(children=[it for it in [*vars(value).items()] if isinstance(it[1], RANDOM)])),
    (threading.local, lambda value: keep_mapping(value.__dict__)),
]
