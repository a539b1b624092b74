"""`undisturbed`: look at a model in the middle of its training, and leave whatever hangs on it as it was."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cache
from typing import Any, NoReturn

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from xai_callbacks.access.contents import Handler, checksum
from xai_callbacks.access.kinds import BOUND, GENERATORS, PLAIN, RANDOM, handlers_of, is_library, is_replaced, reduced
from xai_callbacks.errors import ConfigurationError, in_words
from xai_callbacks.randomness import isolated_rng

Path = tuple[Any, object] | None  # of what it hangs on, and its name there


@contextmanager
def undisturbed(model: nn.Module | Callable[..., object]) -> Iterator[None]:
    """Evaluate a module, or a function of images, with gradients available, and find everything outside as it was.

    Inside: every module in eval mode, autograd recording (also under a surrounding `no_grad` or `inference_mode`),
    autocast off, compiled modules eager so that hooks fire, transformers run layer by layer instead of fused, and
    reentrant checkpoints without effect, since they allow no other way to gradients than `.backward()`.

    Restored on leaving, also by an exception: all random streams, the grad and inference mode, and bit by bit whatever
    hangs on the model, as the same objects in the same places: in modules (registered or not), containers, arrays,
    tensors, objects, closures, defaults, partials, bound methods, and the classes of all these. Hooks registered inside
    are gone. Where an iterator hangs, a copy hangs inside. Of what is merely around the model, that is in its hooks,
    the closures of its methods and the files that define it, only random generators and modules are restored.

    Out of reach: other globals, caches of functions, state that objects written in C keep to themselves, iterators in
    sets, and what has a life outside the model, such as trainers, loggers, data, optimizers and files.

    Cost: every parameter is read twice, less than a forward pass of one image; about 10 microseconds for each object.

    Raises a `ConfigurationError` if a Python generator or an iterator of a data loader was advanced, a parameter was
    written in place (they are not copied: call `torch.autograd.grad`, never `.backward()`), or what the message names
    cannot be read or put back.
    """
    state = _State()
    with torch.inference_mode(False), torch.enable_grad(), isolated_rng(), _layer_by_layer(), ExitStack() as stack:
        stack.enter_context(state.kept(model))
        # A float32 island: small gradients underflow in half precision.
        for device in sorted({"cpu", *(tensor.device.type for _, tensor in state.parameters)} - {"meta"}):
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for module in state.modules:
            # Not `model.eval()`: users override `train()`, and may do more there than set a flag. A frozen TorchScript
            # module has none.
            if getattr(module, "training", False):
                module.training = False
        yield


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Have every layer called by itself, on one graph."""
    checkpoint, fused = torch.utils.checkpoint.CheckpointFunction, torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # A compiled region is one autograd node: activations captured inside it are not part of the graph.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # Fused, without gradients, a transformer never calls its parts: two passes would not see the same operations.
        torch.backends.mha.set_fastpath_enabled(False)
        direct = types.SimpleNamespace(apply=lambda function, _preserve, *args: function(*args))
        torch.utils.checkpoint.CheckpointFunction = direct  # type: ignore[misc, assignment]  # the same `apply`
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            torch.utils.checkpoint.CheckpointFunction = checkpoint  # type: ignore[misc]


class _State:
    """What hangs on a model, and how to put it back."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []  # registered or not
        self.parameters: list[tuple[Path, Tensor]] = []  # as plain tensors on the same memory
        self._sums: list[float] = []
        self._restores: list[tuple[Path, Callable[[], None]]] = []
        self._handlers_of: Callable[[type], tuple[Handler, ...]] = cache(handlers_of)
        self._is_replaced: Callable[[type], bool] = cache(is_replaced)
        self._stand_ins: dict[int, tuple[object, object]] = {}
        # With whether it belongs to the model: of what is merely around, only random generators and modules are kept.
        self._waiting: list[tuple[Any, Path, bool]] = []
        self._seen: dict[tuple[int, bool], object] = {}  # holds them, since addresses are given again

    @contextmanager
    def kept(self, root: object) -> Iterator[None]:
        """Put back on leaving, also by an exception, whatever hangs on `root`."""
        try:
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.14 copies no `itertools` any more
                self._keep(root)
            yield
        except BaseException as error:
            for complaint in self._restore():
                error.add_note(complaint)
            raise
        if complaints := self._restore():
            raise ConfigurationError("\n".join(complaints))

    def _keep(self, root: object) -> None:
        self._waiting.append((root, (None, "model"), True))
        while self._waiting:
            value, path, belongs = self._waiting.pop()
            belongs = belongs or issubclass(type(value), nn.Module)
            if (id(value), True) not in self._seen and (id(value), belongs) not in self._seen:
                self._seen[id(value), belongs] = value
                if belongs or not issubclass(type(value), (Tensor, np.ndarray)):
                    self._enter(value, path, belongs)
        self._sums = [checksum(tensor) for _, tensor in self.parameters]

    def _enter(self, value: Any, path: Path, belongs: bool) -> None:
        """Remember one object; what hangs on it comes next."""
        cls = type(value)  # not `isinstance`: proxies and mocks say that they are something else
        if issubclass(cls, nn.Module):
            self.modules.append(value)
        elif issubclass(cls, Tensor) and isinstance(value, nn.Parameter):
            with torch._C.DisableTorchFunctionSubclass():
                self.parameters.append((path, value.detach()))
        if not is_library(cls.__module__):
            self._waiting.append((cls, path, belongs))
        for handler in self._handlers_of(cls):
            try:
                part = handler(value)
            except Exception as error:
                raise ConfigurationError(
                    f"Expected `{_name(path)}` to have a state that can be put back after the model was looked at, but "
                    f"reading it from {cls.__name__} raised {in_words(error)} Keep it outside the model."
                ) from error
            if part.restore is not None and (belongs or issubclass(cls, RANDOM)):
                self._restores.append((path, part.restore))
            children = [(name, child) for name, child in part.children if self._leads_on(child)]
            if belongs and part.put is not None:
                for name, child in children:
                    if (other := self._stand_in(child, (path, name))) is not child:
                        part.put(name, other)
            self._waiting += [(child, (path, name), False) for name, child in part.around if self._leads_on(child)]
            self._waiting += [(child, (path, name), belongs) for name, child in children]

    def _leads_on(self, value: object) -> bool:
        """Whether something hangs on a value, or it can change."""
        cls = type(value)
        if cls in PLAIN or (cls is tuple and all(type(item) in PLAIN for item in value)):  # type: ignore[attr-defined]
            return False
        return bool(self._handlers_of(cls))

    def _stand_in(self, value: Any, path: Path) -> Any:
        """A copy of an iterator, one for all places where it hangs; anything else itself."""
        if not self._is_replaced(type(value)):
            return value
        if id(value) not in self._stand_ins:
            self._stand_ins[id(value)] = (value, self._copied(value, path))
        return self._stand_ins[id(value)][1]

    def _copied(self, value: Any, path: Path) -> Any:
        if isinstance(value, tuple):
            items = [self._stand_in(item, path) for item in value]
            same = all(one is other for one, other in zip(items, value, strict=True))
            return value if same else tuple.__new__(type(value), items)
        if isinstance(value, BOUND):
            owner = self._stand_in(value.__self__, path)
            if owner is value.__self__:
                return value
            if isinstance(value, types.MethodType):
                return types.MethodType(value.__func__, owner)
            return getattr(owner, value.__name__)
        if hasattr(type(value), "__copy__"):  # itertools.tee
            return copy(value)
        made_by = None if isinstance(value, GENERATORS) else reduced(value)
        if made_by is None:
            return _Refusing(_name(path))
        make, arguments, *states = made_by
        other = make(*(self._stand_in(argument, path) for argument in arguments))
        if states and states[0] is not None:
            other.__setstate__(self._inner_state(states[0], path))
        return other

    def _inner_state(self, state: Any, path: Path) -> Any:
        """Iterators and lists in a state are the iterator's own, such as what `itertools.cycle` has seen so far."""
        if isinstance(state, tuple):
            return tuple(self._inner_state(item, path) for item in state)
        return list(state) if isinstance(state, list) else self._stand_in(state, path)

    def _restore(self) -> list[str]:
        """Put everything back; complaints about what could not be."""
        complaints = []
        with torch.inference_mode(False), torch.no_grad():
            for path, restore in self._restores:
                try:
                    restore()
                except Exception as error:  # one failure must not keep the rest from being put back
                    complaints.append(
                        f"Expected `{_name(path)}` to be as it was before the model was looked at, but it was changed "
                        f"and cannot be put back: {in_words(error)} Change it in the training step only."
                    )
            for (path, tensor), before in zip(self.parameters, self._sums, strict=False):
                after = checksum(tensor)
                if before != after and (before == before or after == after):  # noqa: PLR0124  # NaN equals itself here
                    complaints.append(
                        f"Expected the parameter `{_name(path)}` to be left alone while the model is looked at, but a "
                        "forward pass in eval mode wrote it in place. Parameters are not copied: write it in the "
                        "training step only, or make it a buffer."
                    )
        return complaints


class _Refusing:
    """Hangs where an iterator hung that cannot be copied, and refuses to give its next value."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __iter__(self) -> _Refusing:
        return self

    def __next__(self, *_: object) -> NoReturn:
        raise ConfigurationError(
            f"Expected `{self.where}` to be left alone while the model is looked at, but a forward pass asked this "
            "iterator for its next value, which cannot be given back. Advance it in the training step only, or use an "
            "iterator that can be copied, such as itertools.count, or a random generator."
        )

    send = throw = close = __anext__ = asend = __next__


def _name(path: Path) -> str:
    names: list[str] = []
    while path is not None:
        path, name = path
        if name not in ("", "_modules", "_parameters", "_buffers"):
            names.append(str(name) if isinstance(name, (str, int)) else type(name).__name__)
    return ".".join(reversed(names))
