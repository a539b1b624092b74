"""Scores of autoencoders: GradCon's, of the error and where its gradient points, and the error alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.access.subject import find_module
from xai_callbacks.access.watching import plain_name
from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.novelty.arguments import require_choice, require_positive
from xai_callbacks.novelty.autoencoder import ERRORS, ErrorKind
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.constraint import GradientConstraint
from xai_callbacks.novelty.losses import loss_of, measured

__all__ = ["GradConScore", "ReconstructionError"]


class GradConScore(ModelScore):
    """`error - beta * alignment`: a familiar image is reconstructed well and asks for what training asked for.

    Kwon, Prabhushankar, Temel and AlRegib, "Backpropagated gradient representation for anomaly detection", ECCV 2020,
    with the sign turned so that larger is more novel. Means something only after training with `GradientConstraint`.
    Range `[-beta, 1 + beta]`. Cost: about one forward and backward pass.

    Args:
        references: Where the audited module keeps its `GradientConstraint`, as a dotted name such as `constraint`: its
            references and weights are looked up at every score, and before the first update of the constraint the
            alignment is 0. Or, for a model that is not trained any more, mean gradients by parameter, as
            `GradientConstraint.references` gives them: tensors of one moment, which do not follow the training.
        prefix: Begin of the names of such tensors in the model, such as `decoder.` for a constraint on `model.decoder`.
        beta: Weight of the alignment, above 0; the published .12 belongs to a mean over pixels.
        loss: Whose gradient is compared, commonly that of the training; the error is always the squared one.
    """

    name = "gradcon"

    def __init__(
        self, references: str | Mapping[str, Tensor], *, prefix: str = "", beta: float = 0.12, loss: ErrorKind = "mse"
    ) -> None:
        require_instance("references", references, (str, Mapping), "a name, or mean gradients by name of the weight")
        for name, each in references.items() if isinstance(references, Mapping) else ():
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
        require_choice("loss", loss, ERRORS)
        self.references = references
        self.prefix = prefix
        self.beta = require_positive("beta", beta)
        self.loss = loss

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image, error or loss are not finite.

        Raises:
            ConfigurationError: A reference fits no parameter, or is zero although it was given as a tensor; there is no
                such constraint; or the model is no autoencoder.
        """
        error, alignment = self.terms(subject, images)
        return error - self.beta * alignment

    def terms(self, subject: Subject, images: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of `score`, each `(N,)` float64, with its arguments and errors.

        The mean squared error of the pixels, in [0, 1], and the mean cosine over layers to the reference gradients, in
        [-1, 1]; 0 in a layer without gradient.
        """
        parameters = {plain_name(name): parameter for name, parameter in subject.module.named_parameters()}
        if isinstance(self.references, str):
            reference = _of_constraint(subject, self.references, parameters)
        else:
            reference = _of_tensors({self.prefix + name: mean for name, mean in self.references.items()}, parameters)
        own, squared, errors = loss_of(subject, self.loss), loss_of(subject, "mse"), []

        def loss(outputs: object, given: Tensor) -> Tensor:
            errors.append(squared(outputs, given).detach())
            return own(outputs, given)

        reading, broken = measured(subject, images, loss, list(reference), reference=reference)
        error = torch.cat(errors).double()
        # A gradient of zero points nowhere, as in the constraint.
        alignment = torch.stack(list(reading.cosines().values())).nan_to_num(nan=0.0).mean(dim=0)
        broken = broken | ~error.isfinite()
        return error.masked_fill(broken, torch.nan), alignment.masked_fill(broken, torch.nan)


class ReconstructionError(ModelScore):
    """Mean error of the pixels of an autoencoder that returns logits: what is new is reconstructed badly.

    Range [0, 1] for `mse`, of the sigmoid. Cost: one forward pass.

    Args:
        kind: `mse`, or `bce`, which also ranks images by how grey they are.
    """

    name = "reconstruction"

    def __init__(self, kind: ErrorKind = "mse") -> None:
        require_choice("kind", kind, ERRORS)
        self.kind = kind

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image or reconstruction is not finite."""
        images = subject.images(images)
        with torch.no_grad():
            errors = loss_of(subject, self.kind)(subject.run(images), images).double()
        return errors.masked_fill(~errors.isfinite(), torch.nan)


def _of_constraint(subject: Subject, name: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """References of the constraint of that name, as it is now, by the names that its weights have in the model."""
    constraint = find_module(subject.root, name, "references")
    if not isinstance(constraint, GradientConstraint):
        raise ConfigurationError(
            f"Expected `references` to name a GradientConstraint, but {name!r} is a {type(constraint).__name__}. Make "
            "one an attribute of the module, as in `self.constraint = GradientConstraint(self.decoder)`."
        )
    names = {id(parameter): each for each, parameter in parameters.items()}
    for each, weight in constraint.weights.items():
        if id(weight) not in names:
            raise ConfigurationError(
                f"Expected the weights of `{name}` to be parameters of the model, but `{each}` is none. Choose with "
                "`model=` a part that contains the constrained modules."
            )
    return {names[id(constraint.weights[each])]: mean for each, mean in constraint.references.items()}


def _of_tensors(references: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The references, if there is a parameter for each, and a gradient in each."""
    for name, mean in references.items():
        got = parameters.get(name)
        if got is None or got.shape != mean.shape:
            shape = "no such parameter" if got is None else f"one of shape {tuple(got.shape)}"
            raise ConfigurationError(
                f"Expected the model to have `{name}` of shape {tuple(mean.shape)}, but got {shape}. Set `prefix` to "
                "where the constrained modules are, such as 'decoder.'."
            )
        if not bool((mean != 0).any()):
            raise ConfigurationError(
                f"Expected a reference gradient for `{name}`, but got zeros. Train with the `GradientConstraint` "
                "first, and load its state with the model; while it trains, give the name of the constraint."
            )
    return references
