"""Contrasts with many foils put together: one map an image, whatever is asked.

With `g_c` the gradient of logit `c` at a layer, "Why P, rather than Q?" has the gradient `sum_c p_c g_c - g_Q`, and of
labels `p_P g_P - (1 - p_Q) g_Q`; see `questions`. P is the most probable output, foils are the most probable others.

| explainer | heatmap | source |
|---|---|---|
| `VOICE` | variance over the foils of contrast maps, each scaled to [0, 1] | Prabhushankar and AlRegib, J-STSP 2024 |
| `ImplicitSaliency` | sum over the foils of the size of contrast maps | after Sun et al., ICIP 2020 |

What a foil costs is next to nothing where pooling and a linear layer follow, and as much as a forward pass where half a
net does.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from xai_callbacks.access import LayoutName, Trace
from xai_callbacks.errors import ConfigurationError, require_choice, require_instance, require_integer
from xai_callbacks.explainers.base import About, Explainer, Observation, Plan, Units
from xai_callbacks.explainers.cam import GradCAM, HiResCAM, LayerExplainer

Statistic = Literal["variance", "mean"]
Variant = Literal["weighted", "product", "magnitude"]

_FLAT = 1e-6  # maps whose range is this share of their size are rounding
_EQUAL = 1e-12  # variance of cells in [0, 1] that differ by rounding


class _OverFoils(Explainer):
    """Base of explainers by contrasts of each image with many foils, one map an image.

    Cost: no forward pass beyond the shared one, and a backward pass a foil through what follows the layer.
    """

    units: ClassVar[Units] = "relative"
    about: ClassVar[About] = "image"
    fewest: int = 1  # foils that are needed

    def __init__(self, foils: int | None, name: str | None) -> None:
        super().__init__(name)
        if foils is not None:
            require_integer("foils", foils, minimum=self.fewest)
        self.foils = foils

    @property
    @abstractmethod
    def contrast(self) -> LayerExplainer:
        """The explainer of each contrast."""

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """As the explainer of contrasts does; needs classes or labels enough."""
        task = trace.subject.task
        if not task.classifies or (task.width or 0) <= self.fewest:
            raise ConfigurationError(
                f"Expected outputs for {self.fewest + 1} or more classes or labels for {type(self).__name__}(), but "
                f"got {task.width} of {task.kind} probes. Leave it out."
            )
        return self.contrast.prepare(trace, reference)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One backward pass a foil through the head, many at once."""
        (layer,) = plan.layers
        activations = layer.layout.to_nchw(observation.activations[layer.name].detach()).float()
        outputs, combine = observation.outputs.detach(), self.contrast.combine
        vectors = contrast_vectors(outputs, likely_foils(outputs, self.foils), observation.subject.task.kind)
        gradients = (layer.layout.to_nchw(each).float() for each in observation.gradients(vectors, layer))
        return self.gathered(combine(activations, each) for each in gradients)[None]

    @abstractmethod
    def gathered(self, contrasts: Iterable[Tensor]) -> Tensor:
        """One map `(N, h, w)`, float32, of the contrast maps, each `(N, h, w)`."""


class VOICE(_OverFoils):
    """Uncertainty of an explanation: the variance of contrast maps over foils.

    The positive part of each contrast map is scaled to [0, 1] by itself. Maps without a positive cell are left out, for
    each image; of fewer than two that are left there is no variance, and the map is empty. The paper takes foils whose
    probability exceeds a threshold, the public code all other classes, and the code enlarges maps to the image before
    they are scaled; here the most probable foils are taken, on the grid of the layer. See `ExplanationUncertainty` for
    what is read from it.

    Args:
        explainer: What explains each contrast, at its layer: such as `GradCAM()`, which None stands for.
        statistic: The unbiased variance, or the mean.
        foils: Number of most probable other classes; None for all.
        name: What keys begin with.
    """

    name = "voice"

    def __init__(
        self,
        explainer: LayerExplainer | None = None,
        statistic: Statistic = "variance",
        foils: int | None = 100,
        *,
        name: str | None = None,
    ) -> None:
        require_choice("statistic", statistic, get_args(Statistic))
        self.explainer = GradCAM() if explainer is None else explainer
        require_instance("explainer", self.explainer, LayerExplainer, "an explainer at a layer such as GradCAM()")
        self.statistic = statistic
        super().__init__(foils, name)

    @property
    def fewest(self) -> int:  # type: ignore[override]  # one is enough for a mean
        """Two for a variance."""
        return 2 if self.statistic == "variance" else 1

    @property
    def contrast(self) -> LayerExplainer:
        """That which was given."""
        return self.explainer

    def gathered(self, contrasts: Iterable[Tensor]) -> Tensor:
        """The statistic over contrast maps that are not empty."""
        total = square = count = torch.zeros((), dtype=torch.float64)
        for each in contrasts:
            scaled, sound = scaled_to_peak(each.cpu().double())
            total, square, count = total + scaled, square + scaled**2, count + sound[:, None, None].double()
        mean = total / count.clamp_min(1)
        if self.statistic == "mean":
            return mean.float()
        variance = (square - count * mean**2) / (count - 1).clamp_min(1)
        return variance.where(variance > _EQUAL, 0).float()


class ImplicitSaliency(_OverFoils):
    """Where the evidence lies that foils contradict: the size of contrast maps, summed over foils.

    Our reading of a paper whose formula we could not see: classes that conflict with the prediction are the unexpected
    stimulus, and what their losses change at a layer is salient. With `G_Q` the gradient of the cross-entropy toward
    foil Q at activations `A`:

    | `variant` | heatmap |
    |---|---|
    | `weighted` | `sum_Q abs(sum_d mean_hw(G_Qd) A_d)`, of the contrast maps of Grad-CAM |
    | `product` | `sum_Q abs(sum_d G_Qd A_d)`, of those of HiResCAM |
    | `magnitude` | `sum_Q mean_d abs(G_Qd)`; flat where global average pooling and a linear layer follow |

    The default was chosen on fixations on 75 photos, by three nets. On 75 others, maps of the layer that is chosen by
    itself foretold fixations no better than the middle of the photo does, those of a layer halfway through the net
    better, and the same sums without conflict as well: see `docs/results/implicit_saliency.json`.

    Args:
        variant: How a contrast is measured.
        foils: Number of most probable other classes; None for all.
        target_layer: See `GradCAM`; one halfway through the net for what people look at.
        layout: See `GradCAM`.
        name: What keys begin with.
    """

    name = "implicit_saliency"

    def __init__(
        self,
        variant: Variant = "product",
        foils: int | None = 10,
        target_layer: str | None = None,
        layout: LayoutName | None = None,
        *,
        name: str | None = None,
    ) -> None:
        require_choice("variant", variant, get_args(Variant))
        super().__init__(foils, name)
        self.variant, self.target_layer, self.layout = variant, target_layer, layout
        _ = self.contrast  # says now what is wrong with them

    @property
    def contrast(self) -> LayerExplainer:
        """Grad-CAM, HiResCAM or the size of gradients."""
        kinds: dict[str, Callable[..., LayerExplainer]] = {
            "weighted": GradCAM,
            "product": HiResCAM,
            "magnitude": _Magnitude,
        }
        return kinds[self.variant](self.target_layer, self.layout)

    def gathered(self, contrasts: Iterable[Tensor]) -> Tensor:
        """The sum of their sizes."""
        return reduce(torch.add, (each.abs() for each in contrasts))


class _Magnitude(LayerExplainer):
    """The mean size of the gradients in each cell."""

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.abs().mean(dim=1)


def likely_foils(outputs: Tensor, count: int | None) -> Tensor:
    """The most probable outputs beside the first, `(F, N)` int64, the most probable first; None for all."""
    most = outputs.shape[1] - 1
    return outputs.topk(1 + (most if count is None else min(count, most)), dim=1).indices[:, 1:].T


def contrast_vectors(outputs: Tensor, foils: Tensor, kind: str) -> Iterator[Tensor]:
    """Gradients `(N, K)` of "Why P, rather than Q?" with respect to the outputs, for each row of foils `(F, N)`.

    `kind` is that of the task, of classes or labels.
    """
    if kind == "single-label":
        away = outputs.softmax(dim=1)
        toward = torch.ones_like(outputs)
    else:
        fact = outputs.argmax(dim=1, keepdim=True)
        away = torch.zeros_like(outputs).scatter(1, fact, outputs.sigmoid().gather(1, fact))
        toward = (-outputs).sigmoid()
    for foil in foils[..., None]:
        yield away.scatter_add(1, foil, -toward.gather(1, foil))


def scaled_to_peak(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The positive parts of maps `(N, h, w)`, each brought to [0, 1], and whether it could be, `(N,)`; else it is 0."""
    positive = maps.clamp_min(0)
    low, high = positive.amin(dim=(1, 2), keepdim=True), positive.amax(dim=(1, 2), keepdim=True)
    sound = high - low > _FLAT * maps.abs().amax(dim=(1, 2), keepdim=True)
    return ((positive - low) / (high - low)).where(sound, 0), sound[:, 0, 0]
