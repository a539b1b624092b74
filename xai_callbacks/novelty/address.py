"""Novelty with an address: where in the image, and in which layer, a probe is novel."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.access import FeatureLayout, Subject
from xai_callbacks.errors import TargetLayerError
from xai_callbacks.novelty.all_layers import Label, squared_norms
from xai_callbacks.novelty.base import LastLayerScore

__all__ = ["layer_shares", "novelty_map"]


def novelty_map(
    activation: Tensor, layout: FeatureLayout, given: Tensor, output: Tensor, score: LastLayerScore
) -> Tensor:
    """Where in each image the novelty comes from: activations times the gradient of the score, summed over channels.

    This is HiResCAM (Draelos and Carin, 2020) of the novelty score instead of a logit: to first order, what the score
    would lose if a cell of the layer fell silent. Positive cells make the image more novel. The sum over the cells is
    in units of the score.

    Cost: one backward pass from the score to the layer; the graph is kept for others.

    Args:
        activation: What the layer returned, on the graph that leads to `given` and `output`.
        layout: How it lies on the image.
        given: What went into the last linear layer, `(N, F)`.
        output: What came out, `(N, K)`.
        score: The score; if it learns, fitted.

    Returns:
        Signed, `(N, h, w)` float32 on the grid of the layer; NaN for images that are not finite.

    Raises:
        TargetLayerError: The score does not depend on the layer.
    """
    # Copies, since others go on using these, and the score may be a user's.
    values = score.score(given.clone(), output.clone())
    gradient = None
    if values.requires_grad and activation.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), activation, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise TargetLayerError(
            f"Expected the novelty score `{score.name}` to depend on the layer of its map, but no gradient reaches it. "
            "Name a later layer, or choose a smooth score such as Energy."
        )
    products = layout.to_nchw((activation * gradient).detach()).float().sum(dim=1)
    return products.masked_fill(~values.detach().isfinite()[:, None, None], torch.nan)


def layer_shares(subject: Subject, images: Tensor, label: Label = "uniform") -> dict[str, Tensor]:
    """Which layer an image asks to change: each layer's share of the squared norm of the gradient of all parameters.

    The gradient is that of `GradientNorm`. Layers differ in size, so compare the share of an image with that of other
    images rather than with the shares of other layers. Cost: about one forward and backward pass. Call inside
    `access.undisturbed`.

    Args:
        subject: A classifier, of classes or of labels.
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
    for name, values in squared_norms(subject, images, label, "layer_shares").items():
        layer = name.rpartition(".")[0]
        by_layer[layer] = by_layer.get(layer, torch.zeros_like(values)) + values
    total = torch.stack(list(by_layer.values())).sum(dim=0)
    return {layer: values / total for layer, values in by_layer.items()}
