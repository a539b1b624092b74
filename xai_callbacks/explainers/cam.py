"""Class activation maps for any number of questions from one forward pass.

The forward pass records a graph only from the target layer on. Each question then costs one backward pass through the
head, which is a small part of the network, instead of a forward and a backward pass through all of it.

With `A` the activations `(N, D, h, w)` and `G` the gradient of a question's score with respect to them:

| explainer | heatmap | source |
|---|---|---|
| `GradCAM` | `sum_d mean_hw(G_d) A_d` | Selvaraju et al., ICCV 2017 |
| `HiResCAM` | `sum_d G_d A_d` | Draelos and Carin, 2020 |
| `LayerCAM` | `sum_d relu(G_d) A_d` | Jiang et al., IEEE TIP 2021 |

All are returned signed and without normalisation. The published pictures apply a ReLU and scale each map to its own
maximum; that is a matter of display and of metrics, and it would make epochs incomparable here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xai_callbacks.access import LayoutName, Subject, TargetLayer, Trace, capture, choose_layer, name_layer
from xai_callbacks.errors import TargetLayerError
from xai_callbacks.explainers.base import Explainer, Explanation
from xai_callbacks.questions import Asked, Question

__all__ = ["CAM", "GradCAM", "HiResCAM", "LayerCAM"]


class CAM(Explainer):
    """Base of the class activation maps; a subclass says how gradients weigh activations.

    Args:
        target_layer: Dotted name of the layer to explain at, or the module; None chooses, see `access.choose_layer`.
        layout: How the layer's output is read, `NCHW`, `NHWC` or `NLC`, if its shape does not tell.
    """

    def __init__(self, target_layer: str | nn.Module | None = None, layout: LayoutName | None = None) -> None:
        if layout is not None and target_layer is None:
            raise TargetLayerError(
                f"Expected `target_layer` to be given with `layout`, but got `layout={layout!r}` alone. Name the layer."
            )
        self.target_layer = target_layer
        self.layout = layout

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Combine activations and gradients, both `(N, D, h, w)`, float32, into signed maps `(N, h, w)`."""

    def prepare(self, trace: Trace) -> TargetLayer:
        """Look up the named layer, or choose one."""
        if self.target_layer is None:
            return choose_layer(trace)
        return name_layer(trace, self.target_layer, self.layout)

    def explain(
        self, subject: Subject, layer: TargetLayer, images: Tensor, questions: Sequence[Question], truth: Tensor | None
    ) -> Explanation:
        """Answer all questions from one forward pass and one backward pass through the head a question.

        Raises:
            TargetLayerError: The outputs do not depend on the layer, or it ran several times.
        """
        outputs, features = _forward(subject, layer, images)
        truth = None if truth is None else truth.to(outputs.device)
        activations = layer.layout.to_nchw(features.detach()).float()
        asked, maps = [], []
        for question in questions:
            answer = question.ask(outputs, truth)
            gradients = _gradient(answer.score, features, layer)
            maps.append(self.combine(activations, layer.layout.to_nchw(gradients).float()))
            asked.append(Asked(answer.score.detach(), *answer[1:]))
        return Explanation(outputs.detach(), tuple(asked), torch.stack(maps))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({arguments})"


class GradCAM(CAM):
    """Grad-CAM: channels weighted by their mean gradient."""

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d mean_hw(G_d) A_d`."""
        return torch.einsum("nd,ndhw->nhw", gradients.mean(dim=(2, 3)), activations)


class HiResCAM(CAM):
    """HiResCAM: gradients multiply activations cell by cell, so the map shows just what the net computed."""

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d G_d A_d`."""
        return torch.einsum("ndhw,ndhw->nhw", gradients, activations)


class LayerCAM(CAM):
    """LayerCAM: like HiResCAM with positive gradients only; useful at earlier, finer layers."""

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """`sum_d relu(G_d) A_d`."""
        return torch.einsum("ndhw,ndhw->nhw", gradients.clamp_min(0), activations)


def _forward(subject: Subject, layer: TargetLayer, images: Tensor) -> tuple[Tensor, Tensor]:
    images = subject.images(images)
    with torch.no_grad(), capture(subject, layer.name) as captured:
        outputs = subject(images)
    if not outputs.requires_grad:
        # The model switches gradients off itself, as wrappers of frozen backbones do, and leaving that `no_grad` undid
        # what the hook did. With gradients on from the start, leaving it switches them on again, at the price of a
        # graph for what came before.
        with capture(subject, layer.name) as captured:
            outputs = subject(images)
    features = captured.only(layer.name)
    if not outputs.requires_grad:
        raise _disconnected(layer)
    return outputs, features


def _gradient(score: Tensor, features: Tensor, layer: TargetLayer) -> Tensor:
    # Images do not influence each other in eval mode, so the gradient of the sum is the gradient of each score. The
    # graph is kept for the next question and freed with the outputs.
    (gradient,) = torch.autograd.grad(score.sum(), features, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise _disconnected(layer)
    return gradient


def _disconnected(layer: TargetLayer) -> TargetLayerError:
    return TargetLayerError(
        f"Expected the outputs to depend on the target layer `{layer.name}`, but no gradient reaches it. It lies in a "
        "branch that is not used, or the model detaches or disables gradients after it. Name a later layer with "
        "`target_layer=`."
    )
