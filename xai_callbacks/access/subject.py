"""`Subject`: a model as an audit sees it, whatever wraps it and whatever it returns."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from xai_callbacks.access.outputs import OutputSelector, binary_logits, looks_like_probabilities, select_output
from xai_callbacks.errors import ConfigurationError

__all__ = ["ModelSelector", "Subject", "find_module", "plain_name"]

ModelSelector = str | Callable[[nn.Module], Callable[[Tensor], object]]


class Subject:
    """Calls a model on images and returns logits `(N, K)` or values `(N, 1)`, float32.

    Args:
        model: The model, or the LightningModule that holds it. Wrappers (`DistributedDataParallel`, `DataParallel`,
            `torch.compile`) are looked through, so that a single rank can call it without collectives.
        select: Where the classifier is if `model.forward` is not it: a dotted name such as `net.backbone`, or a
            callable that receives `model` and returns a module or another callable from images to outputs.
        output: Which part of what the model returns holds the outputs; see `select_output`.
        task: `classification` or `regression`. A classifier with one output is read as one sigmoid logit.

    Raises:
        ConfigurationError: `select` names nothing callable.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        select: ModelSelector | None = None,
        output: OutputSelector | None = None,
        task: Literal["classification", "regression"] = "classification",
    ) -> None:
        self.task = task
        self.output = output
        self.root = _unwrap(model)
        self.call = _select(self.root, select)
        self.module = self.call if isinstance(self.call, nn.Module) else self.root
        self.probabilities = False

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer lives."""
        tensor = self._any_tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type the model computes in, that of its first floating parameter or buffer."""
        tensor = self._any_tensor()
        return torch.float32 if tensor is None else tensor.dtype

    def images(self, images: Tensor) -> Tensor:
        """Bring images `(N, C, H, W)` to the model's device and type."""
        return images.to(device=self.device, dtype=self.dtype)

    def select(self, raw: object, batch: int) -> Tensor:
        """The outputs `(N, K)` in what the model returned for `batch` images, as the model gave them."""
        return select_output(raw, self.output, batch)

    def __call__(self, images: Tensor) -> Tensor:
        """Forward pass; logits `(N, K)` with K >= 2, or values `(N, 1)` for regression."""
        return self.interpret(self.select(self.call(images), images.shape[0]))

    def interpret(self, outputs: Tensor) -> Tensor:
        """Read outputs of the model as logits: probabilities by their logarithm, one sigmoid logit as two classes."""
        if self.task == "regression":
            if outputs.shape[1] != 1:
                raise ConfigurationError(
                    "Expected a regression net to give one value an image, but got outputs of shape "
                    f"{tuple(outputs.shape)}. Choose one with `output=lambda outputs: outputs[:, 0]`, or give the "
                    "probes integer `labels` if this is a classifier."
                )
            return outputs
        if outputs.shape[1] == 1:
            return binary_logits(torch.logit(outputs, eps=1e-7) if self.probabilities else outputs)
        # log(p) are logits: the softmax of them is p.
        return outputs.clamp_min(1e-30).log() if self.probabilities else outputs

    def learn_output_kind(self, outputs: Tensor, *, ends_in_probabilities: bool) -> bool:
        """Decide from outputs `(N, K)` of sample images, and return, whether the model gives probabilities."""
        classifies = self.task == "classification"
        self.probabilities = classifies and (
            looks_like_probabilities(outputs, self.dtype) or (ends_in_probabilities and outputs.shape[1] == 1)
        )
        return self.probabilities

    def _any_tensor(self) -> Tensor | None:
        for source in (self.module.parameters(), self.module.buffers()):
            for tensor in source:
                if tensor.is_floating_point():
                    return tensor
        return None


def find_module(root: nn.Module, name: str, argument: str) -> nn.Module:
    """The submodule of a dotted name; `_orig_mod.` of compiled modules may be left out.

    Raises:
        ConfigurationError: No such module; the message suggests the nearest names.
    """
    modules: dict[str, nn.Module] = {plain_name(key): module for key, module in root.named_modules()}
    if name in modules and name:
        return modules[name]
    near = (
        difflib.get_close_matches(name, modules, n=3, cutoff=0.5)
        or [key for key in modules if key.endswith(f".{name}")][:3]
    )
    hint = f"Did you mean {' or '.join(repr(key) for key in near)}?" if near else f"Its parts are {_top_level(root)}."
    raise ConfigurationError(
        f"Expected `{argument}` to name a submodule of {type(root).__name__}, but got {name!r}. {hint}"
    )


def plain_name(name: str) -> str:
    """A module name without the parts that `torch.compile` adds."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod").removeprefix("_orig_mod")


def _top_level(root: nn.Module) -> str:
    return ", ".join(repr(plain_name(name)) for name, _ in root.named_children()) or "none"


def _unwrap(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"Expected `model` to be a torch.nn.Module, but got {type(model).__name__}.")
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
