"""Class activation maps: one backward pass a question through what follows the layer in the shared forward pass.

With `A` the activations `(N, D, h, w)`, `G` the gradient of a question's score with respect to them, and `w` that with
respect to the input of the last linear layer:

| explainer | heatmap | source |
|---|---|---|
| `CAM` | `sum_d w_d A_d / (h w)` | Zhou et al., CVPR 2016 |
| `GradCAM` | `sum_d mean_hw(G_d) A_d` | Selvaraju et al., ICCV 2017 |
| `HiResCAM` | `sum_d G_d A_d` | Draelos and Carin, 2020 |
| `LayerCAM` | `sum_d relu(G_d) A_d` | Jiang et al., IEEE TIP 2021 |

All are returned signed and without normalisation. The published pictures apply a ReLU and scale each map to its own
maximum; that is a matter of display and of metrics, and it would make epochs incomparable here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from xai_callbacks.access import Address, Layer, LayoutName, Trace, choose_layer, name_layer
from xai_callbacks.access.layouts import check_layout
from xai_callbacks.access.trace import gradient_edge
from xai_callbacks.errors import TargetLayerError
from xai_callbacks.explainers.base import Explainer, Observation, Plan

__all__ = ["CAM", "GradCAM", "HiResCAM", "LayerCAM", "LayerExplainer"]


class LayerExplainer(Explainer):
    """Base of explainers at one layer; a subclass says how gradients weigh activations.

    Args:
        target_layer: Address of the tensor to explain at, such as the dotted name of a module, or the module; see
            `access.Address`. None chooses, see `access.choose_layer`.
        layout: How the tensor is read, such as `NCHW`, if its shape does not tell.
        name: What keys begin with; another one is needed for a second explainer of the same kind.
    """

    def __init__(
        self, target_layer: str | nn.Module | None = None, layout: LayoutName | None = None, *, name: str | None = None
    ) -> None:
        if layout is not None and target_layer is None:
            raise TargetLayerError(
                f"Expected `target_layer` to be given with `layout`, but got `layout={layout!r}` alone. Name the layer."
            )
        if target_layer is not None and not isinstance(target_layer, (str, nn.Module)):
            raise TargetLayerError(
                f"Expected `target_layer` to be the name of a layer or a module, but got {target_layer!r}."
            )
        if layout is not None:
            check_layout(layout)
        super().__init__(name)
        self.target_layer = target_layer
        self.layout = layout

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Look up the named layer, or choose one."""
        target = self.target_layer
        layer = choose_layer(trace) if target is None else name_layer(trace, target, self.layout)
        return Plan((layer,), layer.reason, verified=layer.verified)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One backward pass through the head a question, shared with all explainers at layers."""
        (layer,) = plan.layers
        activations = layer.layout.to_nchw(observation.activations[layer.name].detach()).float()
        questions = range(len(observation.posed))
        return torch.stack([self.combine(activations, self.weights(observation, each, layer)) for each in questions])

    def weights(self, observation: Observation, question: int, layer: Layer) -> Tensor:
        """What weighs the activations of a question: gradients `(N, D, h, w)`, float32."""
        return layer.layout.to_nchw(observation.gradient(question, layer)).float()

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
            f"Heatmaps of `{self.name}` are empty: it averages gradients over the cells, and at "
            f"`{plan.layers[0].name}` they add up to 0, as after global max and min pooling. Use HiResCAM(), which "
            "does not average."
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


class CAM(LayerExplainer):
    """CAM proper: channels weighted by the last linear layer, of nets that average one map over all cells before it.

    Of such nets Grad-CAM gives the same map. The sum over the cells is the score without the bias of the layer.
    """

    name = "cam"

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that what goes into the last linear layer is the mean of the map."""
        plan = super().prepare(trace, reference)
        head = trace.head()
        if head is None or not _averages(trace, plan.layers[0], head.given):
            seen = "it does not" if head is None else "the last linear layer sees other numbers than these means"
            raise TargetLayerError(
                f"Expected a model that averages `{plan.layers[0].name}` over its cells and ends in one linear layer, "
                f"for CAM(), but {seen}. Use GradCAM(), which needs neither."
            )
        return plan

    def weights(self, observation: Observation, question: int, layer: Layer) -> Tensor:
        """Gradient of the score with respect to the pooled channels, spread evenly over the cells."""
        assert observation.head is not None  # noqa: S101  # checked in `prepare`; narrows the type
        score = observation.posed[question].score(observation.outputs)
        (gradient,) = torch.autograd.grad(score.sum(), observation.head.given, retain_graph=True)
        return gradient.float()[:, :, None, None] / layer.layout.cells

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d w_d A_d / (h w)`."""
        return (gradients * activations).sum(dim=1)


def _averages(trace: Trace, layer: Layer, pooled: Tensor) -> bool:
    """Whether the gradient of each pooled number is 1 / (h w) in every cell of its own channel."""
    (value,) = trace.at(Address.parse(layer.name))
    if layer.layout.channels(value.shape) != pooled.shape[1]:
        return False
    weights = torch.linspace(0.5, 1.5, pooled.shape[1], device=pooled.device, dtype=pooled.dtype)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), [gradient_edge(*value.edge)], retain_graph=True)
    cells = layer.layout.to_nchw(gradient) * layer.layout.cells
    return torch.allclose(cells, weights[None, :, None, None].expand_as(cells), rtol=1e-3)
