"""The contract of every explainer: one observation and posed questions in, signed heatmaps out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from xai_callbacks.access import Layer, Subject, Tapped, Trace, forward
from xai_callbacks.errors import ConfigurationError, TargetLayerError, require_instance, require_integer, require_name
from xai_callbacks.explainers.jacobian import block_size, jacobian_products
from xai_callbacks.questions import Posed

Units = Literal["score", "relative"]
"""Whether the cells of a heatmap add up to (part of) the score of its question, or tell only more from less."""

About = Literal["question", "image"]
"""Whether there is a heatmap for each question, or one for each image whatever is asked."""


@dataclass(frozen=True)
class Plan:
    """Needs of an explainer; plain data, valid for every model of the same architecture.

    Attributes:
        layers: Tensors to capture in the shared forward pass.
        reason: Where heatmaps are computed and why, in a sentence.
        cost: Forward passes an image beyond the shared one, for a question; a backward pass counts as one more.
        verified: Whether the heatmaps are known to lie on the image.
        notes: Sentences that users should read.
    """

    layers: tuple[Layer, ...] = ()
    reason: str = ""
    cost: float = 0.0
    verified: bool = True
    notes: tuple[str, ...] = ()


@dataclass(eq=False, kw_only=True)
class Observation:
    """One forward pass over a chunk of N images; shared by all explainers, and thrown away with the chunk.

    Attributes:
        subject: The model.
        images: `(N, C, H, W)`, as the model expects them, where the model is.
        outputs: Logits `(N, K)` or values `(N, V)`, as the task reads them; on the graph of the captured layers.
        posed: The Q questions, posed for these images.
        activations: Captured tensors by name of the layer, on one graph with the outputs.
        head: What went into the last linear layer and came out of it, on the same graph; None where there is none.
        reference: Familiar images `(M, C, H, W)`; None if the user gave none.
        seed: For whatever is random: the same for every audit of the same images.
        chunk_size: Most images in one forward pass.
        progress: Called with the share of its work, 0 to 1, that an explainer has done.
        shared: Whether several explainers ask for gradients, which are then kept until the chunk is done.
        notes: Sentences that users should read, added by explainers, in the same words for every chunk.
    """

    subject: Subject
    images: Tensor
    outputs: Tensor
    posed: tuple[Posed, ...]
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    head: Tapped | None = None
    reference: Tensor | None = None
    seed: int = 0
    chunk_size: int = 16
    progress: Callable[[float], None] = lambda _share: None
    shared: bool = True
    notes: list[str] = field(default_factory=list)
    _gradients: dict[int, dict[str, Tensor | None]] = field(default_factory=dict, init=False, repr=False)

    def gradient(self, question: int, layer: Layer) -> Tensor:
        """Gradient of the score of a question with respect to a captured layer, of the shape of the activations.

        Where gradients are `shared`, one backward pass answers for all captured layers. Questions that follow are
        answered along with it, in blocks of bounded memory. Raises a `TargetLayerError` if the outputs do not depend on
        the layer.
        """
        if layer.name not in self._gradients.get(question, {}):
            wanted = {name: each for name, each in self.activations.items() if self.shared or name == layer.name}
            places = range(len(self.posed))[question : question + block_size([*wanted.values(), self.outputs])]
            found = jacobian_products(self.outputs, [self._vector(each) for each in places], [*wanted.values()])
            self._gradients |= {
                place: dict(zip(wanted, each, strict=True)) for place, each in zip(places, found, strict=True)
            }
        kept = self._gradients[question] if self.shared else self._gradients.pop(question)
        return _reached(kept[layer.name], layer)

    def gradients(self, vectors: Iterable[Tensor], layer: Layer) -> Iterator[Tensor]:
        """Gradients of `(outputs * vector).sum()` with respect to a captured layer, for each of vectors `(N, K)`.

        Backward passes go in blocks of bounded memory. Raises a `TargetLayerError` as `gradient` does.
        """
        activations, waiting = self.activations[layer.name], iter(vectors)
        while block := [*islice(waiting, block_size([activations, self.outputs]))]:
            for (gradient,) in jacobian_products(self.outputs, block, [activations]):
                yield _reached(gradient, layer)

    def _vector(self, question: int) -> Tensor:
        """Gradient of the score of a question with respect to the outputs, `(N, K)`."""
        outputs = self.outputs.detach().requires_grad_(True)
        score = self.posed[question].score(outputs)
        # Images do not influence each other in eval mode, so the gradient of the sum is that of each score.
        return torch.autograd.grad(score.sum(), outputs)[0] if score.requires_grad else torch.zeros_like(outputs)

    def scores(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scores `(Q, M)` of the posed questions for altered versions `(M, C, H, W)` of the images: one forward pass.

        `rows` `(M,)` tells which image each is a version of; None for each in order.
        """
        outputs = self.subject(images)
        posed = self.posed if rows is None else tuple(each.rows(rows) for each in self.posed)
        return torch.stack([each.score(outputs) for each in posed])

    def of(self, images: Tensor, rows: Tensor, layers: Sequence[Layer] = (), head: str | None = None) -> Self:
        """An observation of altered versions `(M, C, H, W)` of the images, perhaps of another size: one forward pass.

        `rows` `(M,)` tells which image each is a version of; of `layers` activations are captured, `head` names the
        last linear layer. What is asked stays as it was settled for the images.
        """
        outputs, activations, tapped = forward(self.subject, images, layers, head)
        posed = tuple(each.rows(rows) for each in self.posed)
        return replace(
            self, images=images, outputs=outputs, posed=posed, activations=activations, head=tapped, shared=False
        )


def _reached(gradient: Tensor | None, layer: Layer) -> Tensor:
    if gradient is None:
        raise TargetLayerError(
            f"Expected the outputs to depend on the target layer `{layer.name}`, but no gradient reaches it. "
            "Name a later layer with `target_layer=`."
        )
    return gradient


class Explainer(ABC):
    """Answers posed questions about images with heatmaps.

    It holds plain settings, so that it can be copied and pickled and never keeps a model alive, and never relies on
    being first, or on a layer.

    Attributes:
        name: What its keys begin with, such as `gradcam`; letters, digits, `_`, `-` and `.`.
        units: Whether heatmaps are in units of the score.
        about: What a heatmap is about.
    """

    name: str
    units: ClassVar[Units] = "score"
    about: ClassVar[About] = "question"
    every: int = 1

    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            require_name("`name` of an explainer", name)
            self.name = name

    @abstractmethod
    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Look once at the trace of two probes, and say what is needed of forward passes, and what explaining costs.

        `reference` are familiar images, or None. A `ConfigurationError` says that the model does not suit.
        """

    @abstractmethod
    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """Answer all questions about one chunk, with the plan of `prepare`; call inside `undisturbed`.

        Returns signed heatmaps `(Q, N, h, w)`, float32, on the explainer's own grid: positive cells raise the score of
        the question. `(1, N, h, w)` if it is about the image.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({arguments})"


def require_gradients(trace: Trace, explainer: Explainer) -> None:
    """Raise a `ConfigurationError` if a model cannot be differentiated with respect to its images."""
    if not trace.differentiable or trace.insisted:
        raise ConfigurationError(
            f"Expected a model that can be differentiated with respect to its images for {type(explainer).__name__}(), "
            f"but {type(trace.subject.module).__name__} cannot. Use Occlusion(), which needs no gradients."
        )


class Every(Explainer):
    """A costly explainer, answering at every n-th audit only."""

    def __init__(self, n: int, explainer: Explainer) -> None:
        require_integer("n", n, minimum=1)
        require_instance("explainer", explainer, Explainer, "an explainer such as IntegratedGradients()")
        super().__init__(explainer.name)
        self.every, self.explainer = n, explainer
        self.units = explainer.units  # type: ignore[misc]  # those of the explainer, whose place this one takes
        self.about = explainer.about  # type: ignore[misc]

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """As the explainer does."""
        return self.explainer.prepare(trace, reference)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """As the explainer does."""
        return self.explainer.explain(observation, plan)

    def __repr__(self) -> str:
        return f"Every({self.every}, {self.explainer!r})"
