"""Scores of autoencoders: GradCon's, of the error and where its gradient points, and the error alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.autoencoder import ErrorKind
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.fisher import Losses, measurer
from xai_callbacks.novelty.logits import require_positive

__all__ = ["GradConScore", "GradConTerms", "ReconstructionError"]


class GradConTerms(NamedTuple):
    """What GradCon's score is made of, each `(N,)` float64, NaN for images that are not finite.

    Attributes:
        error: Mean squared error of the pixels, in [0, 1].
        alignment: Mean cosine over layers to the reference gradients, in [-1, 1]; 0 in a layer without gradient.
    """

    error: Tensor
    alignment: Tensor


class GradConScore(ModelScore):
    """`error - beta * alignment`: a familiar image is reconstructed well and asks for what training asked for.

    Kwon, Prabhushankar, Temel and AlRegib, "Backpropagated gradient representation for anomaly detection", ECCV 2020,
    with the sign turned so that larger is more novel. Means something only after training with `GradientConstraint`.
    Range `[-beta, 1 + beta]`. Nothing is learnt but the references, which come with the training.

    Cost: about one forward and backward pass.

    Args:
        references: Mean gradients by parameter, `GradientConstraint.references`; read at every score.
        prefix: What stands before their names in the model, such as `decoder.` for a constraint on `model.decoder`.
        beta: Weight of the alignment, above 0; the published .12 belongs to a mean over pixels.
        loss: Whose gradient is compared, commonly that of the training; the error is always the squared one.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    name = "gradcon"

    def __init__(
        self, references: Mapping[str, Tensor], *, prefix: str = "", beta: float = 0.12, loss: ErrorKind = "mse"
    ) -> None:
        if not references:
            raise ConfigurationError(
                "Expected `references` to hold mean gradients, but got none. Pass `GradientConstraint.references`."
            )
        self.references = references
        self.prefix = prefix
        self.beta = require_positive("beta", beta)
        self.loss = _require_kind("loss", loss)

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; call inside `access.undisturbed`.

        Raises:
            ConfigurationError: A reference fits no parameter or is zero, or the model is no autoencoder.
        """
        error, alignment = self.terms(subject, images)
        return error - self.beta * alignment

    def terms(self, subject: Subject, images: Tensor) -> GradConTerms:
        """The two terms of `score`, with its arguments and errors."""
        reference = {self.prefix + name: mean for name, mean in self.references.items()}
        self._check(reference, dict(subject.module.named_parameters()))
        watched = Losses(subject, self.loss)
        sound = watched.sound(images)
        reading = measurer(subject, list(reference))(sound, watched, reference=reference)
        errors = Losses(subject, "mse")
        errors.sound(images)
        error = errors(reading.outputs, sound).detach().double()
        # A gradient of zero points nowhere, as in the constraint.
        alignment = torch.stack(list(reading.cosines().values())).nan_to_num(nan=0.0).mean(dim=0)
        broken = watched.broken | errors.broken
        return GradConTerms(error.masked_fill(broken, torch.nan), alignment.masked_fill(broken, torch.nan))

    def _check(self, reference: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        for name, mean in reference.items():
            got = parameters.get(name)
            if got is None or got.shape != mean.shape:
                shape = "no such parameter" if got is None else f"one of shape {tuple(got.shape)}"
                raise ConfigurationError(
                    f"Expected the model to have `{name}` of shape {tuple(mean.shape)}, but got {shape}. Set `prefix` "
                    "to where the constrained modules are, such as 'decoder.'."
                )
            if not bool((mean != 0).any()):
                raise ConfigurationError(
                    f"Expected a reference gradient for `{name}`, but got zeros. Train with the `GradientConstraint` "
                    "first, and load its state with the model."
                )


class ReconstructionError(ModelScore):
    """Mean error of the pixels of an autoencoder that returns logits: what is new is reconstructed badly.

    Range [0, 1] for `mse`, of the sigmoid. Cost: one forward pass.

    Args:
        kind: `mse`, or `bce`, which also ranks images by how grey they are.

    Raises:
        ConfigurationError: `kind` is unknown.
    """

    name = "reconstruction"

    def __init__(self, kind: ErrorKind = "mse") -> None:
        self.kind = _require_kind("kind", kind)

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image or reconstruction is not finite.

        Raises:
            ConfigurationError: The model is no autoencoder that returns logits.
        """
        watched = Losses(subject, self.kind)
        sound = watched.sound(images)
        with torch.no_grad():
            errors = watched(subject.call(sound), sound)
        return errors.double().masked_fill(watched.broken, torch.nan)


def _require_kind(name: str, kind: ErrorKind) -> ErrorKind:
    if kind not in get_args(ErrorKind):
        raise ConfigurationError(f"Expected `{name}` to be one of {get_args(ErrorKind)}, but got {kind!r}.")
    return kind
