"""`kept_state`: whatever hangs on a model is afterwards as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xai_callbacks.access.contents import Handler, Part
from xai_callbacks.access.iterators import StandIns, needs_stand_in
from xai_callbacks.access.kinds import PLAIN, RANDOM, handlers_of
from xai_callbacks.access.namespaces import is_library
from xai_callbacks.access.tensors import checksums
from xai_callbacks.errors import ConfigurationError

__all__ = ["State", "kept_state"]

Path = tuple[Any, object] | None  # of what it hangs on, and its name there


@contextmanager
def kept_state(root: object) -> Iterator[State]:
    """Put back on leaving, also by an exception, whatever hangs on an object; see `undisturbed` for what that is.

    Args:
        root: A module, or any callable.

    Raises:
        ConfigurationError: The state of something cannot be read, or was changed and cannot be put back.
    """
    state = State()
    try:
        with torch.inference_mode(False), torch.no_grad():
            state.keep(root)
        yield state
    except BaseException as error:
        for complaint in state.restore():
            error.add_note(complaint)
        raise
    if complaints := state.restore():
        raise ConfigurationError("\n".join(complaints))


class _Plan(NamedTuple):
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

    def keep(self, root: object) -> None:
        """Walk from `root` and remember what is found; stand-ins replace iterators."""
        walk = _Walk()
        walk.waiting.append((root, (None, "model")))
        while walk.waiting or walk.around:
            if walk.waiting:
                value, path = walk.waiting.pop()
                belongs = True
            else:
                value, path = walk.around.pop()
                belongs = issubclass(type(value), nn.Module)
            if walk.sees(value, belongs):
                self._enter(value, path, belongs, walk)
        self._sums = checksums([tensor for _, tensor in self.parameters])

    def _enter(self, value: Any, path: Path, belongs: bool, walk: _Walk) -> None:
        """Remember one object; what hangs on it comes next."""
        cls = type(value)  # not `isinstance`: proxies and mocks say that they are something else
        if issubclass(cls, nn.Module):
            self.modules.append(value)
        elif issubclass(cls, Tensor) and isinstance(value, nn.Parameter):
            with torch._C.DisableTorchFunctionSubclass():
                self.parameters.append((path, value.detach()))
        plan, after = walk.plan(cls), walk.waiting if belongs else walk.around
        if plan.from_user:
            after.append((cls, path))
        for handler in plan.handlers:
            part = _part(handler, value, path)
            if part.restore is not None and (belongs or issubclass(cls, RANDOM)):
                self._restores.append((path, part.restore))
            put = part.put if belongs else None
            for name, child in part.children:
                if walk.leads_on(child):
                    if put is not None and walk.plan(type(child)).replaced:
                        _replace(child, (path, name), put, walk.stand_ins)
                    after.append((child, (path, name)))
            walk.around += [(child, (path, name)) for name, child in part.around if walk.leads_on(child)]

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


class _Walk:
    """Where a walk has been and what is still to be visited.

    Attributes:
        waiting: What belongs to the model, with its path.
        around: What can merely be reached from it; of that only random generators and modules are kept.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Path]] = []
        self.around: list[tuple[Any, Path]] = []
        self.stand_ins = StandIns()
        self._plans: dict[type, _Plan] = {}
        # The objects themselves, too: another could get the address of one that has died.
        self._seen: tuple[dict[int, object], dict[int, object]] = ({}, {})

    def sees(self, value: object, belongs: bool) -> bool:
        """Whether a value has to be visited, which is then done."""
        if id(value) in self._seen[True] or (not belongs and id(value) in self._seen[False]):
            return False
        self._seen[belongs][id(value)] = value
        return belongs or not issubclass(type(value), (Tensor, np.ndarray))

    def leads_on(self, value: object) -> bool:
        """Whether something hangs on a value, or it can change."""
        cls = type(value)
        if cls in PLAIN or (id(value) in self._seen[True] and not self.plan(cls).replaced):
            return False
        if cls is tuple and all(type(item) in PLAIN for item in value):  # type: ignore[attr-defined]
            return False
        return bool(self.plan(cls).handlers)

    def plan(self, cls: type) -> _Plan:
        """How objects of a class are treated."""
        plan = self._plans.get(cls)
        if plan is None:
            handlers = handlers_of(cls)
            from_user = bool(handlers) and not is_library(cls.__module__)
            plan = self._plans[cls] = _Plan(handlers, needs_stand_in(cls), from_user)
        return plan


def _part(handler: Handler, value: object, path: Path) -> Part:
    try:
        return handler(value)
    except Exception as error:
        raise ConfigurationError(
            f"Expected `{_name(path)}` to have a state that can be put back after the model was looked at, but reading "
            f"it from {type(value).__name__} raised {type(error).__name__}: {error}. Keep it outside the model."
        ) from error


def _replace(child: object, path: tuple[Path, object], put: Callable[[Any, Any], None], stand_ins: StandIns) -> None:
    other = stand_ins.of(child, lambda: _name(path))
    if other is not child:
        put(path[1], other)


def _name(path: Path) -> str:
    names: list[str] = []
    while path is not None:
        path, name = path
        if name not in ("", "_modules", "_parameters", "_buffers"):
            names.append(str(name) if isinstance(name, (str, int)) else type(name).__name__)
    return ".".join(reversed(names))
