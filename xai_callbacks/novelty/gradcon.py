"""Scores of autoencoders: GradCon's, of the error and where its gradient points, and the error alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.gradients.assignment import plain_parameters
from xai_callbacks.novelty.autoencoder import ErrorKind
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.constraint import GradientConstraint
from xai_callbacks.novelty.fisher import Losses
from xai_callbacks.novelty.logits import require_positive
from xai_callbacks.novelty.measuring import measurer

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
        references: Where the audited module keeps its `GradientConstraint`, as a dotted name such as `constraint`: its
            references and weights are looked up at every score, and before the first update of the constraint the
            alignment is 0. Or, for a model that is not trained any more, mean gradients by parameter, as
            `GradientConstraint.references` gives them: tensors of one moment, which do not follow the training.
        prefix: What stands before the names of such tensors in the model, such as `decoder.` for a constraint on
            `model.decoder`; a constraint that is named knows.
        beta: Weight of the alignment, above 0; the published .12 belongs to a mean over pixels.
        loss: Whose gradient is compared, commonly that of the training; the error is always the squared one.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> GradConScore("constraint")  # of `self.constraint = GradientConstraint(...)`  # doctest: +SKIP
    """

    name = "gradcon"

    def __init__(
        self, references: str | Mapping[str, Tensor], *, prefix: str = "", beta: float = 0.12, loss: ErrorKind = "mse"
    ) -> None:
        require_instance("references", references, (str, Mapping), "a name, or mean gradients by name of the weight")
        if isinstance(references, Mapping):
            for name, each in references.items():
                require_instance(f"references[{name!r}]", each, Tensor, "a tensor")
        if not references:
            raise ConfigurationError(
                "Expected `references` to be the name of a GradientConstraint, or to hold mean gradients, but got "
                f"{references!r}. Pass a name such as 'constraint', or `GradientConstraint.references`."
            )
        require_instance("prefix", prefix, str, "what the names of the weights begin with")
        if isinstance(references, str) and prefix:
            raise ConfigurationError(
                f"Expected no `prefix` beside the name of a GradientConstraint, but got {prefix!r}. Leave it out: the "
                "constraint knows its weights."
            )
        self.references = references
        self.prefix = prefix
        self.beta = require_positive("beta", beta)
        self.loss = _require_kind("loss", loss)

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; call inside `access.undisturbed`.

        Raises:
            ConfigurationError: A reference fits no parameter, or is zero although it was given as a tensor; there is no
                such constraint; or the model is no autoencoder.
        """
        error, alignment = self.terms(subject, images)
        return error - self.beta * alignment

    def terms(self, subject: Subject, images: Tensor) -> GradConTerms:
        """The two terms of `score`, with its arguments and errors."""
        reference = self._found(subject) if isinstance(self.references, str) else self._given(subject, self.references)
        watched, squared = Losses(subject, self.loss), Losses(subject, "mse")
        sound, _ = watched.sound(images), squared.sound(images)
        errors: list[Tensor] = []

        def loss(outputs: object, given: Tensor) -> Tensor:
            errors.append(squared(outputs, given).detach())
            return watched(outputs, given)

        reading = measurer(subject, list(reference))(sound, loss, reference=reference)
        error = torch.cat(errors).double()
        # A gradient of zero points nowhere, as in the constraint.
        alignment = torch.stack(list(reading.cosines().values())).nan_to_num(nan=0.0).mean(dim=0)
        broken = watched.broken | squared.broken
        return GradConTerms(error.masked_fill(broken, torch.nan), alignment.masked_fill(broken, torch.nan))

    def _found(self, subject: Subject) -> dict[str, Tensor]:
        """References of the constraint of that name, as it is now, by the names that its weights have in the model."""
        name = str(self.references)
        constraint = find_module(subject.root, name, "references")
        if not isinstance(constraint, GradientConstraint):
            raise ConfigurationError(
                f"Expected `references` to name a GradientConstraint, but {name!r} is a {type(constraint).__name__}. "
                "Make one an attribute of the module, as in `self.constraint = GradientConstraint(self.decoder)`."
            )
        names = {id(parameter): each for each, parameter in plain_parameters(subject.module).items()}
        missing = [each for each, weight in constraint.weights.items() if id(weight) not in names]
        if missing:
            raise ConfigurationError(
                f"Expected the weights of `{name}` to be parameters of the model, but `{missing[0]}` is none. Choose "
                "with `model=` a part that contains the constrained modules."
            )
        return {names[id(constraint.weights[each])]: mean for each, mean in constraint.references.items()}

    def _given(self, subject: Subject, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The references given, by the names of the parameters."""
        parameters = plain_parameters(subject.module)
        reference = {self.prefix + name: mean for name, mean in references.items()}
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
                    "first, and load its state with the model; while it trains, give the name of the constraint."
                )
        return reference


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
            errors = watched(subject.run(sound), sound)
        return errors.double().masked_fill(watched.broken, torch.nan)


def _require_kind(name: str, kind: ErrorKind) -> ErrorKind:
    if kind not in get_args(ErrorKind):
        raise ConfigurationError(f"Expected `{name}` to be one of {get_args(ErrorKind)}, but got {kind!r}.")
    return kind
