"""Novelty with an address: where in the image, and in which layer, a probe is novel."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.access import FeatureLayout, Subject
from xai_callbacks.errors import TargetLayerError
from xai_callbacks.novelty.base import LastLayerScore
from xai_callbacks.novelty.losses import squared_norms

__all__ = ["layer_shares", "novelty_map"]


def novelty_map(
    activation: Tensor, layout: FeatureLayout, given: Tensor, output: Tensor, score: LastLayerScore
) -> Tensor:
    """HiResCAM (Draelos and Carin, 2020) of a novelty score: activations times its gradient, summed over channels.

    To first order, what the score would lose if a cell of the layer fell silent: positive cells make the image more
    novel. Cost: one backward pass from the score to the layer; the graph is kept for others.

    Args:
        activation: Output of the layer, on the graph that leads to `given` and `output`.
        layout: How it lies on the image.
        given: Input of the last linear layer, `(N, F)`.
        output: Its output, `(N, K)`.
        score: The score; if it learns, fitted.

    Returns:
        Signed, `(N, h, w)` float32 on the grid of the layer, in units of the score; NaN for images that are not finite.

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


def layer_shares(subject: Subject, images: Tensor) -> dict[str, Tensor]:
    """Each layer's share of the squared norm of the gradient of `GradientNorm("uniform")`, at the same cost.

    Layers differ in size: compare the share of an image with that of other images, not with that of other layers.

    Returns:
        Shape `(N,)` float64 in [0, 1] by name of the module that holds the parameters, summing to 1 for each of the
        images `(N, C, H, W)`; NaN for images that are not finite, or whose gradient is zero.

    Raises:
        ConfigurationError: The model is no classifier, or its gradients cannot be told apart by image.
    """
    subject.task.require_classes("layer_shares")
    by_layer: dict[str, Tensor] = {}
    for name, values in squared_norms(subject, images, "uniform").items():
        layer = name.rpartition(".")[0]
        by_layer[layer] = by_layer.get(layer, torch.zeros_like(values)) + values
    total = torch.stack(list(by_layer.values())).sum(dim=0)
    return {layer: values / total for layer, values in by_layer.items()}
