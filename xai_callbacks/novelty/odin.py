"""ODIN: the softmax at a high temperature, after a small step that makes the model surer of itself."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.errors import require_number
from xai_callbacks.novelty.base import ModelScore


class ODIN(ModelScore):
    """`-max_k softmax(z(x') / T)_k` with `x' = x - epsilon sign(dCE(z(x) / T, argmax z) / dx)`; in [-1, -1/K].

    Liang, Li and Srikant, "Enhancing the reliability of out-of-distribution image detection in neural networks", ICLR
    2018. The paper tunes `epsilon` on unfamiliar images, which an honest comparison cannot do. Cost: two forward and
    one backward pass down to the images; parameters may be frozen.

    Args:
        temperature: T, above 0.
        epsilon: Step on every pixel, above 0, in units of the model's input; the paper's 0.0014 suits a deviation of 1.
    """

    name = "odin"
    tasks = ("single-label",)

    def __init__(self, temperature: float = 1000.0, epsilon: float = 0.0014) -> None:
        self.temperature = require_number("temperature", temperature, 0, ends="()")
        self.epsilon = require_number("epsilon", epsilon, 0, ends="()")

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image, gradient or logits are not finite."""
        subject.task.require_classes("ODIN", single=True)
        images = subject.images(images).detach()
        with torch.enable_grad():
            leaf = images.clone().requires_grad_(True)
            # The model gets a copy: it may normalise its input in place.
            logits = _finite_or_nan(subject(leaf.clone()))
            loss = F.cross_entropy(logits / self.temperature, logits.argmax(dim=1), reduction="sum")
            # Times T, which has the same sign and does not underflow in half precision.
            (gradient,) = torch.autograd.grad(loss * self.temperature, leaf, allow_unused=True, materialize_grads=True)
        perturbed = images - self.epsilon * gradient.sign()
        with torch.no_grad():
            logits = _finite_or_nan(subject(perturbed.clone())) / self.temperature
        # A model may turn a broken pixel into a sound logit.
        broken = ~perturbed.flatten(1).isfinite().all(dim=1)
        return -logits.softmax(dim=1).amax(dim=1).masked_fill(broken, torch.nan)


def _finite_or_nan(logits: Tensor) -> Tensor:
    """Logits in float64, whose softmax still differs between images at a temperature of 1000; broken rows all NaN."""
    return logits.double().masked_fill(~logits.isfinite().all(dim=1, keepdim=True), torch.nan)
