"""`NoveltyMap`: an explainer of where in the image a probe is novel."""

from types import NoneType
from typing import ClassVar

import torch
from torch import Tensor

from xai_callbacks.access import Trace, choose_layer, name_layer
from xai_callbacks.errors import ConfigurationError, TargetLayerError, require_instance
from xai_callbacks.explainers import Explainer, Observation, Plan
from xai_callbacks.explainers.base import About
from xai_callbacks.novelty.base import LastLayerScore
from xai_callbacks.novelty.last_layer import Energy


class NoveltyMap(Explainer):
    """Heatmap of what makes each image novel, whatever is asked: HiResCAM (Draelos and Carin, 2020) of a novelty score.

    Activations of the layer times the gradient of the score, summed over channels: to first order, what the score would
    lose if a cell fell silent. Positive cells make the image more novel. One map an image, under the key of the
    explainer alone. Cost: one backward pass to the layer, no forward pass of its own.

    Args:
        score: A smooth score of the last layer; None for `Energy()`. One that learns is a `ConfigurationError`.
        target_layer: Name of the layer; None chooses as Grad-CAM does.
        name: What its keys begin with; None for `novelty_map`.
    """

    about: ClassVar[About] = "image"

    def __init__(
        self, score: LastLayerScore | None = None, *, target_layer: str | None = None, name: str | None = None
    ) -> None:
        super().__init__("novelty_map" if name is None else name)
        self.score = Energy() if score is None else score
        require_instance("score", self.score, LastLayerScore, "a score of the last layer, such as Energy()")
        if self.score.learns:
            raise ConfigurationError(f"Expected `score` to be one that does not learn, but got {self.score.name!r}.")
        require_instance("target_layer", target_layer, (str, NoneType), "the name of a layer, or None")
        self.target_layer = target_layer

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """See `Explainer.prepare`; needs a model that ends in one linear layer."""
        if trace.head() is None:
            raise ConfigurationError(
                "Expected a model that ends in one linear layer for NoveltyMap, but got none at its end. Leave it out."
            )
        layer = choose_layer(trace) if self.target_layer is None else name_layer(trace, self.target_layer)
        return Plan((layer,), layer.reason, verified=layer.verified)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """See `Explainer.explain`; `(1, N, h, w)`, NaN for images that are not finite."""
        assert observation.head is not None  # noqa: S101  # `prepare` says so; narrows the type
        (layer,) = plan.layers
        activation, gradient = observation.activations[layer.name], None
        # Copies, since others go on using these, and the score may be a user's.
        values = self.score.score(*(each.clone() for each in observation.head))
        if values.requires_grad and activation.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), activation, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise TargetLayerError(
                f"Expected the novelty score `{self.score.name}` to depend on the layer of its map, but no gradient "
                "reaches it. Name a later layer, or choose a smooth score such as Energy."
            )
        products = layer.layout.to_nchw((activation * gradient).detach()).float().sum(dim=1)
        return products.masked_fill(~values.detach().isfinite()[:, None, None], torch.nan)[None]

    def __repr__(self) -> str:
        return f"NoveltyMap({type(self.score).__name__}(), target_layer={self.target_layer!r})"
