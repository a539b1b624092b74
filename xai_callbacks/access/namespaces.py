"""What hangs on objects, functions and classes by name, and how it is put back."""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any

from torch import Tensor, nn

from xai_callbacks.access.contents import Children, Part, keep_attributes, keep_mapping

__all__ = [
    "Method",
    "is_library",
    "keep_bound",
    "keep_cell",
    "keep_class",
    "keep_function",
    "keep_instance",
    "keep_method",
    "keep_partial",
    "keep_script",
    "keep_slots",
]

# Classes and functions of these are no part of a user's model; objects of these classes are.
_LIBRARIES = sys.stdlib_module_names | {
    *("xai_callbacks", "pytorch_lightning", "lightning", "lightning_fabric", "torch", "torchvision", "torchaudio"),
    *("torchmetrics", "numpy", "scipy", "sklearn", "pandas", "timm", "transformers"),
}
_HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)

_keep_defaults = keep_attributes("__defaults__", "__kwdefaults__")


def is_library(module: object) -> bool:
    """Whether code of a module is none of the user's."""
    return str(module).partition(".")[0] in _LIBRARIES


def _home(module: object) -> types.ModuleType | None:
    """The file of some code, if it is the user's."""
    return None if is_library(module) else sys.modules.get(str(module))


def keep_instance(value: Any) -> Part:
    """The attributes and the class of an object."""
    try:
        namespace: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:  # written in C, and for its own use
        return Part()
    if not namespace and type(value) in (Tensor, nn.Parameter):  # nearly all tensors
        return Part(namespace.clear)
    part, children, hooks = keep_mapping(namespace), None, []
    if issubclass(type(value), nn.Module):
        children = [(name, item) for name, item in namespace.items() if name not in _HOOK_TABLES]
        tables = [namespace[name] for name in _HOOK_TABLES if namespace.get(name)]
        hooks = [(table, list(table.items())) for table in tables]
    around = [("hook", hook) for _, kept in hooks for _, hook in kept]
    restore = partial(_restore_instance, value, type(value), namespace, part.restore, hooks)
    return Part(restore, part.children if children is None else children, part.put, around)


def _restore_instance(value: Any, cls: type, namespace: Any, restore: Any, hooks: list[tuple[Any, Any]]) -> None:
    if type(value) is not cls:
        object.__setattr__(value, "__class__", cls)
    if object.__getattribute__(value, "__dict__") is not namespace:
        object.__setattr__(value, "__dict__", namespace)
    restore()
    for table, kept in hooks:
        _hang_again(table, kept)


def _hang_again(table: Any, hooks: list[tuple[object, Any]]) -> None:
    """Those registered meanwhile stay: somebody holds their handles."""
    known = {key for key, _ in hooks}
    if not known <= table.keys():
        later = [(key, hook) for key, hook in table.items() if key not in known]
        table.clear()
        table.update(hooks + later)


def keep_slots(value: Any) -> Part:
    """The attributes of an object for which its class has `__slots__`."""
    slots: dict[Any, Any] = {
        (base, name): slot
        for base in type(value).__mro__
        if "__slots__" in vars(base)
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType)
    }
    kept = {key: slot.__get__(value) for key, slot in slots.items() if _is_filled(slot, value)}
    names = {name: slot for (_, name), slot in reversed(slots.items())}

    def restore() -> None:
        for key, slot in slots.items():
            if key in kept:
                slot.__set__(value, kept[key])
            elif _is_filled(slot, value):
                slot.__delete__(value)

    def put(name: str, item: object) -> None:
        names[name].__set__(value, item)

    return Part(restore, [(name, item) for (_, name), item in kept.items()], put)


def _is_filled(slot: Any, value: object) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def keep_script(value: Any) -> Part:
    """The attributes of a scripted module, which live in C++; lists and dicts come out as copies."""
    kept = [(name, value._c.getattr(name)) for name in value._concrete_type.get_attributes()]

    def restore() -> None:
        for name, item in kept:
            value._c.setattr(name, item)

    return Part(restore, [*kept, *value._parameters.items(), *value._modules.items()])


def keep_function(value: types.FunctionType) -> Part:
    """The defaults and the closure of a function that hangs on a model."""
    part = _keep_defaults(value)
    return part._replace(children=[*part.children, *_closure(value), ("", _home(value.__globals__.get("__name__")))])


class Method:
    """A function in a class.

    What is around the class does not belong to it, such as a list in which somebody counts calls.
    """

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function


def keep_method(value: Method) -> Part:
    """The defaults of a function in a class."""
    part, home = _keep_defaults(value.function), _home(value.function.__globals__.get("__name__"))
    return part._replace(children=[*part.children, ("", home)], around=_closure(value.function))


def _closure(function: types.FunctionType) -> Children:
    return list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def keep_cell(value: types.CellType) -> Part:
    """A variable of a closure."""
    try:
        return keep_attributes("cell_contents")(value)
    except ValueError:  # without a value

        def restore() -> None:
            del value.cell_contents

        return Part(restore)


def keep_partial(value: partial[Any]) -> Part:
    """The function and the arguments of a partial."""
    kept: Children = [(name, getattr(value, name)) for name in ("func", "args", "keywords")]

    def put(name: str, item: object) -> None:
        func, args, keywords = (item if name == key else getattr(value, str(key)) for key, _ in kept)
        value.__setstate__((func, args, keywords, vars(value)))  # type: ignore[attr-defined]

    def restore() -> None:
        for name, item in kept:
            if getattr(value, str(name)) is not item:
                put(str(name), item)

    return Part(restore, kept, put)


def keep_bound(value: Any) -> Part:
    """The object of a bound method; its function is that of a class."""
    return Part(children=[("", value.__self__)], around=[("", getattr(value, "__func__", None))])


def keep_class(value: type) -> Part:
    """The attributes of a user's class, and of those it derives from."""
    if is_library(value.__module__):
        return Part()
    # Names with two underscores are Python's own; of these only functions are looked at.
    own = {name: item for name, item in vars(value).items() if not name.startswith("__")}

    def restore() -> None:
        now = dict(vars(value))
        for name in now.keys() - own.keys():
            if not name.startswith("__"):
                type.__delattr__(value, name)
        for name, item in own.items():
            if name not in now or now[name] is not item:
                type.__setattr__(value, name, item)

    def put(name: str, item: object) -> None:
        type.__setattr__(value, name, item)

    children: Children = [(name, item) for name, item in own.items() if not isinstance(item, _FUNCTIONS)]
    children += [(name, Method(each)) for name, item in vars(value).items() for each in _functions(item)]
    children += [("", base) for base in value.__bases__] + [("", _home(value.__module__))]
    return Part(restore, children, put)


def _functions(value: object) -> list[types.FunctionType]:
    if isinstance(value, property):
        found: list[object] = [value.fget, value.fset, value.fdel]
    else:
        found = [value.__func__ if isinstance(value, (staticmethod, classmethod)) else value]
    return [each for each in found if isinstance(each, types.FunctionType)]
