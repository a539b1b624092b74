"""Novelty with an address: where in the image, and in which layer, a probe is novel."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.access import Subject, Tapped, TargetLayer, capture, tap
from xai_callbacks.errors import TargetLayerError
from xai_callbacks.novelty.all_layers import Label, squared_norms
from xai_callbacks.novelty.base import LastLayerScore

__all__ = ["layer_shares", "novelty_map"]


def novelty_map(subject: Subject, layer: TargetLayer, head: str, images: Tensor, score: LastLayerScore) -> Tensor:
    """Where in each image the novelty comes from: activations times the gradient of the score, summed over channels.

    This is HiResCAM (Draelos and Carin, 2020) of the novelty score instead of a logit: to first order, what the score
    would lose if a cell of the target layer fell silent. Positive cells make the image more novel. The sum over the
    cells is in units of the score.

    Cost: one forward pass, and one backward pass from the score to the target layer. Call inside
    `access.undisturbed`.

    Args:
        subject: A classifier.
        layer: Target layer, as an explainer's `prepare` returns it.
        head: Name of the last linear layer.
        images: Shape `(N, C, H, W)`.
        score: The score; if it learns, fitted.

    Returns:
        Signed, `(N, h, w)` float32 on the grid of the layer; NaN for images that are not finite.

    Raises:
        TargetLayerError: The score does not depend on the layer.
    """
    features, call = _watched(subject, layer, head, subject.images(images))
    values = score.score(call.given, call.output)
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), features, allow_unused=True)
    if gradient is None:
        raise TargetLayerError(
            f"Expected the novelty score `{score.name}` to depend on the target layer `{layer.name}`, but no gradient "
            "reaches it. Name a later layer, or choose a smooth score such as Energy."
        )
    products = layer.layout.to_nchw((features * gradient).detach()).float().sum(dim=1)
    return products.masked_fill(~values.detach().isfinite()[:, None, None], torch.nan)


def _watched(subject: Subject, layer: TargetLayer, head: str, images: Tensor) -> tuple[Tensor, Tapped]:
    """What the target layer returned, as a leaf of the graph, and the call of the head that follows from it."""
    for mode in (torch.no_grad, torch.enable_grad):
        # `capture` switches gradients on at the layer, so that no graph is made of what comes before; where the model
        # switches them off again, they must have been on from the start.
        with mode(), capture(subject, layer.name) as captured, tap(subject, head, detach=False) as calls:
            subject(images)
        if calls[0].output.requires_grad:
            break
    return captured.only(layer.name), calls[0]


def layer_shares(subject: Subject, images: Tensor, label: Label = "uniform") -> dict[str, Tensor]:
    """Which layer an image asks to change: each layer's share of the squared norm of the gradient of all parameters.

    The gradient is that of `GradientNorm`. Layers differ in size, so compare the share of an image with that of other
    images rather than with the shares of other layers. Cost: about one forward and backward pass. Call inside
    `access.undisturbed`.

    Args:
        subject: A classifier.
        images: Shape `(N, C, H, W)`.
        label: What the gradient pulls toward, see `GradientNorm`.

    Returns:
        Shape `(N,)` float64 in [0, 1] by name of the module that holds the parameters, summing to 1 for each image; NaN
        for images that are not finite, or whose gradient is zero.

    Raises:
        ConfigurationError: The model is no classifier, has no trainable parameter, or its gradients cannot be told
            apart by image.
    """
    by_layer: dict[str, Tensor] = {}
    for name, values in squared_norms(subject, images, label).items():
        layer = name.rpartition(".")[0]
        by_layer[layer] = by_layer.get(layer, torch.zeros_like(values)) + values
    total = torch.stack(list(by_layer.values())).sum(dim=0)
    return {layer: values / total for layer, values in by_layer.items()}
