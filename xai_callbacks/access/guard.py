"""`undisturbed`: look at a model in the middle of its training and leave no trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy

import torch
from torch import Tensor, nn

from xai_callbacks.randomness import isolated_rng

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside, with gradients available, and find everything outside as it was.

    Inside: every submodule in eval mode, autograd recording (also under a surrounding `no_grad` or `inference_mode`),
    autocast off, compiled modules run eagerly so that hooks fire. On leaving, also by an exception, these are restored
    exactly: the train/eval flag of every submodule on its own, buffers and attributes, the `.grad` of every parameter,
    the grad and inference mode, and the random streams of Python, NumPy, torch and every initialised accelerator. Only
    what a forward pass does outside the model, such as calling a user's own hooks, cannot be undone.

    Parameters are not copied; call `torch.autograd.grad` inside and never `.backward()`.

    Args:
        model: Any module; its parameters may be frozen.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(isolated_rng())
        stack.enter_context(_no_autocast(model))
        stack.enter_context(_eager())
        stack.enter_context(_kept_gradients(model))
        stack.enter_context(_kept_buffers(model))
        stack.enter_context(_kept_attributes(model))
        stack.enter_context(_eval_mode(model))
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:
        # Not `model.eval()`: users override `train()` to pin parts of a model, and may do more there than set a flag.
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _kept_gradients(model: nn.Module) -> Iterator[None]:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass writes into buffers even in eval mode: counters, caches, running extremes."""
    kept = [
        (module, name, buffer, _copy(buffer)) for module in model.modules() for name, buffer in module._buffers.items()
    ]
    names = [(module, set(module._buffers.keys())) for module in model.modules()]
    try:
        yield
    finally:
        for module, known in names:
            for name in set(module._buffers.keys()) - known:
                del module._buffers[name]
        with torch.no_grad():
            for module, name, buffer, content in kept:
                module._buffers[name] = buffer
                if buffer is not None and content is not None and not _same(buffer, content):
                    buffer.copy_(content)


def _copy(buffer: Tensor | None) -> Tensor | None:
    uninitialised = isinstance(buffer, nn.parameter.UninitializedBuffer)
    return None if buffer is None or uninitialised else buffer.detach().clone()


def _same(buffer: Tensor, content: Tensor) -> bool:
    """Bitwise, so that a NaN equals itself."""
    if buffer.is_floating_point():
        return bool(((buffer == content) | (buffer.isnan() & content.isnan())).all())
    return torch.equal(buffer, content)


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass writes into attributes: counters, kept features, the state of a metric it updates."""
    kept = [
        (module, {key: (value, _content(value)) for key, value in _attributes(module)}) for module in model.modules()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, attributes in kept:
                for key in [key for key, _ in _attributes(module) if key not in attributes]:
                    del module.__dict__[key]
                for key, (value, content) in attributes.items():
                    module.__dict__[key] = value
                    _refill(value, content)


def _attributes(module: nn.Module) -> list[tuple[str, object]]:
    managed = ("_parameters", "_buffers", "_modules", "training")
    return [(key, value) for key, value in module.__dict__.items() if key not in managed and "_hooks" not in key]


def _content(value: object) -> object:
    """A copy of what can be changed in place without a new object."""
    if isinstance(value, Tensor):
        return _copy(value)
    return copy(value) if type(value) in (list, dict, set) else None


def _refill(value: object, content: object) -> None:
    if isinstance(value, Tensor) and isinstance(content, Tensor) and not _same(value, content):
        value.copy_(content)
    elif isinstance(value, list) and isinstance(content, list):
        value[:] = content
    elif isinstance(value, (dict, set)) and isinstance(content, (dict, set)):
        value.clear()
        value.update(content)


@contextmanager
def _no_autocast(model: nn.Module) -> Iterator[None]:
    """A float32 island: small gradients underflow in half precision."""
    devices = {"cpu"} | {parameter.device.type for parameter in model.parameters()}
    with ExitStack() as stack:
        for device in sorted(devices - {"meta"}):
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _eager() -> Iterator[None]:
    # A compiled region is one autograd node: activations captured inside it are not part of the graph.
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
