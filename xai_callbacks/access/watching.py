"""`watching`: see, and replace, every tensor that modules and functions return while a model runs.

Modules are seen by global hooks, which scripted modules honour too; functions by a `TorchFunctionMode`, so that a layer
is found whether it is written as `nn.ReLU()`, `F.relu` or `x.clamp(min=0)`. What runs inside a scripted module or a
custom `autograd.Function` is not seen; what comes out of a scripted module is.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from xai_callbacks.errors import TargetLayerError

__all__ = ["Address", "Returned", "module_names", "plain_name", "watching"]

_GRAMMAR = re.compile(
    r"(?P<module>(?:[^:#\[\]\\]|\\.)*)(?::(?P<function>\w+))?(?:#(?P<index>\d+))?(?:\[(?P<item>\d+)\])?", re.DOTALL
)
# Keys of a `ModuleDict` may hold any character but the dot.
_SPECIAL = re.compile(r"([:#\[\]\\])")


@dataclass(frozen=True)
class Address:
    r"""Where a tensor comes from in one forward pass.

    | written | the tensor |
    |---|---|
    | `layer4.1` | what the module `layer4.1` returns; of a tuple or list the first item |
    | `layer4.1[1]` | the second item of what it returns |
    | `block#11` | what the module returns at its twelfth call, where it runs several times |
    | `layer4.1:relu` | what the function `relu` returns, called in the forward of `layer4.1` itself |
    | `:add#2` | what the third `add` returns in the forward of the model itself |
    | `stages.a\:b` | what the module `stages.a:b` returns |

    `module` is empty for the model itself, `function` None for what the module returns, `index` the call from 0 or None
    for the only one, and `item` that of a tuple or list or None for the tensor itself or the first.
    """

    module: str
    function: str | None = None
    index: int | None = None
    item: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as it is written; a `TargetLayerError` says that it is none."""
        found = _GRAMMAR.fullmatch(text)
        if found is None or not (found["module"] or found["function"]):
            raise TargetLayerError(
                f"Expected `target_layer` to be a name such as 'layer4', 'blocks.11[1]' or 'layer4.1:relu', but got "
                f"{text!r}. Give the dotted name of a module; a function called in it follows a colon."
            )
        index, item = (None if found[part] is None else int(found[part]) for part in ("index", "item"))
        return cls(re.sub(r"\\(.)", r"\1", found["module"], flags=re.DOTALL), found["function"], index, item)

    def matches(self, other: Address) -> bool:
        """Whether a tensor at `other`, whose call is counted, is at this address."""
        return (
            self.module == other.module
            and self.function == other.function
            and self.index in (None, other.index)
            and (self.item or 0) == (other.item or 0)
        )

    def __str__(self) -> str:
        function = f":{self.function}" if self.function else ""
        index = "" if self.index is None else f"#{self.index}"
        item = "" if self.item is None else f"[{self.item}]"
        return _SPECIAL.sub(r"\\\1", self.module) + function + index + item


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
        in_place: Whether it is what went in, changed in place.
        names: Those of the names asked for that lead here.
    """

    address: Address
    tensor: Tensor
    module: nn.Module
    given: tuple[Any, ...]
    in_place: bool
    names: tuple[str, ...]


Seen = Callable[[Returned], Tensor | None]
"""Called with each tensor; what it returns takes the place of the tensor."""


@contextmanager
def watching(root: nn.Module, seen: Seen, names: Collection[str] | None = None) -> Iterator[None]:
    """Show returned tensors to `seen` while the model runs inside, those at some addresses or all; one forward pass."""
    wanted = None if names is None else {name: Address.parse(name) for name in names}
    watcher = _Watcher(root, seen, wanted)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # The wrapper of a compiled module fires hooks of its own, which are not listened to.
        warnings.filterwarnings("ignore", message="Using `torch.compile", category=UserWarning)
        stack.callback(register_module_forward_pre_hook(watcher.enter).remove)
        stack.callback(register_module_forward_hook(watcher.leave).remove)
        if wanted is None or any(address.function is not None for address in wanted.values()):
            stack.enter_context(watcher)
        yield


def module_names(root: nn.Module) -> dict[str, nn.Module]:
    """Submodules by dotted name, without the parts that `torch.compile` adds; the model itself is `""`."""
    return {plain_name(name): module for name, module in root.named_modules()}


def plain_name(name: str) -> str:
    """A module name without the parts that `torch.compile` adds."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod").removeprefix("_orig_mod")


class _Watcher(TorchFunctionMode):
    def __init__(self, root: nn.Module, seen: Seen, wanted: Mapping[str, Address] | None) -> None:
        super().__init__()
        self._seen = seen
        self._wanted = wanted
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
        before = self._versions.pop()
        in_place = any(output is each and _version(each) != old for each, old in zip(given, before, strict=False))
        self._paused = True
        try:
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
        shown = first if name == "__setitem__" else output
        in_place = shown is first and _version(first) != version
        if shown is first and not in_place:
            return output
        given = (*args, *(kwargs or {}).values())
        scope = self._running[-1]
        other = self._show(scope, name, self._modules[scope], given, shown, in_place=in_place)
        return output if other is None or shown is not output else other

    def _show(
        self, name: str, function: str | None, module: nn.Module, given: tuple[Any, ...], output: Any, *, in_place: bool
    ) -> Any:
        index = self._calls[name, function]
        self._calls[name, function] += 1
        if not isinstance(output, (Tensor, tuple, list)):
            return None
        parts: Iterable[tuple[int | None, object]]
        parts = [(None, output)] if isinstance(output, Tensor) else enumerate(output)
        changed: dict[int | None, Tensor] = {}
        for item, part in parts:
            address = Address(name, function, index, item)
            names = tuple(each for each, wanted in (self._wanted or {}).items() if wanted.matches(address))
            if isinstance(part, Tensor) and (names or self._wanted is None):
                other = self._seen(Returned(address, part, module, given, in_place, names))
                if other is not None:
                    changed[item] = other
        if isinstance(output, Tensor) or not changed:
            return changed.get(None)
        items = [changed.get(item, part) for item, part in enumerate(output)]
        if isinstance(output, list):
            return items
        if hasattr(output, "n_sequence_fields"):  # such as `torch.return_types.max`, which take one sequence
            return type(output)(items)
        return type(output)(*items) if hasattr(output, "_fields") else tuple(items)


def _version(given: object) -> int | None:
    """How often a tensor was changed in place; None for what is none, or does not count."""
    return given._version if isinstance(given, Tensor) and not given.is_inference() else None
