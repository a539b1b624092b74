"""Class activation maps: one backward pass a question through what follows the layer in the shared forward pass.

With `A` the activations `(N, D, h, w)` and `G` the gradient of a question's score with respect to them:

| explainer | heatmap | source |
|---|---|---|
| `GradCAM` | `sum_d mean_hw(G_d) A_d` | Selvaraju et al., ICCV 2017; CAM (Zhou et al., CVPR 2016) of nets with GAP |
| `HiResCAM` | `sum_d G_d A_d` | Draelos and Carin, 2020 |
| `LayerCAM` | `sum_d relu(G_d) A_d` | Jiang et al., IEEE TIP 2021 |

All are returned signed and without normalisation. The published pictures apply a ReLU and scale each map to its own
maximum; that is a matter of display and of metrics, and it would make epochs incomparable here.
"""

from abc import abstractmethod
from dataclasses import replace
from types import NoneType

import torch
from torch import Tensor

from xai_callbacks.access import LayoutName, Trace, choose_layer, name_layer
from xai_callbacks.access.layouts import check_layout
from xai_callbacks.errors import TargetLayerError, require_instance
from xai_callbacks.explainers.base import Explainer, Observation, Plan


class LayerExplainer(Explainer):
    """Base of explainers at one layer; a subclass says how gradients weigh activations.

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
        """One backward pass through the head a question, shared with all explainers at layers."""
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
        return torch.einsum("ndhw,ndhw->nhw", gradients, activations)


class LayerCAM(LayerExplainer):
    """LayerCAM: like HiResCAM with positive gradients only; useful at earlier, finer layers."""

    name = "layercam"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d relu(G_d) A_d`."""
        return torch.einsum("ndhw,ndhw->nhw", gradients.clamp_min(0), activations)
