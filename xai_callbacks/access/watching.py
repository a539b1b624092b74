"""`watching`: see, and replace, every tensor that modules and functions return while a model runs; `capture` them.

Modules are seen by global hooks, functions by a `TorchFunctionMode`, so that a layer is found whether it is written as
`nn.ReLU()`, `F.relu` or `x.clamp(min=0)`. What runs inside a scripted module or an `autograd.Function` is not seen.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from xai_callbacks.errors import TargetLayerError

if TYPE_CHECKING:
    from xai_callbacks.access.subject import Subject

_GRAMMAR = re.compile(r"(?P<module>[^:#\[\]]*)(?::(?P<function>\w+))?(?:#(?P<index>\d+))?(?:\[(?P<item>\d+)\])?")
# Properties and switches are functions too, but make no feature map.
_IGNORED = frozenset({"__get__", "__set__", "_set_grad_enabled"})


@dataclass(frozen=True)
class Address:
    """Where a tensor comes from in one forward pass.

    | written | the tensor |
    |---|---|
    | `layer4.1` | what the module `layer4.1` returns; of a tuple or list the first item |
    | `layer4.1[1]` | the second item of what it returns |
    | `block#11` | what the module returns at its twelfth call, where it runs several times |
    | `layer4.1:relu` | what the function `relu` returns, called in the forward of `layer4.1` itself |
    | `:add#2` | what the third `add` returns in the forward of the model itself |
    """

    module: str  # empty for the model itself
    function: str | None = None  # None for what the module returns
    index: int | None = None  # of the call, from 0; None for the only one
    item: int | None = None  # of a tuple or list; None for the tensor itself or the first

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as it is written; a `TargetLayerError` says that it is none."""
        found = _GRAMMAR.fullmatch(text)
        if found is None or not (found["module"] or found["function"]):
            raise TargetLayerError(
                "Expected `target_layer` to be a name such as 'layer4', 'blocks.11[1]' or 'layer4.1:relu', but got "
                f"{text!r}. Give the dotted name of a module; a function called in it follows a colon."
            )
        index, item = (None if found[part] is None else int(found[part]) for part in ("index", "item"))
        return cls(found["module"], found["function"], index, item)

    def matches(self, other: Address) -> bool:
        """Whether a tensor at `other`, whose call is counted, is at this address."""
        same = (self.module, self.function, self.item or 0) == (other.module, other.function, other.item or 0)
        return same and self.index in (None, other.index)

    def __str__(self) -> str:
        function = f":{self.function}" if self.function else ""
        index = "" if self.index is None else f"#{self.index}"
        return self.module + function + index + ("" if self.item is None else f"[{self.item}]")


class Returned(NamedTuple):
    """A tensor as a module or a function returns it."""

    address: Address  # its `index` counts the calls so far
    tensor: Tensor
    module: nn.Module  # whose call returns it, or in whose forward the function was called
    given: tuple[Any, ...]  # what went in, keyword arguments of functions last
    in_place: bool  # whether it is what went in, changed in place
    names: tuple[str, ...]  # those of the names asked for that lead here


Seen = Callable[[Returned], Tensor | None]  # what it returns takes the place of the tensor


@contextmanager
def watching(root: nn.Module, seen: Seen, names: Collection[str] | None = None) -> Iterator[None]:
    """Show returned tensors to `seen` while the model runs inside, those at some addresses or all; one forward pass."""
    wanted = None if names is None else {name: Address.parse(name) for name in names}
    watcher = _Watcher(root, seen, wanted)
    with ExitStack() as stack, warnings.catch_warnings():
        # The wrapper of a compiled module fires hooks of its own, which are not listened to.
        warnings.filterwarnings("ignore", message="Using `torch.compile", category=UserWarning)
        stack.enter_context(register_module_forward_pre_hook(watcher.enter))
        stack.enter_context(register_module_forward_hook(watcher.leave))
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
        self._seen, self._wanted = seen, wanted
        self._modules = module_names(root)
        self._names = {id(module): name for name, module in reversed(self._modules.items())}
        self._running: list[tuple[str, list[int | None]]] = [("", [])]  # with the versions of what went in
        self._calls: Counter[tuple[str, str | None]] = Counter()
        self._paused = False

    def enter(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        name = self._names.get(id(module))
        if name is not None:
            self._running.append((name, [_version(each) for each in given]))

    def leave(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        name = self._names.get(id(module))
        if name is None or len(self._running) == 1:
            return None
        before = self._running.pop()[1]
        in_place = any(output is each and _version(each) != old for each, old in zip(given, before, strict=False))
        self._paused = True
        try:
            return self._show(Address(name), module, given, output, in_place=in_place)
        finally:
            self._paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Operators of exported programs are named with their overload, such as `relu.default`.
        name = getattr(func, "__name__", "").partition(".")[0]
        first = args[0] if args else None
        version = _version(first)
        output = func(*args, **(kwargs or {}))
        shown = first if name == "__setitem__" else output
        in_place = shown is first and _version(first) != version
        if self._paused or name in _IGNORED or (shown is first and not in_place):
            return output
        scope = self._running[-1][0]
        given = (*args, *(kwargs or {}).values())
        other = self._show(Address(scope, name), self._modules[scope], given, shown, in_place=in_place)
        return output if other is None or shown is not output else other

    def _show(self, address: Address, module: nn.Module, given: tuple[Any, ...], output: Any, *, in_place: bool) -> Any:
        key = address.module, address.function
        index = self._calls[key]
        self._calls[key] += 1
        if not isinstance(output, (Tensor, tuple, list)):
            return None
        changed: dict[int | None, Tensor] = {}
        for item, part in [(None, output)] if isinstance(output, Tensor) else enumerate(output):
            here = Address(*key, index, item)
            names = tuple(each for each, wanted in (self._wanted or {}).items() if wanted.matches(here))
            if isinstance(part, Tensor) and (names or self._wanted is None):
                other = self._seen(Returned(here, part, module, given, in_place, names))
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


class Captured(dict[str, list[Tensor]]):
    """Captured tensors by the name of their layer; filled by the forward pass inside the `with`."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; raises a `TargetLayerError` where a layer did not run, or ran several times."""
        for name, found in self.items():
            if len(found) != 1:
                raise TargetLayerError(
                    f"Expected the layer `{name}` to run once in a forward pass, but it ran {len(found)} times. Name a "
                    f"layer that runs once with `target_layer=`, or one of its calls, such as '{name}#0'."
                )
        return {name: found[0] for name, found in self.items()}


@contextmanager
def capture(subject: Subject, names: Sequence[str]) -> Iterator[Captured]:
    """Record tensors by their names, see `Address`, and the graph from the first of them on.

    Inside, run `subject` under `torch.no_grad()`: everything up to the first tensor then costs what inference costs,
    and gradients are switched on for what follows. The model goes on with copies, so that an in-place operation does
    not change what was captured. Tensors that come later are part of the graph of those before.
    """
    captured = Captured({name: [] for name in names})

    def cut(returned: Returned) -> Tensor:
        tensor = returned.tensor
        kept = tensor.clone() if returned.in_place else tensor
        if not kept.requires_grad:
            kept = kept.detach().requires_grad_(True)
        torch.set_grad_enabled(True)
        for name in returned.names:
            captured[name].append(kept)
        if not returned.in_place:
            return kept.clone()
        # What changed its input in place may have been called for that alone, so the input must carry the graph on. The
        # content stays the same, and what was saved of it for backward passes remains valid.
        with _unsafe_preserve_version_counter(tensor):
            return tensor.copy_(kept)

    with torch.set_grad_enabled(torch.is_grad_enabled()), watching(subject.module, cut, names):
        yield captured


class Tapped(NamedTuple):
    """One call of a tapped module."""

    given: Tensor
    output: Tensor


@contextmanager
def tap(subject: Subject, name: str, *, detach: bool = True) -> Iterator[list[Tapped]]:
    """Record copies of what goes into and comes out of a module at every call, off the graph if `detach`."""
    calls: list[Tapped] = []

    def note(_module: nn.Module, given: tuple[object, ...], output: object) -> None:
        before = given[0] if given else None
        if isinstance(before, Tensor) and isinstance(output, Tensor):
            # A copy, since what follows may change either in place.
            calls.append(Tapped(before.detach().clone(), output.detach().clone()) if detach else Tapped(before, output))

    with module_names(subject.module)[name].register_forward_hook(note):
        yield calls
