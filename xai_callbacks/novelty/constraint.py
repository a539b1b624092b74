"""GradCon's constraint: train so that the gradients of familiar images point one way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.arguments import require_positive

__all__ = ["GradientConstraint"]

_Layer = nn.Linear | nn.modules.conv._ConvNd


class GradientConstraint(nn.Module):
    """A penalty on gradients that leave the mean gradient of the training so far. Make it an attribute of your module.

    Kwon, Prabhushankar, Temel and AlRegib, "Backpropagated gradient representation for anomaly detection", ECCV 2020:
    `-strength * mean_i cos(g_i, G_i)` is added to a reconstruction loss `L`, where `g_i = dL / dW_i` is the gradient of
    layer i and `G_i` the mean of the gradients of the total objective at all earlier steps. docs/novelty.md has an
    example.

    Weights of `Conv*`, `ConvTranspose*` and `Linear` layers take part, each once. The watched modules are not
    registered; `state_dict` holds `count` and one mean gradient a layer, in float32 or better, with which a resumed
    training continues bit for bit.

    Cost: a second backward pass through the graph of the loss (double backward), and twice the memory of its graph.
    `torch.compile` and fused attention know no double backward, and float16 is too narrow: use bfloat16 or float32. Not
    for sharded parameters (FSDP).

    Attributes:
        alignment: Mean cosine over layers at the last training step, a scalar in [-1, 1]; 0 without a mean gradient.

    Args:
        modules: Whose weights to constrain, commonly the decoder; one module, or several.
        strength: Weight of the penalty, > 0. The published .03 is meant for a mean squared error over pixels in [0, 1].

    Raises:
        ConfigurationError: Nothing to watch, or a frozen weight.
    """

    count: Tensor

    def __init__(self, modules: nn.Module | Sequence[nn.Module], strength: float = 0.03) -> None:
        super().__init__()
        self.strength = require_positive("strength", strength, hint="For no penalty, leave the constraint out.")
        # A tuple hides the layers from `nn.Module`, which would list their parameters a second time. Layers rather than
        # weights: some ways of loading and moving put a new `Parameter` into a layer.
        self._layers = _weighted_layers(modules)
        for name, layer in self._layers:
            _require_trainable(name, layer)
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            self.register_buffer(_buffer(name), torch.zeros_like(layer.weight, dtype=dtype, requires_grad=False))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.alignment = torch.zeros(())
        self._first_versions: list[int] | None = None

    @property
    def references(self) -> dict[str, Tensor]:
        """Mean gradient by parameter, such as `6.weight`, or `0.6.weight` of several modules; zero at first."""
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
            ConfigurationError: `loss` is no scalar with a graph, or does not depend on a watched weight; a weight is
                frozen; or `update` has been forgotten.
            AuditError: A gradient is NaN or infinite; the references are as before.
        """
        if not (self.training and torch.is_grad_enabled()):
            return torch.zeros_like(loss)
        if loss.ndim != 0 or not loss.requires_grad:
            graph = "with" if loss.requires_grad else "without"
            raise ConfigurationError(
                f"Expected `loss` to be a scalar with a graph, but got shape {tuple(loss.shape)} {graph} a graph. Pass "
                "the mean loss of the batch, not detached."
            )
        for name, layer in self._layers:
            _require_trainable(name, layer)
        started = bool(self.count > 0)
        if not started:
            # Without `update` the penalty would stay 0 for ever, and nobody would notice.
            versions = [weight._version for weight in self.weights.values()]
            if self._first_versions not in (None, versions):
                raise ConfigurationError(
                    "Expected `update` to be called before each optimizer step, but got a step without it. Call it in "
                    "`on_before_optimizer_step`."
                )
            self._first_versions = versions
        # Copies: `update` may come between this call and the backward pass, which needs the values of now.
        references = [reference.clone() for reference in self.references.values()]
        # Outside autocast, as PyTorch advises for gradients of gradients; cosines are taken in float32.
        with torch.autocast(loss.device.type, enabled=False):
            weights = list(self.weights.values())
            found = torch.autograd.grad(loss, weights, create_graph=started, retain_graph=True, allow_unused=True)
            expected = (
                "Expected the loss to depend on `{}`, but got no gradient for it. Watch only layers that take part."
            )
            gradients = self._checked(found, expected)
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
        gradients = self._checked(
            (weight.grad for weight in self.weights.values()),
            "Expected `{}` to have a gradient in `.grad`, but got None. Call `update` after the backward pass and "
            "before gradients are zeroed: in `on_before_optimizer_step`.",
        )
        self.count += 1
        for mean, gradient in zip(self.references.values(), gradients, strict=True):
            mean.add_((gradient.to(mean.dtype) - mean) / self.count)

    def _checked(self, found: Iterable[Tensor | None], expected: str) -> list[Tensor]:
        """The gradient of each layer; or an error that names the first layer that has none, or no finite one."""
        gradients = []
        for (name, _), gradient in zip(self._layers, found, strict=True):
            if gradient is None:
                raise ConfigurationError(expected.format(name))
            gradients.append(gradient)
        # The largest absolute value is NaN or infinite if any value is; one transfer for all layers.
        finite = torch.stack([gradient.detach().abs().amax().isfinite() for gradient in gradients]).tolist()
        if not all(finite):
            raise AuditError(
                f"Expected the gradient of `{self._layers[finite.index(False)][0]}` to be finite, but got NaN or "
                "infinity. Look for the first loss that is not finite; lower the learning rate, and use bfloat16 or "
                "float32 rather than float16."
            )
        return gradients

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientConstraint:
        """Follow to another device, but keep the precision: a mean of many steps stalls in 16 bits."""
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)  # type: ignore[no-untyped-call]
        return self


def _weighted_layers(modules: nn.Module | Sequence[nn.Module]) -> tuple[tuple[str, _Layer], ...]:
    """Parameter name and layer of every weight, each weight once."""
    several = isinstance(modules, Sequence)
    given = list(modules) if isinstance(modules, Sequence) else [modules]
    if not all(isinstance(module, nn.Module) for module in given):
        raise ConfigurationError(
            f"Expected `modules` to be a module or a list of modules, but got {modules!r}. Pass the decoder of your "
            "model."
        )
    found: dict[int, tuple[str, _Layer]] = {}
    for place, module in enumerate(given):
        for name, layer in module.named_modules(prefix=str(place) if several else ""):
            if isinstance(layer, _Layer):
                found.setdefault(id(layer.weight), (f"{name}.weight".removeprefix("."), layer))
    if not found:
        raise ConfigurationError(
            "Expected `modules` to hold a convolution or linear layer, but got none. Pass the decoder of your model."
        )
    return tuple(found.values())


def _buffer(name: str) -> str:
    """Names of buffers hold no dots; this one is also a valid identifier, as scripting asks for."""
    return "mean_" + name.replace(".", "__")


def _require_trainable(name: str, layer: _Layer) -> None:
    weight: Tensor = layer.weight  # a parametrization makes it a computed one
    if nn.parameter.is_lazy(weight):
        kind, advice = "one that is not initialised", "Run lazy layers once before."
    elif not isinstance(weight, nn.Parameter):
        kind, advice = "a computed tensor", "Watch only layers without a parametrization."
    elif not weight.requires_grad:
        kind, advice = "a frozen weight", "Unfreeze it, or pass only the layers that train."
    else:
        return
    raise ConfigurationError(f"Expected `{name}` to be a trainable parameter, but got {kind}. {advice}")


def _cosine(gradient: Tensor, mean: Tensor) -> Tensor:
    """Cosine as published, and 0 without any pull where the gradient vanishes: there its own derivative explodes."""
    gradient, mean = gradient.flatten().to(mean.dtype), mean.flatten()
    cosine = F.cosine_similarity(gradient, mean, dim=0)
    return torch.where((gradient != 0).any(), cosine, torch.zeros_like(cosine))
