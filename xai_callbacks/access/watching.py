"""`watching`: see, and replace, every tensor that modules and functions return while a model runs.

Modules are seen by global hooks, which scripted modules honour too; functions by a `TorchFunctionMode`, so that a layer
is found whether it is written as `nn.ReLU()`, `F.relu` or `x.clamp(min=0)`. What runs inside a scripted module or a
custom `autograd.Function` is not seen; what comes out of a scripted module is.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from xai_callbacks.access.addresses import Address

__all__ = ["Returned", "module_names", "watching"]

# Properties and switches are functions too, but make no feature map.
_IGNORED = frozenset({"__get__", "__set__", "_set_grad_enabled"})


@dataclass(frozen=True, eq=False)
class Returned:
    """A tensor as a module or a function returns it.

    Attributes:
        address: Where it comes from; `index` counts the calls so far.
        tensor: The tensor.
        module: The module whose call returns it, or in whose forward the function was called.
        given: What went in, keyword arguments of functions last.
        in_place: Whether what is returned is what went in, changed in place.
    """

    address: Address
    tensor: Tensor
    module: nn.Module
    given: tuple[Any, ...]
    in_place: bool = False


Seen = Callable[[Returned], Tensor | None]
"""Called with each tensor; what it returns takes the place of the tensor."""


@contextmanager
def watching(root: nn.Module, seen: Seen, *, functions: bool = True) -> Iterator[None]:
    """Show every returned tensor to `seen` while the model runs inside; one thread, one forward pass.

    Args:
        root: The model.
        seen: Called with each tensor.
        functions: Whether to watch functions as well as modules.
    """
    watcher = _Watcher(root, seen)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # The wrapper of a compiled module fires hooks of its own, which are not listened to.
        warnings.filterwarnings("ignore", message="Using `torch.compile", category=UserWarning)
        for handle in (
            register_module_forward_pre_hook(watcher.enter),
            register_module_forward_hook(watcher.leave),
        ):
            stack.callback(handle.remove)
        if functions:
            stack.enter_context(watcher)
        yield


def module_names(root: nn.Module) -> dict[str, nn.Module]:
    """Submodules by dotted name, without the parts that `torch.compile` adds; the model itself is `""`."""
    return {plain_name(name): module for name, module in root.named_modules()}


def plain_name(name: str) -> str:
    """A module name without the parts that `torch.compile` adds."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod").removeprefix("_orig_mod")


class _Watcher(TorchFunctionMode):
    def __init__(self, root: nn.Module, seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        self._modules = module_names(root)
        self._names = {id(module): name for name, module in reversed(self._modules.items())}
        self._running = [""]
        self._versions: list[list[int | None]] = []
        self._calls: Counter[tuple[str, str | None]] = Counter()
        self._paused = False

    def enter(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        """Before a module runs."""
        name = self._names.get(id(module))
        if name is not None:
            self._running.append(name)
            self._versions.append([_version(each) for each in given])

    def leave(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        """After it ran."""
        name = self._names.get(id(module))
        if name is None or len(self._running) == 1:
            return None
        self._running.pop()
        versions = self._versions.pop()
        self._paused = True
        try:
            in_place = any(
                output is each and _version(each) != version for each, version in zip(given, versions, strict=False)
            )
            return self._show(name, None, module, given, output, in_place=in_place)
        finally:
            self._paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Operators of exported programs are named with their overload, such as `relu.default`.
        name = getattr(func, "__name__", "").partition(".")[0]
        if self._paused or name in _IGNORED:
            return func(*args, **(kwargs or {}))
        first = args[0] if args else None
        version = _version(first)
        output = func(*args, **(kwargs or {}))
        if name == "__setitem__" and isinstance(first, Tensor):
            self._show(self._running[-1], name, self._modules[self._running[-1]], args, first, in_place=True)
        if not isinstance(output, (Tensor, tuple, list)):
            return output
        in_place = output is first and _version(first) != version
        if output is first and not in_place:
            return output
        scope = self._running[-1]
        given = (*args, *(kwargs or {}).values())
        shown = self._show(scope, name, self._modules[scope], given, output, in_place=in_place)
        return output if shown is None else shown

    def _show(
        self, name: str, function: str | None, module: nn.Module, given: tuple[Any, ...], output: Any, *, in_place: bool
    ) -> Any:
        index = self._calls[name, function]
        self._calls[name, function] += 1
        if isinstance(output, Tensor):
            return self._seen(Returned(Address(name, function, index), output, module, given, in_place))
        if not isinstance(output, (tuple, list)):
            return None
        found = {
            item: self._seen(Returned(Address(name, function, index, item), part, module, given))
            for item, part in enumerate(output)
            if isinstance(part, Tensor)
        }
        changed = {item: part for item, part in found.items() if part is not None}
        return _replaced(output, changed) if changed else None


def _version(given: object) -> int | None:
    """How often a tensor was changed in place; None for what is none, or does not count."""
    return given._version if isinstance(given, Tensor) and not given.is_inference() else None


def _replaced(output: Any, parts: Mapping[int, Tensor]) -> Any:
    items = [parts.get(index, part) for index, part in enumerate(output)]
    if isinstance(output, list):
        return items
    if hasattr(output, "n_sequence_fields"):  # such as `torch.return_types.max`, which take one sequence
        return type(output)(items)
    return type(output)(*items) if hasattr(output, "_fields") else tuple(items)
