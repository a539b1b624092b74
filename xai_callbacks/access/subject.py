"""`Subject`: a model as an audit sees it, whatever wraps it and whatever it returns."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from xai_callbacks.access.outputs import OutputSelector, select_output
from xai_callbacks.access.watching import module_names
from xai_callbacks.errors import ConfigurationError, OutputError, require_instance
from xai_callbacks.tasks import Ending, SingleLabel, Task

__all__ = ["BlackBox", "Model", "ModelSelector", "Subject", "as_module", "check_selectors", "find_module"]

ModelSelector = str | Callable[[nn.Module], Callable[[Tensor], object]]

OTHER_MODEL = "Prepare the auditor for this model with `prepare`, or give each model an auditor of its own."

# What a probability may be beside [0, 1] in half precision.
_ROUNDING = 1e-2

Model = nn.Module | Callable[[Tensor], object]
"""A module, or any function from images `(N, C, H, W)` to outputs: a black box."""


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
        raise ConfigurationError(
            f"Expected `model` to be a torch.nn.Module, or a function from images to outputs, but got "
            f"{type(model).__name__}."
        )
    return BlackBox(model)


class Subject:
    """Calls a model on images and returns logits `(N, K)` or values `(N, V)`, float32.

    Args:
        model: The model, the LightningModule that holds it, or a function from images to outputs. Wrappers
            (`DistributedDataParallel`, `DataParallel`, `torch.compile`) are looked through, so that a single rank can
            call it without collectives.
        task: How outputs are read; None for classes that exclude each other.
        select: Where the classifier is if `model.forward` is not it: a dotted name such as `net.backbone`, or a
            callable that receives `model` and returns a module or another callable from images to outputs.
        output: Which part of what the model returns holds the outputs; see `select_output`.

    Raises:
        ConfigurationError: `model` or `select` leads to nothing callable.
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
        """Learn from outputs `(N, K)` of sample images whether the model gives probabilities, and how many outputs.

        Raises an `OutputError` where they cannot be those of the probes.
        """
        self.probabilities = self.task.check(outputs, ending, self.dtype)
        self.task = self.task.sized(self.interpret(outputs).shape[1])


def check_selectors(model: object, output: object) -> None:
    """Raise a `ConfigurationError` for `model=` and `output=` of a wrong type, before there is a model."""
    if isinstance(model, nn.Module):
        raise ConfigurationError(
            f"Expected `model` to say where in the LightningModule the classifier is, but got a {type(model).__name__} "
            "itself. Give its dotted name, such as 'net.backbone', or a function such as `lambda module: module.net`."
        )
    if model is not None and not callable(model):
        require_instance("model", model, str, "a dotted name, or a function of the LightningModule")
    if output is not None and not callable(output):
        require_instance("output", output, (str, int), "a key, an index, or a function of what the model returns")


def find_module(root: nn.Module, name: str, argument: str) -> nn.Module:
    """The submodule of a dotted name; `_orig_mod.` of compiled modules may be left out.

    Raises a `ConfigurationError` that suggests the nearest names.
    """
    modules = module_names(root)
    if name in modules and name:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.5)
    near = near or [key for key in modules if key.endswith(f".{name}")][:3]
    parts = ", ".join(repr(key) for key in modules if key and "." not in key) or "none"
    hint = f"Did you mean {' or '.join(repr(key) for key in near)}?" if near else f"Its parts are {parts}."
    raise ConfigurationError(
        f"Expected `{argument}` to name a submodule of {type(root).__name__}, but got {name!r}. {hint}"
    )


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
