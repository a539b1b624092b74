"""Gradients of a question's score with respect to the pixels, as they are or by other rules at rectifiers.

With `a` what goes into a ReLU and `g` the gradient that comes back to it:

| explainer | what a ReLU hands on | source |
|---|---|---|
| `Gradient`, `InputXGradient`, `SmoothGrad` | `g 1[a > 0]` | Simonyan et al., 2014; Shrikumar et al., 2016; Smilkov et al., 2017 |
| `Deconvnet` | `relu(g)` | Zeiler and Fergus, ECCV 2014 |
| `GuidedBackprop`, `GuidedGradCAM` | `relu(g) 1[a > 0]` | Springenberg et al., 2015; Selvaraju et al., ICCV 2017 |

Rules are hooks on the nodes of the autograd graph of one forward pass: the model is not touched, and `F.relu`, in-place
ones and `x.clamp(min=0)` count as `nn.ReLU` does. A negative score, as that of a contrast, begins with a negative `g`.
"""  # noqa: E501 - a row of a table cannot be broken

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.functional import interpolate
from torch.utils.hooks import RemovableHandle

from xai_callbacks.access import LayoutName, Trace
from xai_callbacks.access.trace import kind_of, nodes_before
from xai_callbacks.errors import ConfigurationError, require_choice, require_integer, require_number
from xai_callbacks.explainers.base import Explainer, Observation, Plan, Units, require_gradients
from xai_callbacks.explainers.cam import GradCAM

Statistic = Literal["mean", "square", "variance"]
"""What `SmoothGrad` keeps of the gradients of noisy images; the last two have no sign."""

Saliency = Literal["signed", "magnitude", "positive", "negative"]
"""What a map shows of the gradient at the channels: the sum, the largest size, or the sum of parts of one sign."""

# Nodes that are rectifiers, too, if what they keep is 0: the value below which nothing passes. ReLU6 is a Hardtanh.
_BEGINS = {
    "Threshold": "_saved_threshold", "Hardtanh": "_saved_min_val", "Clamp": "_saved_min", "ClampMin": "_saved_min"
}  # fmt: skip
# Other activations, for which the rules of guided backprop and deconvnets are not defined.
_OTHERS = frozenset({
    *("Celu", "Elu", "Erf", "Gelu", "Glu", "Hardshrink", "Hardswish", "Hardtanh", "LeakyRelu", "LogSigmoid", "Mish"),
    *("PreluKernel", "RreluWithNoise", "Silu", "Softplus", "Softshrink", "Tanh"),
})  # fmt: skip


class _PixelGradient(Explainer):
    """Base of explainers by the gradient at the pixels: signed maps, summed over the channels.

    Cost: one forward pass, and one backward pass a question.
    """

    units: ClassVar[Units] = "relative"

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that the model can be differentiated down to the images."""
        require_gradients(trace, self)
        return Plan(reason="the pixels", cost=2.0)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One forward pass, and one backward pass a question."""
        maps = []
        for gradient in self.gradients(observation, observation.images):
            maps.append(self.shown(gradient, observation.images))
            observation.progress(len(maps) / len(observation.posed))
        return torch.stack(maps)

    def shown(self, gradient: Tensor, images: Tensor) -> Tensor:
        """The map `(N, H, W)` of a gradient `(N, C, H, W)` at the images of its shape."""
        return gradient.sum(dim=1)

    def gradients(self, observation: Observation, images: Tensor) -> Iterator[Tensor]:
        """The gradient of each question at images, `(N, C, H, W)` float32, from one forward pass."""
        images = images.detach().clone().requires_grad_(True)
        outputs = observation.subject(images.clone())
        with ExitStack() as stack:
            for node in nodes_before(outputs.grad_fn):
                if (handle := self.hooked(node)) is not None:
                    stack.enter_context(handle)
            for posed in observation.posed:
                yield torch.autograd.grad(posed.score(outputs).sum(), images, retain_graph=True)[0].float()

    def hooked(self, node: Node) -> RemovableHandle | None:
        """A hook on a node of the graph that changes what it hands on; None leaves it as it is."""
        return None


class Gradient(_PixelGradient):
    """The gradient of the score with respect to each pixel, summed over the channels.

    It tells what a small change of a pixel does, and adds up to nothing. Where it is positive, a brighter pixel raises
    the score. Cost: one forward pass, and one backward pass a question.

    Args:
        saliency: The `signed` sum over the channels; the `magnitude`, the largest absolute value among them, for the
            unsigned maps of Simonyan et al.; or the sum of the `positive` or of the `negative` parts alone, 0 or more
            and 0 or less, which add up to the signed one. Pictures of positive and negative saliency are mostly of
            `GuidedBackprop`, each scaled to its own largest size.
        name: What keys begin with.
    """

    name = "gradient"

    def __init__(self, *, saliency: Saliency = "signed", name: str | None = None) -> None:
        super().__init__(name)
        require_choice("saliency", saliency, get_args(Saliency))
        self.saliency = saliency

    def shown(self, gradient: Tensor, images: Tensor) -> Tensor:
        """The sum over the channels, of all or of parts, or the largest size among them."""
        if self.saliency == "magnitude":
            return gradient.abs().amax(dim=1)
        if self.saliency == "positive":
            gradient = gradient.clamp_min(0)
        elif self.saliency == "negative":
            gradient = gradient.clamp_max(0)
        return gradient.sum(dim=1)


class InputXGradient(_PixelGradient):
    """The gradient times the image, as the model gets it: what each pixel adds to the score of a linear model."""

    name = "input_x_gradient"
    units: ClassVar[Units] = "score"

    def shown(self, gradient: Tensor, images: Tensor) -> Tensor:
        """The product, summed over the channels."""
        return (gradient * images.float()).sum(dim=1)


class SmoothGrad(_PixelGradient):
    """The mean gradient of noisy copies of each image (Smilkov et al. 2017).

    The noise is normal, with a standard deviation of `spread` times the range of the image, and the same for every
    image and audit. Cost: `samples` forward passes, and as many backward passes a question.

    Args:
        samples: Number of copies.
        spread: Standard deviation as a share of the range of the image; 0 gives the gradient itself.
        statistic: The mean, the mean square, or the variance of the gradients (VarGrad, Adebayo et al. 2018).
        name: What keys begin with.
    """

    name = "smoothgrad"

    def __init__(
        self, samples: int = 25, spread: float = 0.15, statistic: Statistic = "mean", name: str | None = None
    ) -> None:
        require_integer("samples", samples, minimum=2 if statistic == "variance" else 1)
        spread = require_number("spread", spread, 0)
        require_choice("statistic", statistic, get_args(Statistic))
        super().__init__(name)
        self.samples, self.spread, self.statistic = samples, spread, statistic

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """As `Gradient` does."""
        plan = super().prepare(trace, reference)
        return replace(plan, reason=f"the pixels of {self.samples} noisy copies", cost=2.0 * self.samples)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """`samples` forward passes, and as many backward passes a question."""
        images = observation.images
        size = self.spread * (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3)))[:, None, None, None]
        generator = torch.Generator().manual_seed(observation.seed)
        mean = square = torch.zeros((), dtype=torch.float64)
        for sample in range(self.samples):
            noise = torch.randn(images.shape[1:], generator=generator).to(images)
            found = torch.stack([*self.gradients(observation, images + size * noise)]).cpu().double()
            mean, square = mean + found / self.samples, square + found**2 / self.samples
            observation.progress((sample + 1) / self.samples)
        kept = {"mean": mean, "square": square, "variance": (square - mean**2).clamp_min(0)}[self.statistic]
        return kept.sum(dim=2).float()


class GuidedBackprop(Gradient):
    """Guided backpropagation: a ReLU hands on what is positive, where it was active.

    Maps are sharp and tell classes apart badly: they show edges that nets with random weights show, too (Adebayo et
    al. 2018). Take them for what `GuidedGradCAM` does with them. Activations that are no rectifiers are refused, but
    those that a model puts together itself, such as `x * sigmoid(x)`, are not recognised. Cost and arguments as of
    `Gradient`.
    """

    name = "guided_backprop"

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that the activations are rectifiers."""
        plan = super().prepare(trace, reference)
        if any(isinstance(each, torch.jit.ScriptModule) for each in trace.subject.root.modules()):
            raise ConfigurationError(
                f"Expected the activations of the model to be seen by {type(self).__name__}(), but parts of it are "
                "TorchScript. Use SmoothGrad() or GradCAM(), or audit the model that was scripted."
            )
        nodes = nodes_before(trace.outputs.grad_fn)
        others = sorted({kind_of(node) for node in nodes if not _is_rectifier(node)} & _OTHERS)
        if others or not any(map(_is_rectifier, nodes)):
            found = f"activations of {', '.join(others)}" if others else "none"
            raise ConfigurationError(
                f"Expected the activations of the model to be rectifiers for {type(self).__name__}(), such as "
                f"nn.ReLU(), but got {found}. Use SmoothGrad() or GradCAM(), which need none."
            )
        return plan

    def hooked(self, node: Node) -> RemovableHandle | None:
        """Let rectifiers take positive gradients only."""
        if not _is_rectifier(node):
            return None
        return node.register_prehook(lambda given: (None if given[0] is None else given[0].clamp_min(0),))


class Deconvnet(GuidedBackprop):
    """The deconvolutional network of Zeiler and Fergus: a ReLU hands on what is positive, active or not.

    Max pooling goes back to where the largest value was. Class-insensitive as guided backpropagation is. Cost and
    arguments as of `Gradient`.
    """

    name = "deconvnet"

    def hooked(self, node: Node) -> RemovableHandle | None:
        """Let rectifiers hand on positive gradients, whatever went in."""
        if not _is_rectifier(node):
            return None
        return node.register_hook(
            lambda handed, given: handed if given[0] is None else (given[0].clamp_min(0), *handed[1:])
        )


class GuidedGradCAM(GuidedBackprop):
    """Guided backpropagation times the positive part of Grad-CAM, brought to the size of the image and a peak of 1.

    Empty where Grad-CAM has no positive cell. Cost as of `Gradient`.

    Args:
        target_layer: See `GradCAM`.
        layout: See `GradCAM`.
        saliency: See `Gradient`.
        name: What keys begin with.
    """

    name = "guided_gradcam"

    def __init__(
        self,
        target_layer: str | None = None,
        layout: LayoutName | None = None,
        *,
        saliency: Saliency = "signed",
        name: str | None = None,
    ) -> None:
        super().__init__(saliency=saliency, name=name)
        self.target_layer, self.layout = target_layer, layout
        _ = self._gradcam  # says now what is wrong with them

    @property
    def _gradcam(self) -> GradCAM:
        return GradCAM(self.target_layer, self.layout)

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """As `GuidedBackprop` and `GradCAM` do."""
        guided = super().prepare(trace, reference)
        return replace(self._gradcam.prepare(trace, reference), cost=guided.cost)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """As `Gradient.explain`, and one backward pass a question through the head."""
        cams = self._gradcam.explain(observation, plan).clamp_min(0)
        guided = super().explain(observation, plan)
        large = interpolate(cams, guided.shape[-2:], mode="bilinear", align_corners=False)
        # Scaled to its peak, it says where; a product of two gradients would grow by the square of the score.
        return guided * (large / large.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(large.dtype).tiny))


def _is_rectifier(node: Node) -> bool:
    """Whether nothing passes below 0 and all that is above, up to some value."""
    kind = kind_of(node)
    return kind == "Relu" or (kind in _BEGINS and getattr(node, _BEGINS[kind], None) == 0)
