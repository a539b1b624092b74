"""`Subject`: a model as an audit sees it, whatever wraps it and whatever it returns."""

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai_callbacks.access.watching import module_names
from xai_callbacks.errors import ConfigurationError, OutputError, require_instance
from xai_callbacks.tasks import Ending, SingleLabel, Task

Model = nn.Module | Callable[[Tensor], object]
"""A module, or any function from images `(N, C, H, W)` to outputs: a black box."""

ModelSelector = str | Callable[[nn.Module], Callable[[Tensor], object]]
OutputSelector = str | int | Callable[[object], Tensor]

OTHER_MODEL = "Prepare the auditor for this model with `prepare`, or give each model an auditor of its own."
_ROUNDING = 1e-2  # how far outside [0, 1] a probability may lie in half precision


class BlackBox(nn.Module):
    """A function from images to outputs, perhaps arrays: nothing in it can be watched or differentiated."""

    def __init__(self, call: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.call = call

    def forward(self, images: Tensor) -> object:
        """Call the function without a graph."""
        with torch.no_grad():
            return self.call(images.detach())


def as_module(model: Model) -> nn.Module:
    """The model, or a black box around a function; raises a `ConfigurationError` where it is neither."""
    if isinstance(model, nn.Module):
        return model
    if not callable(model) or isinstance(model, type):  # type: ignore[redundant-expr]  # users may pass anything
        wanted, kind = "a torch.nn.Module, or a function from images to outputs", type(model).__name__
        raise ConfigurationError(f"Expected `model` to be {wanted}, but got {kind}.")
    return BlackBox(model)


class Subject:
    """Calls a model on images and returns logits `(N, K)` or values `(N, V)`, float32.

    Args:
        model: The model, the LightningModule that holds it, or a function from images to outputs. Wrappers such as
            `DistributedDataParallel` and `torch.compile` are looked through: a single rank can call it.
        task: How outputs are read; None for classes that exclude each other.
        select: Where the classifier is if `model.forward` is not it: a dotted name such as `net.backbone`, or a
            callable that receives `model` and returns a module or another callable from images to outputs.
        output: Which part of what the model returns holds the outputs; see `select_output`.

    Raises a `ConfigurationError` where `model` or `select` leads to nothing callable.
    """

    def __init__(
        self,
        model: Model,
        task: Task | None = None,
        *,
        select: ModelSelector | None = None,
        output: OutputSelector | None = None,
    ) -> None:
        self.task = SingleLabel() if task is None else task
        self.output = output
        self.root = _unwrap(as_module(model))
        self.call = _select(self.root, select)
        self.module = self.call if isinstance(self.call, nn.Module) else self.root
        self.probabilities = False

    @property
    def device(self) -> torch.device:
        """Where the first floating parameter or buffer lives."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the first floating parameter or buffer."""
        return self._any_tensor().dtype

    def _any_tensor(self) -> Tensor:
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0, dtype=torch.float32))

    def images(self, images: Tensor) -> Tensor:
        """A copy of images `(N, C, H, W)`, on the model's device and of its type."""
        return images.to(device=self.device, dtype=self.dtype, copy=True)

    def run(self, images: Tensor) -> object:
        """What the model returns for images `(N, C, H, W)`; it gets a copy, since it may normalise in place."""
        return self.call(images.clone())

    def select(self, raw: object, batch: int) -> Tensor:
        """The outputs `(N, K)` in what the model returned for `batch` images, as the model gave them."""
        return select_output(raw, self.output, batch, self.task)

    def __call__(self, images: Tensor) -> Tensor:
        """Forward pass; logits `(N, K)` or values `(N, V)`, as the task reads them."""
        return self.interpret(self.select(self.run(images), images.shape[0]))

    def interpret(self, outputs: Tensor) -> Tensor:
        """Read outputs of the model as the task does; raises an `OutputError` if they are no longer probabilities."""
        # NaN is told elsewhere, with the probe.
        if self.probabilities and bool(((outputs < -_ROUNDING) | (outputs > 1 + _ROUNDING)).any()):
            raise OutputError(
                "Expected probabilities, as the model gave when it was prepared, but got outputs from "
                f"{float(outputs.min()):.3g} to {float(outputs.max()):.3g}. {OTHER_MODEL}"
            )
        return self.task.read(outputs, probabilities=self.probabilities)

    def learn_outputs(self, outputs: Tensor, ending: Ending) -> None:
        """Learn from outputs `(N, K)` whether they are probabilities, and how many; raises an `OutputError`."""
        self.probabilities = self.task.check(outputs, ending, self.dtype)
        self.task = replace(self.task, width=self.interpret(outputs).shape[1])


def check_selectors(model: object, output: object) -> None:
    """Raise a `ConfigurationError` for `model=` and `output=` of a wrong type, before there is a model."""
    if model is not None and (isinstance(model, nn.Module) or not callable(model)):
        require_instance("model", model, str, "the dotted name of the classifier, or a function of the LightningModule")
    if output is not None and not callable(output):
        require_instance("output", output, (str, int), "a key, an index, or a function of what the model returns")


def find_module(
    root: nn.Module, name: str, argument: str, error: type[ConfigurationError] = ConfigurationError
) -> nn.Module:
    """The submodule of a dotted name, in which `_orig_mod.` may be left out, or an error with the nearest names."""
    modules = module_names(root)
    if name in modules and name:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.5)
    parts = ", ".join(repr(key) for key in modules if key and "." not in key) or "none"
    hint = f"Did you mean {' or '.join(repr(key) for key in near)}?" if near else f"Its parts are {parts}."
    raise error(f"Expected `{argument}` to name a submodule of {type(root).__name__}, but got {name!r}. {hint}")


def _unwrap(model: nn.Module) -> nn.Module:
    inner: object = model
    while isinstance(inner, nn.Module):
        model = inner
        wraps = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = model.module if wraps else getattr(model, "_orig_mod", None)
    return model


def _select(root: nn.Module, select: ModelSelector | None) -> Callable[[Tensor], object]:
    if select is None:
        return root
    found = find_module(root, select, "model") if isinstance(select, str) else select(root)
    if isinstance(found, nn.Module):
        return _unwrap(found)
    if not callable(found):
        raise ConfigurationError(f"Expected `model` to lead to a module or a callable, but got {type(found).__name__}.")
    return found


def select_output(raw: object, output: OutputSelector | None, batch: int, task: Task) -> Tensor:
    """Find the outputs `(N, K)`, float32, on the graph of the model, in what it returned for `batch` images.

    `raw` is a tensor, array, tuple, list, mapping, or object with attributes; `output` a key, attribute or index, or a
    callable from `raw` to the tensor. None chooses: the tensor itself, the only tensor of shape `(N, K)` or `(N,)`, of
    several the only one of a width that the task accepts, or the one named `logits`. Raises an `OutputError` where
    nothing fits, or several things do; the message lists what the model returned.
    """
    found = _automatic(raw, batch, task) if output is None else _chosen(raw, output)
    how = "the automatic choice" if output is None else f"`output={output!r}`"
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    if isinstance(found, Tensor) and found.ndim == 0 and batch == 1:  # all axes may have been squeezed away
        found = found[None]
    if isinstance(found, Tensor) and found.shape == (batch,):
        found = found[:, None]
    shaped = isinstance(found, Tensor) and found.ndim == 2 and found.shape[0] == batch and found.shape[1] > 0
    if not isinstance(found, Tensor) or not shaped or not found.is_floating_point():
        raise OutputError(
            f"Expected logits, probabilities or values of shape (N, K) with N = {batch}, but {how} led to "
            f"{_describe(found)} in {_describe(raw)}. Pass `output=` as a key, an index, or a callable that returns "
            "them; `model=` says which part of the model classifies images."
        )
    return found.float()


def _automatic(raw: object, batch: int, task: Task) -> object:
    if isinstance(raw, (Tensor, np.ndarray)):
        return raw
    tensors = {key: item for key, item in _parts(raw).items() if isinstance(item, Tensor) and item.is_floating_point()}
    fitting = {
        key: item for key, item in tensors.items() if item.ndim in (1, 2) and len(item) == batch and item.numel() > 0
    }
    accepted = {key: item for key, item in fitting.items() if task.accepts(item.shape[1:].numel())}
    for some in (fitting, accepted):
        if len(some) == 1:
            return next(iter(some.values()))
    if "logits" in accepted or not fitting:  # the one name that tells them from whatever stands beside
        return accepted.get("logits")
    several = " and ".join(f"{tuple(item.shape)} at {key!r}" for key, item in list(fitting.items())[:4])
    fits = f"{'none' if not accepted else 'more than one'} of them fits {task.wanted}"
    keys = " or ".join(f"`output={key!r}`" for key in list(accepted or fitting)[:4])
    raise OutputError(
        f"Expected one tensor of outputs (N, K), but the model returns {several}, and {fits}. Say which holds the "
        f"outputs that the probes are about: {keys}."
    )


def _chosen(raw: object, output: OutputSelector) -> object:
    if callable(output):
        return output(raw)
    try:
        if isinstance(raw, (Tensor, np.ndarray)):
            raise TypeError  # `raw[1]` would be the second image of the batch, which could pass for one value an image
        named = isinstance(output, str) and not isinstance(raw, Mapping)
        return getattr(raw, output) if named else raw[output]  # type: ignore[index, arg-type]  # what users have
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise OutputError(
            "Expected `output` to be a key, attribute or index of what the model returns, or to be left out for a "
            f"tensor, but got {output!r} for {_describe(raw)}."
        ) from error


def _parts(raw: Any) -> dict[Any, object]:
    """The parts of what was returned, by the `output=` that leads to each."""
    if isinstance(raw, Mapping):
        return dict(raw.items())
    if hasattr(raw, "_asdict"):
        return dict(raw._asdict())
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        return dict(enumerate(raw))
    if is_dataclass(raw):
        return {each.name: getattr(raw, each.name, None) for each in fields(raw)}  # with slots, too
    return dict(getattr(raw, "__dict__", {}))


def _describe(item: object) -> str:
    if isinstance(item, (Tensor, np.ndarray)):
        kind = "" if "float" in str(item.dtype) else f"{item.dtype} "
        return f"{'a tensor' if isinstance(item, Tensor) else 'an array'} of {kind}shape {tuple(item.shape)}"
    if item is None or isinstance(item, (str, int, float)):
        return repr(item)
    parts = {key: _describe(value) for key, value in _parts(item).items()}
    listed = ", ".join(f"{key}: {part}" for key, part in parts.items())
    return f"a {type(item).__name__} with {{{listed}}}" if parts else f"a {type(item).__name__}"
