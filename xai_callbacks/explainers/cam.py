"""Class activation maps: one backward pass a question through what follows the layer in the shared forward pass.

With `A` the activations `(N, D, h, w)` and `G` the gradient of a question's score with respect to them:

| explainer | heatmap | source |
|---|---|---|
| `CAM` | `sum_d W[c, d] A_d`, `W` the weights of the head | Zhou et al., CVPR 2016 |
| `GradCAM` | `sum_d mean_hw(G_d) A_d` | Selvaraju et al., ICCV 2017 |
| `GradCAMPlusPlus` | `sum_d sum_hw(a_d relu(G_d)) A_d`, `a` see there | Chattopadhay et al., WACV 2018 |
| `HiResCAM` | `sum_d G_d A_d` | Draelos and Carin, 2020 |
| `LayerCAM` | `sum_d relu(G_d) A_d` | Jiang et al., IEEE TIP 2021 |

All are returned signed and without normalisation. The published pictures apply a ReLU and scale each map to its own
maximum; that is a matter of display and of metrics, and it would make epochs incomparable here.
"""

from abc import abstractmethod
from dataclasses import replace
from types import NoneType
from typing import ClassVar

import torch
from torch import Tensor

from xai_callbacks.access import LayoutName, Trace, choose_layer, name_layer
from xai_callbacks.access.layouts import check_layout
from xai_callbacks.access.trace import gradient_edge
from xai_callbacks.access.watching import Address
from xai_callbacks.errors import ConfigurationError, TargetLayerError, require_instance
from xai_callbacks.explainers.base import Explainer, Observation, Plan, Units

_ROUNDING = 1e-3  # cells that count alike may differ by this share


class LayerExplainer(Explainer):
    """Base of explainers at one layer; a subclass says how gradients weigh activations.

    Cost: no forward pass beyond the shared one, and one backward pass a question through what follows the layer.

    Args:
        target_layer: Address of the tensor to explain at, such as the dotted name of a module; see `access.Address`.
            None chooses, see `access.choose_layer`.
        layout: How the tensor is read, such as `NCHW`, if its shape does not tell.
        name: What keys begin with; another one is needed for a second explainer of the same kind.
    """

    def __init__(
        self, target_layer: str | None = None, layout: LayoutName | None = None, *, name: str | None = None
    ) -> None:
        if layout is not None and target_layer is None:
            raise TargetLayerError(
                f"Expected `target_layer` to be given with `layout`, but got `layout={layout!r}` alone. Name the layer."
            )
        require_instance("target_layer", target_layer, (str, NoneType), "the name of a layer")
        check_layout(layout)
        super().__init__(name)
        self.target_layer, self.layout = target_layer, layout

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Look up the named layer, or choose one."""
        target = self.target_layer
        layer = choose_layer(trace) if target is None else name_layer(trace, target, self.layout)
        return Plan((layer,), layer.reason, verified=layer.verified)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One backward pass through the head a question, shared with all explainers at layers.

        Many questions go at once: a hundred contrasts of MobileNetV2 at 224 pixels cost about two forward passes.
        """
        (layer,) = plan.layers
        activations = layer.layout.to_nchw(observation.activations[layer.name].detach()).float()
        gradients = (observation.gradient(each, layer) for each in range(len(observation.posed)))
        return torch.stack([self.combine(activations, layer.layout.to_nchw(each).float()) for each in gradients])

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Combine activations and gradients, both `(N, D, h, w)`, float32, into signed maps `(N, h, w)`."""


class GradCAM(LayerExplainer):
    """Grad-CAM: channels weighted by their mean gradient."""

    name = "gradcam"

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Note where the gradients of all cells cancel, so that their mean is 0."""
        plan = super().prepare(trace, reference)
        if not plan.layers[0].cancels:
            return plan
        note = (
            f"Heatmaps of `{self.name}` are empty: gradients at `{plan.layers[0].name}` add up to 0 over the cells, as "
            "after global max and min pooling. Use HiResCAM(), which does not average them."
        )
        return replace(plan, notes=(note,))

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d mean_hw(G_d) A_d`."""
        return torch.einsum("nd,ndhw->nhw", gradients.mean(dim=(2, 3)), activations)


class HiResCAM(LayerExplainer):
    """HiResCAM: gradients multiply activations cell by cell, so the map shows just what the net computed."""

    name = "hirescam"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d G_d A_d`."""
        return (gradients * activations).sum(dim=1)


class LayerCAM(LayerExplainer):
    """LayerCAM: like HiResCAM with positive gradients only; useful at earlier, finer layers."""

    name = "layercam"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d relu(G_d) A_d`."""
        return (gradients.clamp_min(0) * activations).sum(dim=1)


class GradCAMPlusPlus(LayerExplainer):
    """Grad-CAM++: channels weighted by their positive gradients, those of small parts of the image not less.

    The weight of a channel is `sum_hw(a relu(G))` with `a = G^2 / (2 G^2 + sum_hw(A) G^3)`, which is
    `1 / (2 + sum_hw(A) G)`: the closed form for the exponential of the score, whose factor, the same for all cells, is
    left out. Twice the score is not twice the map. Where the activations of a channel, not of a rectifier, add up to
    less than 0, `a` is 1/2: the formula has a pole there.
    """

    name = "gradcam_plus_plus"
    units: ClassVar[Units] = "relative"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d sum_hw(relu(G_d) / (2 + sum_hw(A_d) G_d)) A_d`."""
        positive = gradients.clamp_min(0)
        total = activations.sum(dim=(2, 3), keepdim=True).clamp_min(0)
        weights = (positive / (2 + total * positive)).sum(dim=(2, 3))
        return torch.einsum("nd,ndhw->nhw", weights, activations)


class CAM(LayerExplainer):
    """The class activation map: the weights of the last layer, laid over the feature map that is averaged before it.

    `sum_d W[c, d] A_d`, for nets that end in global average pooling and one linear layer, or in a convolution and
    pooling. It is Grad-CAM times the number of cells: its mean, not its sum, is the logit without the bias.
    """

    name = "cam"
    units: ClassVar[Units] = "relative"

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that each cell counts alike, whatever the image; a `ConfigurationError` says what to take instead."""
        plan = super().prepare(trace, reference)
        (layer,) = plan.layers
        (value,), head = trace.at(Address.parse(layer.name)), trace.head()
        read = trace.outputs if head is None else head.given
        weights = torch.randn(read.shape[1], generator=torch.Generator().manual_seed(0)).to(read)
        found: Tensor | None = torch.autograd.grad(
            [(read @ weights).sum()], [gradient_edge(*value.edge)], retain_graph=True, allow_unused=True
        )[0]
        cells = None if found is None else layer.layout.to_nchw(found).float()
        if cells is None or bool((cells - cells[:1, :, :1, :1]).abs().amax() > _ROUNDING * cells.abs().amax()):
            raise ConfigurationError(
                f"Expected a model that ends in global average pooling of `{layer.name}` and one linear layer for "
                f"{type(self).__name__}(), but its cells do not count alike. Use GradCAM(), which generalises it."
            )
        return plan

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d sum_hw(G_d) A_d`."""
        return torch.einsum("nd,ndhw->nhw", gradients.sum(dim=(2, 3)), activations)
