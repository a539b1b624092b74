"""`forward`: one forward pass in which layers are captured and the last linear layer is tapped."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.access.layers import Layer
from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Tapped, capture, tap


class Forward(NamedTuple):
    """What one forward pass gave, all on one graph."""

    outputs: Tensor  # `(N, K)`, as the task reads them
    activations: dict[str, Tensor]  # by name of the layer
    head: Tapped | None  # what went into the last linear layer and came out; None where none was named


def forward(subject: Subject, images: Tensor, layers: Sequence[Layer] = (), head: str | None = None) -> Forward:
    """Run images `(N, C, H, W)` once; `head` names a last linear layer to be tapped. Call inside `undisturbed`.

    The graph begins at the earliest layer; without layers there is none. Raises a `TargetLayerError` if a layer did not
    run once.
    """
    names = list(dict.fromkeys(layer.name for layer in layers))
    # `capture` switches gradients on at the first layer. A model that switches them off itself, as wrappers of frozen
    # backbones do, undoes that on leaving its `no_grad`; with gradients on from the start, leaving it switches them on
    # again, at the price of a graph for what came before. So do views that are changed in place.
    for mode in (torch.no_grad, torch.enable_grad) if names else (torch.no_grad,):
        with ExitStack() as stack:
            stack.enter_context(mode())
            captured = stack.enter_context(capture(subject, names) if names else nullcontext())
            calls = stack.enter_context(tap(subject, head, detach=not names)) if head is not None else []
            try:
                outputs = subject(images)
            except RuntimeError as error:
                if mode is torch.no_grad and "created in no_grad mode" in str(error):
                    continue
                raise
        if outputs.requires_grad or not names:
            break
    return Forward(outputs, {} if captured is None else captured.tensors(), calls[0] if calls else None)
