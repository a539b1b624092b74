"""Shapley values of pixels against a background: DeepSHAP by multipliers, expected gradients by sampling.

With x an image, r one of the B images of its background and f the score of a question:

| explainer | heatmap, summed over the channels | sum over the pixels | source |
|---|---|---|---|
| `DeepSHAP` | mean over r of `m (x - r)`, m the DeepLIFT multiplier from r to x | `f(x) - mean f(r)`, but for rounding | Lundberg and Lee, NeurIPS 2017 |
| `ExpectedGradients` | mean of `(x - r) df/dx at r + t (x - r)` over r and t in [0, 1] | the same, in the limit of many samples | Erion et al., 2021 |

Both say what the difference to the background does, and nothing of what an image shares with it.
"""  # noqa: E501 - a row of a table cannot be broken

from __future__ import annotations

from contextlib import ExitStack
from types import NoneType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.access import Layer, Subject, Trace, capture, name_layer
from xai_callbacks.errors import ConfigurationError, require_instance, require_integer
from xai_callbacks.explainers.base import Explainer, Observation, Plan, require_gradients
from xai_callbacks.explainers.deeplift import Passes, line
from xai_callbacks.explainers.pixels import Baseline, baseline_of, read_baseline
from xai_callbacks.questions import Posed

Background = Baseline | Literal["sample"]
"""What an image is held against: see `Baseline`, or a sample of familiar images, the `inliers` of the auditor."""

_POINTS = 64  # of the line from one output to another, which costs nothing
_LEAST = 1e-2  # share of the change of the outputs that may be missing from the sum of a map


class _AgainstBackground(Explainer):
    """Base of explainers that hold images against a background."""

    def __init__(self, background: Background, samples: int, name: str | None) -> None:
        super().__init__(name)
        require_integer("samples", samples, minimum=1)
        self.background: Background = read_baseline("background", background, "sample")
        self.samples = samples

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that the model can be differentiated, and that there are familiar images to be sampled."""
        require_gradients(trace, self)
        if self.background == "sample" and reference is None:
            raise ConfigurationError(
                f"Expected familiar images for {type(self).__name__}('sample'), but got none. Give the auditor some as "
                "`inliers=`, or take the background 'blur'."
            )
        return Plan()

    def among(self, images: Tensor, familiar: Tensor | None, count: int, seed: int) -> list[Tensor]:
        """Backgrounds of images `(N, C, H, W)`, each of their shape: one, or up to `count` familiar images."""
        if self.background == "sample":
            assert familiar is not None  # noqa: S101  # seen by `prepare`; narrows the type
            order = torch.randperm(len(familiar), generator=torch.Generator().manual_seed(seed))[:count]
            return [each.to(images).expand_as(images) for each in familiar[order]]
        return [baseline_of(images, self.background)]


class DeepSHAP(_AgainstBackground):
    """Deep SHAP: DeepLIFT multipliers times the difference to each background, mean over the backgrounds.

    The sum over the pixels is the score of the image less the mean score of its backgrounds, whatever the question:
    exactly, also with residual connections, reused and in-place activations, max pooling, products of activations and
    norms; up to the error of 16 points of a line for softmaxes, attention and functions that have no rule of their own,
    which is large where logits of attention are. On two probes it is checked; what is off by more than one percent, and
    functions that torch cannot see into, are refused.
    How the sum is shared among pixels is a convention of the rules, see `explainers.deeplift`, and no exact Shapley
    value. Cost: one forward pass, one for each background, and for each of these one backward pass a question, which
    takes as long as several where a model has `nn.MultiheadAttention`.

    Args:
        background: See `Background`.
        samples: Most familiar images to sample; fewer where there are fewer.
        target_layer: Address of a layer, such as `features.4`, whose activations take the place of the pixels: which of
            their changes matter, on the grid of that layer. None for the pixels.
        name: What keys begin with.
    """

    name = "deep_shap"

    def __init__(
        self,
        background: Background = "blur",
        samples: int = 8,
        target_layer: str | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(background, samples, name)
        require_instance("target_layer", target_layer, (str, NoneType), "the name of a layer")
        self.target_layer = target_layer

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """As `Explainer.prepare`; explains two probes, and checks what their maps add up to."""
        super().prepare(trace, reference)
        layers = () if self.target_layer is None else (name_layer(trace, self.target_layer),)
        images = trace.images.detach()
        backgrounds = self.among(images, reference, self.samples, 0)
        self._check(trace.subject, images, backgrounds[0], next(iter(layers), None))
        where = layers[0].reason if layers else "the pixels"
        words = f"{where}, against {len(backgrounds)} background{'s' if len(backgrounds) > 1 else ''}"
        return Plan(layers, words, 1.0 + 2.0 * len(backgrounds), all(each.verified for each in layers))

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One forward pass, one for each background, and for each of these one backward pass a question."""
        images, subject = observation.images, observation.subject
        layer = next(iter(plan.layers), None)
        backgrounds = self.among(images, observation.reference, self.samples, observation.seed)
        passes, maps = Passes(), list[Tensor]()
        with passes.of_images():
            here = _run(subject, images, layer)
        for number, background in enumerate(backgrounds):
            with passes.of_references():
                there = _run(subject, background, layer).detached()
            moved = (here.given - there.given).detach()
            found = []
            for posed in observation.posed:
                asked = mean_gradient(posed, here.outputs.detach(), there.outputs)
                (multipliers,) = torch.autograd.grad(here.outputs, here.given, asked, retain_graph=True)
                found.append(_summed(multipliers.float() * moved.float(), layer))
            maps.append(torch.stack(found))
            observation.progress((number + 1) / len(backgrounds))
        return torch.stack(maps).mean(dim=0)

    def _check(self, subject: Subject, images: Tensor, background: Tensor, layer: Layer | None) -> None:
        """Refuse a model whose multipliers do not add up: something in it changes values unseen."""
        passes = Passes()
        with passes.of_images():
            here = _run(subject, images, layer)
        with passes.of_references():
            there = _run(subject, background, layer).detached()
        asked = torch.randn(here.outputs.shape[1], generator=torch.Generator().manual_seed(0)).to(here.outputs)
        (multipliers,) = torch.autograd.grad(here.outputs, here.given, asked.expand_as(here.outputs))
        here = here.detached()
        changed = (here.outputs - there.outputs) * asked
        error = ((multipliers * (here.given - there.given)).flatten(1).sum(dim=1) - changed.sum(dim=1)).abs()
        precision, scale = 16 * torch.finfo(subject.dtype).eps, changed.norm(dim=1)
        if bool((error <= max(_LEAST, precision) * scale + precision * (here.outputs * asked).norm(dim=1)).all()):
            return
        raise ConfigurationError(
            "Expected heatmaps of DeepSHAP() to add up to the change of the outputs from the background to the image, "
            f"but they are off by {float((error / scale).max()):.0%}. The model has a part that cannot be followed, "
            "such as an autograd.Function, a scripted module, a choice between values, or chance. Use "
            "ExpectedGradients() or GradCAM(), which need no such rules."
        )


class ExpectedGradients(_AgainstBackground):
    """Expected gradients: integrated gradients, averaged over a background by sampling.

    Needs no rules, and explains whatever has gradients. Each sample is a background r and a place t on the line
    from r to the image, from another part of the line each time that a background has its turn, which lowers the
    sampling error. Samples are the same for every image, question and audit. The sum over the pixels is the score
    of the image less the mean score of the backgrounds up to a sampling error, which the noise of heatmaps shows as
    well. Cost: `samples` forward passes, and as many backward passes a question.

    Args:
        background: See `Background`; of familiar images, all are sampled in turn.
        samples: Number of samples.
        name: What keys begin with.
    """

    name = "expected_gradients"

    def __init__(self, background: Background = "blur", samples: int = 64, *, name: str | None = None) -> None:
        super().__init__(background, samples, name)

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """As `Explainer.prepare`."""
        super().prepare(trace, reference)
        return Plan(reason=f"the pixels, in {self.samples} samples", cost=2.0 * self.samples)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """`samples` forward passes, and as many backward passes a question."""
        images = observation.images
        backgrounds = self.among(images, observation.reference, self.samples, observation.seed)
        places = _places(self.samples, len(backgrounds), observation.seed)
        total = torch.zeros(len(observation.posed), len(images), *images.shape[2:], device=images.device)
        for number, place in enumerate(places.tolist()):
            background = backgrounds[number % len(backgrounds)]
            moved = images - background
            between = (background + place * moved).detach().requires_grad_(True)
            outputs = observation.subject(between.clone())
            for each, posed in zip(total, observation.posed, strict=True):
                (gradient,) = torch.autograd.grad(posed.score(outputs).sum(), between, retain_graph=True)
                each.add_((gradient.float() * moved.float()).sum(dim=1), alpha=1 / self.samples)
            observation.progress((number + 1) / self.samples)
        return total


def _places(samples: int, backgrounds: int, seed: int) -> Tensor:
    """Where samples lie on their lines, `(samples,)` in [0, 1], for backgrounds that take turns.

    Those of one background come from different parts of its line; of backgrounds with one sample each, the parts are
    shared out among them.
    """
    generator = torch.Generator().manual_seed(seed)
    turns = -(-samples // backgrounds)
    if turns == 1:
        parts, turns = torch.randperm(samples, generator=generator), samples
    else:
        rows = torch.stack([torch.randperm(turns, generator=generator) for _ in range(backgrounds)])
        parts = rows.T.flatten()[:samples]
    return (parts + torch.rand(samples, generator=generator)) / turns


class _Run(NamedTuple):
    given: Tensor  # the images, or what was captured of a layer
    outputs: Tensor

    def detached(self) -> _Run:
        return _Run(self.given.detach(), self.outputs.detach())


def _run(subject: Subject, images: Tensor, layer: Layer | None) -> _Run:
    """A forward pass on a graph that begins at the images, or at a layer."""
    if layer is None:
        images = images.detach().clone().requires_grad_(True)
        return _Run(images, subject(images.clone()))
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        captured = stack.enter_context(capture(subject, [layer.name]))
        outputs = subject(images)
    return _Run(captured.tensors()[layer.name], outputs)


def _summed(values: Tensor, layer: Layer | None) -> Tensor:
    """Sum over the channels, `(N, h, w)`."""
    return (values if layer is None else layer.layout.to_nchw(values)).sum(dim=1)


def mean_gradient(posed: Posed, outputs: Tensor, others: Tensor) -> Tensor:
    """Mean gradient of a score along the line from other outputs to outputs `(N, K)`, which adds up to its change.

    What quadrature misses of that is put in along the line itself.
    """
    moved, total = outputs - others, torch.zeros_like(outputs)
    for place, weight in line(_POINTS):
        at = torch.lerp(others, outputs, place).requires_grad_(True)
        score = posed.score(at)
        if score.requires_grad:
            total.add_(torch.autograd.grad(score.sum(), at)[0], alpha=weight)
    missing = posed.score(outputs) - posed.score(others) - (total * moved).sum(dim=1)
    return total + (missing / moved.square().sum(dim=1).clamp_min(1e-12))[:, None] * moved
