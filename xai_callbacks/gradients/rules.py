"""Per-sample parameter gradients of one call, by the rule of its layer or by running it again for each image.

Convolutions follow Rochette, Manoel and Tramel (arXiv 1912.06015), norms by Gram matrices Goodfellow (arXiv 1510.01799)
and, with positions, Li et al. (arXiv 2110.05679). Letters: N images, T positions, P entries of a patch, O outputs.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from xai_callbacks.access.trace import tensors_in
from xai_callbacks.errors import ConfigurationError, in_words, is_out_of_memory
from xai_callbacks.gradients.calls import Axes, Call, precise

_ALL = slice(None)

_BLOCK = 2**18  # entries of formed per-sample gradients held at once: 1 MB in float32, which stays in the cache


class Rule:
    """Per-sample gradients of the parameters of one call, named from its module; here those formed already."""

    def __init__(self, formed: Mapping[str, Tensor]) -> None:
        self._formed = formed

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Gradient of a parameter for some of the images, `(n, *parameter.shape)`."""
        return self._formed[name][images]

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Gradients of all images, some at a time."""
        yield self.gradients(name)

    def squared_norms(self, name: str) -> Tensor:
        """Squared Euclidean norm of the gradient of a parameter, `(N,)`."""
        # Not by `vector_norm`, which adds up along rows without pairing: of a million entries, it is off by 2e-5.
        return torch.cat([block[..., None].flatten(1).square().sum(dim=1) for block in self.blocks(name)])


class LayerRule(Rule):
    """One call of a layer with `weight` and `bias`: input and gradient of the output `(N, ...)`."""

    def __init__(self, module: Any, given: Tensor, gradient: Tensor) -> None:
        self.module, self.given, self.gradient = module, given, gradient

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Gradients of as many images at a time as stay in the cache."""
        count = len(self.given)
        step = count if name == "bias" else max(1, _BLOCK // max(1, self.module.weight.numel()))
        for start in range(0, count, step):
            yield self.gradients(name, slice(start, start + step))


class LinearRule(LayerRule):
    """`nn.Linear` on `(N, ..., I)`."""

    def __init__(self, module: Any, given: Tensor, gradient: Tensor) -> None:
        super().__init__(module, *(each.reshape(len(each), -1, each.shape[-1]) for each in (given, gradient)))

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Sums over positions of outer products."""
        if name == "bias":
            return self.gradient[images].sum(dim=1)
        return self.gradient[images].transpose(1, 2) @ self.given[images]

    def squared_norms(self, name: str) -> Tensor:
        """Squared norms by Gram matrices where positions are few."""
        positions, outputs, inputs = self.given.shape[1], self.gradient.shape[2], self.given.shape[2]
        if name == "weight" and positions * (inputs + outputs) <= inputs * outputs:
            return _gram_norms(self.given, self.gradient)
        return super().squared_norms(name)


class ConvolutionRule(LayerRule):
    """Convolutions and transposed convolutions of one to three dimensions, whatever their stride, groups or padding.

    A transposed convolution is the convolution that leads from its output, the wide side, back to its input.
    """

    def __init__(self, module: Any, given: Tensor, gradient: Tensor) -> None:
        super().__init__(module, given, gradient)
        self._wide, self._narrow = (gradient, given) if isinstance(module, _TRANSPOSED) else (given, gradient)
        padding, none = module.padding, (0,) * len(given.shape[2:])
        if isinstance(padding, str) or module.padding_mode != "zeros":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            self._wide, padding = F.pad(given, module._reversed_padding_repeated_twice, mode=mode), none
        elif isinstance(module, _TRANSPOSED):
            # More is cut off before than after where it pads its output; seen from the shapes, since a forward pass may
            # have been told its output size.
            sizes = zip(given.shape[2:], module.stride, module.dilation, module.kernel_size, strict=True)
            whole = [(size - 1) * step + dilation * (kernel - 1) + 1 for size, step, dilation, kernel in sizes]
            cut = [(p, full - p - size) for p, full, size in zip(padding, whole, gradient.shape[2:], strict=True)]
            self._wide, padding = F.pad(gradient, [side for pair in reversed(cut) for side in pair]), none
        self._options = (module.stride, padding, module.dilation, False, none)
        self._pointwise = prod(module.kernel_size) == 1 and not any(padding)

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Gradients by one convolution with a group for each image."""
        if name == "bias":
            return self.gradient[images].flatten(2).sum(dim=2)
        wide, narrow, module = self._wide[images], self._narrow[images], self.module
        count, shape = len(wide), module.weight.shape
        if self._pointwise and module.groups == 1:
            return (narrow.flatten(2) @ self._patches(images).transpose(1, 2)).reshape(count, *shape)
        both = (each.reshape(1, -1, *each.shape[2:]) for each in (narrow, wide))
        weight = wide.new_empty(1).expand(count * shape[0], *shape[1:])
        options = (*self._options, count * module.groups, (False, True, False))
        gradients: Tensor = torch.ops.aten.convolution_backward(*both, weight, None, *options)[1]
        return gradients.reshape(count, *shape)

    def squared_norms(self, name: str) -> Tensor:
        """Squared norms by Gram matrices where the narrow map is small; seldom so of grouped, 1-d and 3-d ones."""
        narrow, patch = self._narrow.shape[1], prod(self.module.weight.shape[1:])
        small = self._narrow[0, 0].numel() * (patch + narrow) <= patch * narrow
        if name == "bias" or self.module.groups != 1 or self._narrow.dim() != 4 or not small:
            return super().squared_norms(name)
        return _gram_norms(self._patches().transpose(1, 2), self._narrow.flatten(2).transpose(1, 2))

    def _patches(self, images: slice = _ALL) -> Tensor:
        """Part of the wide side that belongs to each position of the narrow one, `(N, P, T)`."""
        stride, padding, dilation, *_ = self._options
        if self._pointwise:
            return self._wide[(images, _ALL, *(slice(None, None, step) for step in stride))].flatten(2)
        return F.unfold(self._wide[images], self.module.kernel_size, dilation, padding, stride)


class NormRule(LayerRule):
    """Batch norm in eval mode, instance, group and layer norm: `y = weight * normalised + bias`."""

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Sum over positions."""
        return self._both[name][images]

    @cached_property
    def _both(self) -> dict[str, Tensor]:
        module, given, gradient = self.module, self.given, self.gradient
        count, channels = gradient.shape[:2]
        # A half-precision model keeps its statistics in half precision.
        running = [getattr(module, f"running_{name}", None) for name in ("mean", "var")]
        mean, var = (None if each is None else each.to(given.dtype) for each in running)
        if isinstance(module, _BATCH_NORMS):
            # Every channel of every image is a channel of its own to autograd's kernel, which reads both maps once and
            # adds up in double precision: five to nine times as fast as products and sums.
            maps = (each.reshape(1, count * channels, -1) for each in (gradient, given))
            statistics = (each.expand(count, -1).flatten() for each in (mean, var) if each is not None)
            options = (None, None, False, module.eps, (False, True, True))
            _, weight, bias = torch.ops.aten.native_batch_norm_backward(*maps, None, *statistics, *options)
            return {"weight": weight.view(count, channels), "bias": bias.view(count, channels)}
        if isinstance(module, nn.LayerNorm):
            normalised, shape = F.layer_norm(given, module.normalized_shape, eps=module.eps), module.normalized_shape
            weight, bias = (each.reshape(count, -1, *shape).sum(dim=1) for each in (gradient * normalised, gradient))
            return {"weight": weight, "bias": bias}
        if isinstance(module, nn.GroupNorm):
            normalised = F.group_norm(given, module.num_groups, eps=module.eps)
        else:
            normalised = F.instance_norm(given, mean, var, None, None, mean is None, 0.0, module.eps)
        gradient = gradient.flatten(2)
        # A batch of inner products over positions, without a third tensor of the size of the feature map.
        return {"weight": torch.einsum("nct,nct->nc", gradient, normalised.flatten(2)), "bias": gradient.sum(dim=2)}


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RULES: dict[type[nn.Module], type[LayerRule]] = {
    nn.Linear: LinearRule,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED), ConvolutionRule),
    **dict.fromkeys((*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm), NormRule),
}


def rule_of(module: nn.Module) -> type[LayerRule] | None:
    """The rule of a layer; None for any other, also for a subclass with a `forward` of its own."""
    known = next((kind for kind in _RULES if isinstance(module, kind)), nn.Module)
    methods = ("forward", "_conv_forward")
    plain = all(getattr(type(module), name, None) is getattr(known, name, None) for name in methods)
    return _RULES.get(known) if plain else None


def _gram_norms(given: Tensor, gradient: Tensor) -> Tensor:
    """`||sum_t g_t a_t^T||^2 = sum_st (a_s . a_t)(g_s . g_t)` for `(N, T, P)` and `(N, T, O)`."""
    if given.shape[1] == 1:
        return given.square().sum(dim=(1, 2)) * gradient.square().sum(dim=(1, 2))
    return ((given @ given.transpose(1, 2)) * (gradient @ gradient.transpose(1, 2))).sum(dim=(1, 2))


def gradients_by_image(call: Call, names: list[str], axes: Axes) -> dict[str, Tensor]:
    """Gradients `(N, *parameter.shape)` of parameters, named from the module, whatever it does with each image.

    Raises a `ConfigurationError` if the module cannot be run again, or a hook replaces what goes into it, which it
    would do a second time.
    """
    leaves, tree = tree_flatten(call.arguments)
    along = dict(zip([n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)], axes.inputs, strict=True))
    wanted = [(index, gradient) for index, gradient in enumerate(call.gradients) if gradient is not None]
    count = next(each.shape[axis] for index, each in wanted if (axis := axes.outputs[index]) is not None)
    parameters = [call.module.get_parameter(name) for name in names]
    rows = []
    try:
        for image in range(count):
            # Copies, since modules may write into what they get.
            filled = [
                _of(leaf.detach(), along[n], image).clone() if n in along else leaf for n, leaf in enumerate(leaves)
            ]
            came_out = _forward(call.module, *tree_unflatten(filled, tree))
            pairs = [(came_out[n], _of(each, axes.outputs[n], image).to(came_out[n])) for n, each in wanted]
            outputs, incoming = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
            rows.append(torch.autograd.grad(outputs, parameters, incoming, allow_unused=True, materialize_grads=True))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"Expected `{call.name or type(call.module).__name__}`, which has no rule of its own, to run again for "
            f"each image, but it raised {in_words(error)} Leave its parameters out with `parameters=`."
        ) from error
    return {name: precise(torch.stack(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _of(tensor: Tensor, axis: int | None, image: int) -> Tensor:
    return tensor if axis is None else tensor.narrow(axis, image, 1)


def _forward(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a module returns, before its own hooks change them, as in `Call`."""
    came_out: list[Tensor] = []

    def note(_module: nn.Module, *seen: Any) -> None:
        *arguments, output = seen
        if [*map(id, tensors_in(arguments))] != [*map(id, tensors_in([args, kwargs]))]:
            raise ConfigurationError(
                f"Expected what goes into {type(module).__name__} to be left alone by its hooks, since it is run again "
                "for every image, but a forward pre-hook replaces it. Move what it does into a module, or leave its "
                "parameters out with `parameters=`."
            )
        came_out.extend(tensors_in(output))

    with module.register_forward_hook(note, prepend=True, with_kwargs=True), torch.enable_grad():
        module(*args, **kwargs)
    return came_out
