"""The only import of Lightning: bases `Callback` and `LightningModule` that work in both packages, and which one fits.

`pytorch_lightning.Callback` and `lightning.pytorch.Callback` are different classes, and some checks insist on their
own; modules likewise. A class that inherits from both passes all of them. A module also hands on each method that
nobody overrode from the package of its trainer, which recognises such a method by its code.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

from xai_callbacks.errors import ConfigurationError

__all__ = [
    "Callback", "LightningDataModule", "LightningModule", "Trainer", "is_callback", "new_trainer", "package_of",
    "quiet",
]  # fmt: skip


def _packages() -> list[Any]:
    found = []
    for package in ("pytorch_lightning", "lightning.pytorch"):
        try:
            found.append(importlib.import_module(package))
        except ModuleNotFoundError as error:
            if error.name not in (package, package.partition(".")[0]):
                raise
    return found


def _bases(name: str) -> tuple[type, ...]:
    return tuple(getattr(package, name) for package in _packages())


def is_callback(value: object) -> bool:
    """Whether something is a callback of one of the packages."""
    return isinstance(value, _bases("Callback"))


def package_of(*parts: object) -> Any:
    """The package in whose trainer callbacks, modules and data modules can meet; the first where both can be."""
    for package in _packages():
        kinds = (package.Callback, package.LightningModule, package.LightningDataModule)
        if all(isinstance(part, kinds) for part in parts):
            return package
    shown = ", ".join(f"{type(part).__name__} of {type(part).__module__}" for part in parts)
    raise ConfigurationError(
        "Expected callback, module and data to be made for one of `pytorch_lightning` and `lightning.pytorch`, but got "
        f"{shown}. Import their bases from the same package."
    )


class _Inherited:
    """A method that both packages define: that of the package whose trainer the module is attached to."""

    def __init__(self, homes: tuple[tuple[type, Callable[..., Any]], ...]) -> None:
        self._homes = homes

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        trainer = None if instance is None else instance.__dict__.get("_trainer")
        fitting = (method for kind, method in self._homes if isinstance(trainer, kind))
        method: Any = next(fitting, self._homes[0][1])
        return method.__get__(instance, owner)


def _inherited(bases: tuple[type, ...], trainers: tuple[type, ...]) -> dict[str, _Inherited]:
    """A choice for each method of which the packages have different versions, but construction."""
    found = {}
    for name in set(dir(bases[0])) - {"__init__"}:
        methods = [inspect.getattr_static(base, name, None) for base in bases]
        if len(set(map(id, methods))) > 1 and all(isinstance(method, FunctionType) for method in methods):
            found[name] = _Inherited(tuple(zip(trainers, methods, strict=True)))
    return found


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
else:
    Callback = type("Callback", _bases("Callback"), {"__doc__": "Base of our callbacks, at home in both packages."})
    LightningDataModule = type("LightningDataModule", _bases("LightningDataModule"), {"__doc__": "Likewise, of data."})
    _modules = _bases("LightningModule")
    # What is handed on is Lightning's, and no public surface of ours.
    _own = {"__doc__": "Base of our modules, at home in both packages.", "__module__": _modules[0].__module__}
    LightningModule = type("LightningModule", _modules, {**_inherited(_modules, _bases("Trainer")), **_own})
    Trainer = Any  # only for annotations: users may bring any of the two


def new_trainer(**options: Any) -> Trainer:
    """A trainer of whichever package is installed, which says nothing of devices; our modules are at home in both."""
    with quiet(logging.INFO):
        trainer: Trainer = _bases("Trainer")[0](**options)
    return trainer


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Without what Lightning says at each start of a training, up to a level of logging."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
