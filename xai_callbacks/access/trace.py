"""One observed forward pass: which modules ran, in which order, and what came out of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from xai_callbacks.access.subject import Subject, plain_name
from xai_callbacks.errors import ConfigurationError

__all__ = ["Call", "Trace", "depends_on_images", "first_tensor", "trace_model", "with_first_tensor"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one module, recorded as it returned."""

    name: str
    module: nn.Module
    given: Tensor | None
    output: Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass on a few images with its graph; meant to be looked at and thrown away.

    Attributes:
        subject: The model.
        images: What went in, `(N, C, H, W)`.
        calls: In the order in which modules returned, so a container follows its parts. Compared by identity, the
            tensors tell which modules passed one result on.
        outputs: What came out, `(N, K)`, before interpretation.
    """

    subject: Subject
    images: Tensor
    calls: tuple[Call, ...]
    outputs: Tensor

    def times_called(self) -> Counter[str]:
        """How often each module ran."""
        return Counter(call.name for call in self.calls)

    def ends_in_probabilities(self) -> bool:
        """Whether the outputs come straight from a sigmoid or softmax, of a module or a function."""
        return _name(_behind(self.outputs.grad_fn, _RESHAPING)) in _PROBABILITIES

    def head(self) -> Call | None:
        """The linear layer whose results are the outputs, up to a sigmoid or softmax; None if there is none."""
        source = _behind(self.outputs.grad_fn, _RESHAPING | _PROBABILITIES)
        times = self.times_called()
        for call in self.calls:
            fits = isinstance(call.module, nn.Linear) and call.output.shape == self.outputs.shape
            if fits and source is not None and call.output.grad_fn is source and times[call.name] == 1:
                return call
        return None


def depends_on_images(trace: Trace, *, around: Tensor | None = None) -> bool:
    """Whether a path of the autograd graph leads from the outputs to the images, around a tensor if one is given."""
    seen = set() if around is None else {around.grad_fn}
    waiting = [trace.outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node is trace.images.grad_fn:
            return True
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return False


# Nodes of the autograd graph that hand values on, and those that turn logits into probabilities.
_RESHAPING = frozenset({"Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias", "ToCopy", "Clone", "Alias"})
_PROBABILITIES = frozenset({"Sigmoid", "Softmax", "LogSoftmax"})


def _behind(node: Node | None, passed: frozenset[str]) -> Node | None:
    """The first node, seen from the outputs, whose kind is not among those to be passed."""
    while node is not None and _name(node) in passed and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _name(node: Node | None) -> str:
    """Such as "Sigmoid" for `SigmoidBackward0`."""
    return "" if node is None else node.name().rpartition("Backward")[0]


def trace_model(subject: Subject, images: Tensor) -> Trace:
    """Run the model on `images` `(N, C, H, W)` and record every module call.

    Call inside `undisturbed`. The images require grad, so that the graph exists for frozen models too. A model that
    switches gradients off itself, as wrappers of frozen backbones do, is run a second time with gradients switched on
    again by each module. Cost: one forward pass whose activations are kept.

    Raises:
        ConfigurationError: The model cannot run on these images; the cause is chained.
    """
    trace = _run(subject, images)
    if not depends_on_images(trace):
        # Where the model does not stand this, it stays with what was seen.
        with suppress(ConfigurationError):
            trace = _run(subject, images, insist=True)
    return trace


def _run(subject: Subject, images: Tensor, *, insist: bool = False) -> Trace:
    calls: list[Call] = []
    # The model gets a copy of a leaf: it may normalise its input in place.
    images = subject.images(images).detach().clone().requires_grad_(True).clone()
    with _recording(subject.module, calls, insist=insist):
        try:
            raw = subject.call(images)
        except Exception as error:
            raise ConfigurationError(
                f"Expected the model to run on probe images of shape {tuple(images.shape[1:])} (C, H, W), but it "
                f"raised {type(error).__name__}: {error}. Give the probes the size and normalisation of the training "
                "images, or say with `model=` which part classifies images; if it takes a batch, "
                "`model=lambda m: lambda images: m({'image': images})`."
            ) from error
    outputs = subject.select(raw, images.shape[0])
    return Trace(subject, images, tuple(calls), outputs)


@contextmanager
def _recording(root: nn.Module, calls: list[Call], *, insist: bool) -> Iterator[None]:
    handles = []
    # Compiled parts come twice, as wrapper and as what is wrapped, and the latter counts.
    modules = {plain_name(name): module for name, module in root.named_modules()}
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(_record, calls, name)))
            if insist:
                handles.append(module.register_forward_pre_hook(_record_gradients))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_gradients(_module: nn.Module, _given: tuple[object, ...]) -> None:
    # Leaving the `no_grad` that this undoes switches back to what was before it.
    torch.set_grad_enabled(True)


def _record(calls: list[Call], name: str, module: nn.Module, given: tuple[object, ...], output: object) -> None:
    tensor = first_tensor(output)
    if tensor is not None:
        calls.append(Call(name, module, first_tensor(given), tensor))


def first_tensor(output: object) -> Tensor | None:
    """The tensor itself, or the first entry of a tuple or list if that is a tensor."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def with_first_tensor(output: object, tensor: Tensor) -> object:
    """`output` with the tensor that `first_tensor` finds replaced."""
    if isinstance(output, tuple):
        rest = (tensor, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest
    return [tensor, *output[1:]] if isinstance(output, list) else tensor
