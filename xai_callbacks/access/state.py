"""`kept_state`: whatever hangs on a model is afterwards as it was before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xai_callbacks.access.contents import Handler, checksums
from xai_callbacks.access.iterators import StandIns, needs_stand_in
from xai_callbacks.access.kinds import PLAIN, RANDOM, handlers_of, is_library
from xai_callbacks.errors import ConfigurationError

__all__ = ["State", "kept_state"]

Path = tuple[Any, object] | None  # of what it hangs on, and its name there


@contextmanager
def kept_state(root: object) -> Iterator[State]:
    """Put back on leaving, also by an exception, whatever hangs on a module or callable; see `undisturbed`."""
    state = State()
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.14 copies no `itertools` any more
            state.keep(root)
        yield state
    except BaseException as error:
        for complaint in state.restore():
            error.add_note(complaint)
        raise
    if complaints := state.restore():
        raise ConfigurationError("\n".join(complaints))


class _Plan(NamedTuple):
    """How objects of a class are treated."""

    handlers: tuple[Handler, ...]
    replaced: bool
    from_user: bool


class State:
    """What hangs on a model, and how to put it back.

    Attributes:
        modules: Every module, registered with the model or kept in a list, a closure or another object.
        parameters: Every parameter, as a plain tensor on the same memory, with its path.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.parameters: list[tuple[Path, Tensor]] = []
        self._sums: list[float] = []
        self._restores: list[tuple[Path, Callable[[], None]]] = []
        self._plans: dict[type, _Plan] = {}
        self._stand_ins = StandIns()
        # What is still to be visited; of what is merely around the model only random generators and modules are kept.
        self._waiting: list[tuple[Any, Path]] = []
        self._around: list[tuple[Any, Path]] = []
        # What was visited as around, and as belonging to the model. The objects themselves, too: another could get the
        # address of one that has died.
        self._seen: tuple[dict[int, object], dict[int, object]] = ({}, {})

    def keep(self, root: object) -> None:
        """Walk from `root` and remember what is found; stand-ins replace iterators."""
        self._waiting.append((root, (None, "model")))
        while self._waiting or self._around:
            belongs = bool(self._waiting)
            value, path = (self._waiting or self._around).pop()
            belongs = belongs or issubclass(type(value), nn.Module)
            if id(value) in self._seen[True] or (not belongs and id(value) in self._seen[False]):
                continue
            self._seen[belongs][id(value)] = value
            if belongs or not issubclass(type(value), (Tensor, np.ndarray)):
                self._enter(value, path, belongs)
        self._sums = checksums([tensor for _, tensor in self.parameters])

    def _enter(self, value: Any, path: Path, belongs: bool) -> None:
        """Remember one object; what hangs on it comes next."""
        cls = type(value)  # not `isinstance`: proxies and mocks say that they are something else
        if issubclass(cls, nn.Module):
            self.modules.append(value)
        elif issubclass(cls, Tensor) and isinstance(value, nn.Parameter):
            with torch._C.DisableTorchFunctionSubclass():
                self.parameters.append((path, value.detach()))
        plan, after = self._plan(cls), self._waiting if belongs else self._around
        if plan.from_user:
            after.append((cls, path))
        for handler in plan.handlers:
            try:
                part = handler(value)
            except Exception as error:
                raise ConfigurationError(
                    f"Expected `{_name(path)}` to have a state that can be put back after the model was looked at, but "
                    f"reading it from {cls.__name__} raised {type(error).__name__}: {error}. Keep it outside the model."
                ) from error
            if part.restore is not None and (belongs or issubclass(cls, RANDOM)):
                self._restores.append((path, part.restore))
            for name, child in part.children:
                if self._leads_on(child):
                    if belongs and part.put is not None and self._plan(type(child)).replaced:
                        self._replace(child, (path, name), part.put)
                    after.append((child, (path, name)))
            self._around += [(child, (path, name)) for name, child in part.around if self._leads_on(child)]

    def _replace(self, child: object, path: tuple[Path, object], put: Callable[[Any, Any], None]) -> None:
        other = self._stand_ins.of(child, lambda: _name(path))
        if other is not child:
            put(path[1], other)

    def _leads_on(self, value: object) -> bool:
        """Whether something hangs on a value, or it can change."""
        cls = type(value)
        if cls in PLAIN or (id(value) in self._seen[True] and not self._plan(cls).replaced):
            return False
        if cls is tuple and all(type(item) in PLAIN for item in value):  # type: ignore[attr-defined]
            return False
        return bool(self._plan(cls).handlers)

    def _plan(self, cls: type) -> _Plan:
        plan = self._plans.get(cls)
        if plan is None:
            handlers = handlers_of(cls)
            from_user = bool(handlers) and not is_library(cls.__module__)
            plan = self._plans[cls] = _Plan(handlers, needs_stand_in(cls), from_user)
        return plan

    def restore(self) -> list[str]:
        """Put everything back; complaints about what could not be."""
        complaints = []
        with torch.inference_mode(False), torch.no_grad():
            for path, restore in self._restores:
                try:
                    restore()
                except Exception as error:  # one failure must not keep the rest from being put back
                    complaints.append(
                        f"Expected `{_name(path)}` to be as it was before the model was looked at, but it was changed "
                        f"and cannot be put back: {type(error).__name__}: {error}. Change it in the training step only."
                    )
            sums = checksums([tensor for _, tensor in self.parameters])
        for (path, _), before, after in zip(self.parameters, self._sums, sums, strict=False):
            if before != after and (before == before or after == after):  # noqa: PLR0124  # NaN equals itself here
                complaints.append(
                    f"Expected the parameter `{_name(path)}` to be left alone while the model is looked at, but a "
                    "forward pass in eval mode wrote it in place. Parameters are not copied: write it in the training "
                    "step only, or make it a buffer."
                )
        return complaints


def _name(path: Path) -> str:
    names: list[str] = []
    while path is not None:
        path, name = path
        if name not in ("", "_modules", "_parameters", "_buffers"):
            names.append(str(name) if isinstance(name, (str, int)) else type(name).__name__)
    return ".".join(reversed(names))
