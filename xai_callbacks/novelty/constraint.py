"""GradCon's constraint: train so that the gradients of familiar images point one way.

Kwon, Prabhushankar, Temel and AlRegib, "Backpropagated gradient representation for anomaly detection", ECCV 2020. Added
to a reconstruction loss `L` is `-strength * mean_i cos(g_i, G_i)`: `g_i = dL / dW_i` is the gradient of layer i, and
`G_i` the arithmetic mean of its gradients at all earlier steps. The gradient of an unfamiliar image then points
elsewhere, and that is what the score measures. Without the constraint the mean gradient tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.errors import AuditError, ConfigurationError

__all__ = ["GradientConstraint", "Reference"]

Reference = Literal["total", "reconstruction"]

_Layer = nn.Linear | nn.modules.conv._ConvNd


class GradientConstraint(nn.Module):
    """A penalty on gradients that leave the mean gradient of the training so far. Make it an attribute of your module.

    Only `Conv*`, `ConvTranspose*` and `Linear` weights take part, no biases; a weight that two layers share counts
    once. The watched modules are not registered: parameters are not listed twice, and `state_dict` holds `count` and
    one mean gradient a layer, plain tensors that continue a resumed training bit for bit. Means are kept in float32 or
    better, also after `.half()`.

    Cost: a second backward pass through the graph of the loss (double backward), and twice the memory of its graph.
    `torch.compile` and fused attention know no double backward. With `precision="16-mixed"` gradients of the unscaled
    loss may vanish and those of the scaled one overflow: use bfloat16 or float32.

    Under DDP the gradient in `.grad` is already the mean over ranks, and with `reference="reconstruction"` this class
    takes that mean; every rank must then call it equally often. Not for sharded parameters (FSDP).

    Args:
        modules: Whose weights to constrain, commonly the decoder; one module, or several.
        strength: Weight of the penalty, > 0. The published .03 is meant for a mean squared error over pixels in [0, 1].
        reference: Which gradient enters the mean: of the `total` objective, read from `.grad` by `update` (published),
            or of the `reconstruction` loss alone, added in the call itself. The latter ends with a far higher
            alignment.

    Raises:
        ConfigurationError: Nothing to watch, or a frozen weight.

    Example:
        >>> class Autoencoder(pl.LightningModule):  # doctest: +SKIP
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.autoencoder = ConvAutoencoder()
        ...         self.constraint = GradientConstraint(self.autoencoder.decoder)
        ...
        ...     def training_step(self, images, batch_idx):
        ...         loss = reconstruction_error(self.autoencoder(images), images).mean()
        ...         return loss + self.constraint(loss)
        ...
        ...     def on_before_optimizer_step(self, optimizer):
        ...         self.constraint.update()
    """

    count: Tensor

    def __init__(
        self, modules: nn.Module | Sequence[nn.Module], strength: float = 0.03, reference: Reference = "total"
    ) -> None:
        super().__init__()
        if isinstance(strength, bool) or not (math.isfinite(strength) and strength > 0):
            raise ConfigurationError(
                f"Expected `strength` to be a finite number above 0, but got {strength!r}. For no penalty, leave the "
                "constraint out."
            )
        if reference not in get_args(Reference):
            raise ConfigurationError(f"Expected `reference` to be one of {get_args(Reference)}, but got {reference!r}.")
        self.strength = strength
        self.reference = reference
        # A tuple hides the layers from `nn.Module`, which would list their parameters a second time. Layers rather than
        # weights: some ways of loading and moving put a new `Parameter` into a layer.
        self._layers = tuple(_weighted_layers(modules))
        for name, layer in self._layers:
            _require_trainable(name, layer)
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            self.register_buffer(_buffer(name), torch.zeros_like(layer.weight, dtype=dtype, requires_grad=False))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._alignment = torch.zeros(())
        self._first_versions: list[int] | None = None

    @property
    def references(self) -> dict[str, Tensor]:
        """Mean gradient of each layer, by parameter name such as `6.weight`; all zero before the first update.

        With several modules given, names start with the place of the module in the list.
        """
        return {name: self.get_buffer(_buffer(name)) for name, _ in self._layers}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weight of each layer as it is now, by the names of `references`."""
        return {name: layer.weight for name, layer in self._layers}

    @property
    def alignment(self) -> Tensor:
        """Mean cosine over layers at the last training step, a scalar in [-1, 1]; 0 while there is no reference."""
        return self._alignment

    def forward(self, loss: Tensor) -> Tensor:
        """Penalty to add to the loss: a scalar in `[-strength, strength]`.

        It is 0 in the first step, where there is no reference yet, and in evaluation mode or without gradients, where
        nothing is touched. A layer without any gradient (a dead output) has the cosine 0. With gradient accumulation,
        `total` counts optimizer steps and `reconstruction` counts calls.

        Args:
            loss: Scalar reconstruction loss with its graph, a mean over the batch.

        Raises:
            ConfigurationError: `loss` is no scalar with a graph, or does not depend on a watched weight; a weight is
                frozen; or `update` has been forgotten.
            AuditError: A gradient is NaN or infinite; the references are as before.
        """
        if not (self.training and torch.is_grad_enabled()):
            return torch.zeros_like(loss)
        _require_loss(loss)
        started = bool(self.count > 0)
        if not started:
            self._notice_missing_update()
        # Copies: `update` may come between this call and the backward pass, which needs the values of now.
        references = [reference.clone() for reference in self.references.values()]
        # Outside autocast, as PyTorch advises for gradients of gradients; cosines are taken in float32.
        with torch.autocast(loss.device.type, enabled=False):
            gradients = self._gradients(loss, create_graph=started)
            cosines = [_cosine(gradient, mean) for gradient, mean in zip(gradients, references, strict=True)]
            alignment = torch.stack(cosines).mean()
        if self.reference == "reconstruction":
            self._add([_mean_over_ranks(gradient.detach()) for gradient in gradients])
        self._alignment = alignment.detach()
        return -self.strength * alignment if started else torch.zeros_like(loss)

    def update(self) -> None:
        """Add the gradient in `.grad`, that of the total objective, to the running means.

        Call it once an optimizer step, after the backward pass and before gradients are clipped or the optimizer steps:
        in `on_before_optimizer_step`. With `reference="reconstruction"` it does nothing, so that the hook may stay.

        Raises:
            ConfigurationError: A weight has no `.grad`.
            AuditError: A gradient is NaN or infinite; the references are as before.
        """
        if self.reference == "reconstruction":
            return
        gradients = []
        for name, layer in self._layers:
            if layer.weight.grad is None:
                raise ConfigurationError(
                    f"Expected `{name}` to have a gradient in `.grad`, but got None. Call `update` after the backward "
                    "pass and before gradients are zeroed: in `on_before_optimizer_step`."
                )
            gradients.append(layer.weight.grad.detach())
        self._require_finite(gradients)
        self._add(gradients)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{len(self._layers)} layers, strength={self.strength}, reference={self.reference!r}"

    def _gradients(self, loss: Tensor, *, create_graph: bool) -> list[Tensor]:
        """`dL / dW` of each layer, checked."""
        for name, layer in self._layers:
            _require_trainable(name, layer)
        weights = [layer.weight for _, layer in self._layers]
        found = torch.autograd.grad(loss, weights, create_graph=create_graph, retain_graph=True, allow_unused=True)
        gradients = []
        for (name, _), gradient in zip(self._layers, found, strict=True):
            if gradient is None:
                raise ConfigurationError(
                    f"Expected the loss to depend on `{name}`, but got no gradient for it. Watch only layers that take "
                    "part in the loss."
                )
            gradients.append(gradient)
        self._require_finite(gradients)
        return gradients

    @torch.no_grad()
    def _add(self, gradients: Sequence[Tensor]) -> None:
        """One more step in the arithmetic mean."""
        self.count += 1
        for mean, gradient in zip(self.references.values(), gradients, strict=True):
            mean.add_((gradient.to(mean.dtype) - mean) / self.count)
        self._first_versions = None

    @torch.no_grad()
    def _require_finite(self, gradients: Sequence[Tensor]) -> None:
        # The largest absolute value is NaN or infinite if any value is; one transfer for all layers.
        finite = torch.stack([gradient.abs().amax().isfinite() for gradient in gradients]).tolist()
        if not all(finite):
            name = self._layers[finite.index(False)][0]
            raise AuditError(
                f"Expected the gradient of `{name}` to be finite, but got NaN or infinity. Look for the first loss "
                "that is not finite; lower the learning rate, and use bfloat16 or float32 rather than float16."
            )

    def _notice_missing_update(self) -> None:
        """Without `update` the penalty would stay 0 for ever, and nobody would notice."""
        versions = [layer.weight._version for _, layer in self._layers]
        if self._first_versions is None:
            self._first_versions = versions
        elif versions != self._first_versions and self.reference == "total":
            raise ConfigurationError(
                "Expected `update` to be called before each optimizer step, but got a step without it. Call it in "
                "`on_before_optimizer_step`, or set `reference='reconstruction'`."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientConstraint:
        """Follow to another device, but keep the precision: a mean of many steps stalls in 16 bits."""
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)  # type: ignore[no-untyped-call]
        return self


def _weighted_layers(modules: nn.Module | Sequence[nn.Module]) -> Iterator[tuple[str, _Layer]]:
    """Parameter name and layer of every weight, each weight once."""
    several = isinstance(modules, Sequence)
    given = list(modules) if isinstance(modules, Sequence) else [modules]
    if not all(isinstance(module, nn.Module) for module in given):
        raise ConfigurationError(
            f"Expected `modules` to be a module or a list of modules, but got {modules!r}. Pass the decoder of your "
            "model."
        )
    seen: set[int] = set()
    for place, module in enumerate(given):
        for name, layer in module.named_modules(prefix=str(place) if several else ""):
            if isinstance(layer, _Layer) and id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                yield f"{name}.weight".removeprefix("."), layer
    if not seen:
        raise ConfigurationError(
            "Expected `modules` to hold a convolution or linear layer, but got none. Pass the decoder of your model."
        )


def _buffer(name: str) -> str:
    """Names of buffers hold no dots; this one is also a valid identifier, as scripting asks for."""
    return "mean_" + name.replace(".", "__")


def _require_trainable(name: str, layer: _Layer) -> None:
    weight: Tensor = layer.weight  # a parametrization makes it a computed one
    if not isinstance(weight, nn.Parameter) or nn.parameter.is_lazy(weight):
        kind = "one that is not initialised" if isinstance(weight, nn.Parameter) else "a computed tensor"
        raise ConfigurationError(
            f"Expected `{name}` to be an ordinary parameter, but got {kind}. Watch only layers without a "
            "parametrization, and run lazy layers once before."
        )
    if not weight.requires_grad:
        raise ConfigurationError(
            f"Expected `{name}` to be trainable, but got a frozen weight. Unfreeze it, or pass only the layers "
            "that train."
        )


def _require_loss(loss: Tensor) -> None:
    if loss.ndim != 0 or not loss.requires_grad:
        graph = "with" if loss.requires_grad else "without"
        raise ConfigurationError(
            f"Expected `loss` to be a scalar with a graph, but got shape {tuple(loss.shape)} {graph} a graph. Pass the "
            "mean loss of the batch, not detached."
        )


def _cosine(gradient: Tensor, mean: Tensor) -> Tensor:
    """Cosine as published, and 0 without any pull where the gradient vanishes: there its own derivative explodes."""
    gradient, mean = gradient.flatten().to(mean.dtype), mean.flatten()
    cosine = F.cosine_similarity(gradient, mean, dim=0)
    return torch.where((gradient != 0).any(), cosine, torch.zeros_like(cosine))


def _mean_over_ranks(gradient: Tensor) -> Tensor:
    """What DDP makes of `.grad`; without it each rank would follow a reference of its own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gradient
    total = gradient.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
