"""GradCon: train so that the gradients of familiar images point one way, and score by where a gradient points."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.access.subject import find_module
from xai_callbacks.access.watching import plain_name
from xai_callbacks.errors import AuditError, ConfigurationError, require_choice, require_instance, require_number
from xai_callbacks.novelty.autoencoder import ERRORS, ErrorKind
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.losses import loss_of, measured

_Layer = nn.Linear | nn.modules.conv._ConvNd


class GradientConstraint(nn.Module):
    """A penalty on gradients that leave the mean gradient of the training so far. Make it an attribute of your module.

    Kwon, Prabhushankar, Temel and AlRegib, "Backpropagated gradient representation for anomaly detection", ECCV 2020:
    `-strength * mean_i cos(g_i, G_i)` is added to a reconstruction loss `L`, where `g_i = dL / dW_i` is the gradient of
    layer i and `G_i` the mean of the gradients of the total objective at all earlier steps. Example: docs/novelty.md.

    Weights of `Conv*`, `ConvTranspose*` and `Linear` layers take part, each once. `state_dict` holds `count` and one
    mean gradient a layer, with which a resumed training continues bit for bit. Cost: a second backward pass (double
    backward), and twice the memory of the graph. `torch.compile` and fused attention know no double backward, and
    float16 is too narrow: use bfloat16 or float32. Not for sharded parameters (FSDP).

    Attributes:
        alignment: Mean cosine over layers at the last training step, a scalar in [-1, 1]; 0 without a mean gradient.

    Args:
        module: Whose weights to constrain, commonly the decoder.
        strength: Weight of the penalty, > 0. The published .03 is meant for a mean squared error over pixels in [0, 1].
    """

    count: Tensor

    def __init__(self, module: nn.Module, strength: float = 0.03) -> None:
        super().__init__()
        require_instance("module", module, nn.Module, "a module, such as the decoder of your model")
        self.strength = require_number("strength", strength, 0, ends="()")
        layers: dict[int, tuple[str, _Layer]] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, _Layer):
                layers.setdefault(id(layer.weight), (f"{name}.weight".removeprefix("."), layer))
        if not layers:
            raise ConfigurationError("Expected `module` to hold a convolution or linear layer, but got none.")
        # A tuple hides the layers from `nn.Module`, which would list their parameters a second time. Layers rather than
        # weights: some ways of loading and moving put a new `Parameter` into a layer.
        self._layers = tuple(layers.values())
        for name, layer in self._layers:
            if not (isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad):
                raise ConfigurationError(
                    f"Expected `{name}` to be a parameter that requires grad, but it is frozen or computed. Constrain "
                    "a module that trains."
                )
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            self.register_buffer(_buffer(name), torch.zeros_like(layer.weight, dtype=dtype, requires_grad=False))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.alignment = torch.zeros(())

    @property
    def references(self) -> dict[str, Tensor]:
        """Mean gradient by parameter, such as `6.weight`; zero at first."""
        return {name: self.get_buffer(_buffer(name)) for name, _ in self._layers}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weight of each layer as it is now, by the names of `references`."""
        return {name: layer.weight for name, layer in self._layers}

    def forward(self, loss: Tensor) -> Tensor:
        """Penalty to add to the loss, the mean over the batch with its graph: a scalar in `[-strength, strength]`.

        It is 0 in the first step, and in evaluation mode or without gradients, where nothing is touched. A layer
        without any gradient (a dead output) has the cosine 0.

        Raises:
            ConfigurationError: `loss` does not depend on a watched weight.
            AuditError: A gradient is NaN or infinite; the references are as before.
        """
        if not (self.training and torch.is_grad_enabled()):
            return torch.zeros_like(loss)
        started = bool(self.count > 0)
        # Copies: `update` may come between this call and the backward pass, which needs the values of now.
        references = [reference.clone() for reference in self.references.values()]
        # Outside autocast, as PyTorch advises for gradients of gradients; cosines are taken in float32.
        with torch.autocast(loss.device.type, enabled=False):
            weights = list(self.weights.values())
            found = torch.autograd.grad(loss, weights, create_graph=started, retain_graph=True, allow_unused=True)
            gradients = self._checked(found, "Constrain only layers that the loss depends on.")
            alignment = torch.stack([_cosine(*pair) for pair in zip(gradients, references, strict=True)]).mean()
        self.alignment = alignment.detach()
        return -self.strength * alignment if started else torch.zeros_like(loss)

    @torch.no_grad()
    def update(self) -> None:
        """Add the gradient in `.grad`, that of the total objective, to the running means.

        Call it once an optimizer step, before gradients are clipped: in `on_before_optimizer_step`.

        Raises:
            ConfigurationError: A weight has no `.grad`.
            AuditError: A gradient is NaN or infinite; the references are as before.
        """
        advice = "Call `update` after the backward pass and before gradients are zeroed: in `on_before_optimizer_step`."
        gradients = self._checked((weight.grad for weight in self.weights.values()), advice)
        self.count += 1
        for mean, gradient in zip(self.references.values(), gradients, strict=True):
            mean.add_((gradient.to(mean.dtype) - mean) / self.count)

    def _checked(self, found: Iterable[Tensor | None], advice: str) -> list[Tensor]:
        """The gradient of each layer; or an error that names the first layer that has none, or no finite one."""
        gradients = []
        for (name, _), gradient in zip(self._layers, found, strict=True):
            if gradient is None:
                raise ConfigurationError(f"Expected `{name}` to have a gradient, but got None. {advice}")
            gradients.append(gradient)
        # The largest absolute value is NaN or infinite if any value is; one transfer for all layers.
        finite = torch.stack([gradient.detach().abs().amax().isfinite() for gradient in gradients]).tolist()
        if not all(finite):
            raise AuditError(
                f"Expected the gradient of `{self._layers[finite.index(False)][0]}` to be finite, but got NaN or "
                "infinity. Lower the learning rate, and use bfloat16 or float32 rather than float16."
            )
        return gradients

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientConstraint:
        """Follow to another device, but keep the precision: a mean of many steps stalls in 16 bits."""
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)  # type: ignore[no-untyped-call]
        return self


def _buffer(name: str) -> str:
    """Names of buffers hold no dots; this one is also a valid identifier, as scripting asks for."""
    return "mean_" + name.replace(".", "__")


def _cosine(gradient: Tensor, mean: Tensor) -> Tensor:
    """Cosine as published, and 0 without any pull where the gradient vanishes: there its own derivative explodes."""
    gradient, mean = gradient.flatten().to(mean.dtype), mean.flatten()
    cosine = F.cosine_similarity(gradient, mean, dim=0)
    return torch.where((gradient != 0).any(), cosine, torch.zeros_like(cosine))


class GradConScore(ModelScore):
    """`error - beta * alignment`: a familiar image is reconstructed well and asks for what training asked for.

    Kwon, Prabhushankar, Temel and AlRegib, "Backpropagated gradient representation for anomaly detection", ECCV 2020,
    with the sign turned: larger is more novel. Range `[-beta, 1 + beta]`. Cost: about one forward and backward pass.

    Args:
        references: Where the audited module keeps its `GradientConstraint`, as a dotted name such as `constraint`: its
            references and weights are looked up at every score, and before its first update the alignment is 0.
        beta: Weight of the alignment, above 0; the published .12 belongs to a mean over pixels.
        loss: Whose gradient is compared, commonly that of the training; the error is always the squared one.
    """

    name = "gradcon"

    def __init__(self, references: str, *, beta: float = 0.12, loss: ErrorKind = "mse") -> None:
        require_instance("references", references, str, "the name of a GradientConstraint")
        require_choice("loss", loss, ERRORS)
        self.references = references
        self.beta = require_number("beta", beta, 0, ends="()")
        self.loss = loss

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image, error or loss are not finite."""
        error, alignment = self.terms(subject, images)
        return error - self.beta * alignment

    def terms(self, subject: Subject, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of the pixels, and mean cosine over layers to the reference gradients, `(N,)` float64."""
        means = _mean_gradients(subject, self.references)
        own, squared, errors = loss_of(subject, self.loss), loss_of(subject, "mse"), []

        def loss(outputs: object, given: Tensor) -> Tensor:
            errors.append(squared(outputs, given).detach())
            return own(outputs, given)

        def cosine(name: str, gradients: Tensor) -> Tensor:
            # Whatever the length of a gradient; one of zero points nowhere, as in the constraint.
            both = gradients.double().flatten(1), means[name].double().flatten()[None]
            return F.cosine_similarity(*both, dim=1, eps=1e-150)

        reading, broken = measured(subject, images, loss, list(means), cosine)
        error, alignment = torch.cat(errors).double(), torch.stack(list(reading.reduced.values())).mean(dim=0)
        broken = broken | ~error.isfinite()
        return error.masked_fill(broken, torch.nan), alignment.masked_fill(broken, torch.nan)


class ReconstructionError(ModelScore):
    """Mean squared error of the pixels of an autoencoder that returns logits: what is new is reconstructed badly.

    Range [0, 1]. Cost: one forward pass.
    """

    name = "reconstruction"

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image or reconstruction is not finite."""
        images = subject.images(images)
        with torch.no_grad():
            errors = loss_of(subject, "mse")(subject.run(images), images).double()
        return errors.masked_fill(~errors.isfinite(), torch.nan)


def _mean_gradients(subject: Subject, name: str) -> dict[str, Tensor]:
    """Mean gradients of the constraint of that name, as it is now, by the names that its weights have in the model."""
    constraint = find_module(subject.root, name, "references")
    if not isinstance(constraint, GradientConstraint):
        raise ConfigurationError(
            f"Expected `references` to name a GradientConstraint, but {name!r} is a {type(constraint).__name__}. Make "
            "one an attribute of the module, as in `self.constraint = GradientConstraint(self.decoder)`."
        )
    names = {id(parameter): plain_name(each) for each, parameter in subject.module.named_parameters()}
    found = {}
    for each, weight in constraint.weights.items():
        if id(weight) not in names:
            raise ConfigurationError(
                f"Expected the weights of `{name}` to be parameters of the model, but `{each}` is none. Choose with "
                "`model=` a part that contains the constrained module."
            )
        found[names[id(weight)]] = constraint.references[each]
    return found
