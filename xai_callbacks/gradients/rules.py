"""Per-sample parameter gradients of one layer, from what went into it and the gradient of what came out.

Summed over a batch these are the gradients that autograd computes; here they stay apart for each image. Norms are
computed without the gradients where that is cheaper. Convolutions follow Rochette, Manoel and Tramel, "Efficient
per-example gradient computations in convolutional neural networks" (2019); the norm by Gram matrices follows
Goodfellow, "Efficient per-example gradient computations" (2015), extended to layers with positions by Li et al., "Large
language models can be strong differentially private learners" (2022).

Letters: N images, T positions, P entries of a patch (input channels of a group times kernel), O output channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as convolution_gradients

__all__ = ["ConvolutionRule", "Formed", "LayerRule", "LinearRule", "NormRule", "Rule", "rule_of"]

_ALL = slice(None)

# Entries of per-sample gradients held at once where the gradient of each image is formed: 1 MB in float32, which stays
# in the cache.
_BLOCK = 2**18


class Rule(ABC):
    """Per-sample gradients of the parameters of one call; parameters are named from its module."""

    @abstractmethod
    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Gradient of a parameter for some of the images, `(n, *parameter.shape)`."""

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The gradients of all images, some at a time."""
        yield self.gradients(name)

    # Layers override these where there is a way without the gradients themselves.

    def squared_norms(self, name: str) -> Tensor:
        """Squared Euclidean norm of the gradient of a parameter, `(N,)`."""
        # Not by `vector_norm`, which adds up along rows without pairing: of a million entries, it is off by 2e-5.
        return torch.cat([_rows(block).square().sum(dim=1) for block in self.blocks(name)])

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """Inner product of the gradient with a reference of the shape of the parameter, `(N,)`."""
        return torch.cat([_rows(block) @ reference.to(block).flatten() for block in self.blocks(name)])


class Formed(Rule):
    """Gradients that are there already, by name of the parameter."""

    def __init__(self, formed: Mapping[str, Tensor]) -> None:
        self._formed = formed

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Look them up."""
        return self._formed[name][images]


class LayerRule(Rule):
    """One call of one plain layer with the parameters `weight` and `bias`, images first.

    Args:
        module: The layer.
        given: What went in, `(N, ...)`.
        gradient: Gradient of the sum of the losses with respect to what came out, `(N, ...)`.
        entries: Numbers in the gradient of one image.
    """

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor, entries: int = 1) -> None:
        self.module = module
        self.given = given
        self.gradient = gradient
        self._block = max(1, _BLOCK // max(1, entries))

    def blocks(self, name: str) -> Iterator[Tensor]:
        """As many at a time as stay in the cache."""
        count = len(self.given)
        step = max(1, count) if name == "bias" else self._block
        for start in range(0, count, step):
            yield self.gradients(name, slice(start, start + step))


class LinearRule(LayerRule):
    """`nn.Linear` on `(N, ..., I)`."""

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        super().__init__(module, _positions(given), _positions(gradient), given.shape[-1] * gradient.shape[-1])

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Sum over positions of outer products."""
        if name == "bias":
            return self.gradient[images].sum(dim=1)
        return self.gradient[images].transpose(1, 2) @ self.given[images]

    def squared_norms(self, name: str) -> Tensor:
        """By Gram matrices where positions are few."""
        positions, outputs, inputs = self.given.shape[1], self.gradient.shape[2], self.given.shape[2]
        if name == "weight" and positions * (inputs + outputs) <= inputs * outputs:
            return _gram_norms(self.given, self.gradient)
        return super().squared_norms(name)

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """`<dL/dW, R> = <dL/dy, R x>`."""
        if name == "bias":
            return super().inner_products(name, reference)
        return ((self.given @ reference.to(self.given).T) * self.gradient).flatten(1).sum(dim=1)


class ConvolutionRule(LayerRule):
    """Convolutions and transposed convolutions of one to three dimensions, whatever their stride, groups or padding."""

    module: nn.Conv2d | nn.ConvTranspose2d

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        assert isinstance(module, _CONVOLUTIONS)  # noqa: S101  # rule_of chose this class; narrows the type
        super().__init__(module, given, gradient, module.weight.numel())
        self._dimensions = given.dim() - 2
        self._padding: tuple[int, ...]
        if isinstance(module.padding, tuple) and module.padding_mode == "zeros":
            self._padding = module.padding
        else:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            self.given = F.pad(given, module._reversed_padding_repeated_twice, mode=mode)
            self._padding = (0,) * self._dimensions
        self._wide, self._narrow = self.given, gradient
        self._transposed = isinstance(module, _TRANSPOSED)
        if self._transposed:
            # A transposed convolution swaps the roles of what goes in and what comes out.
            self._wide, self._narrow = gradient, given
            if any(near != far for near, far in self._cut()):
                sides = [side for pair in reversed(self._cut()) for side in pair]
                self._wide, self._padding = F.pad(gradient, sides), (0,) * self._dimensions

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """By one convolution with a group for each image."""
        if name == "bias":
            return self.gradient[images].flatten(2).sum(dim=2)
        module = self.module
        wide, narrow = self._wide[images], self._narrow[images]
        count, shape = wide.shape[0], module.weight.shape
        if module.groups == 1 and self._is_pointwise():
            product = narrow.flatten(2) @ self._sampled(wide).flatten(2).transpose(1, 2)
            return product.reshape(count, *shape)
        weight_gradient = (
            convolution_gradients.conv1d_weight,
            convolution_gradients.conv2d_weight,
            convolution_gradients.conv3d_weight,
        )[self._dimensions - 1]
        gradients: Tensor = weight_gradient(  # type: ignore[no-untyped-call]
            wide.reshape(1, -1, *wide.shape[2:]),
            (count * shape[0], *shape[1:]),
            narrow.reshape(1, -1, *narrow.shape[2:]),
            module.stride,
            self._padding,
            module.dilation,
            count * module.groups,
        )
        return gradients.reshape(count, *shape)

    def squared_norms(self, name: str) -> Tensor:
        """By Gram matrices where the narrow map is small; seldom so of grouped, 1-d and 3-d convolutions."""
        if name == "bias" or self.module.groups != 1 or self._dimensions != 2:
            return super().squared_norms(name)
        narrow, patch = self._narrow.shape[1], prod(self.module.weight.shape[1:])
        if self._narrow[0, 0].numel() * (patch + narrow) > patch * narrow:
            return super().squared_norms(name)
        return _gram_norms(self._patches().transpose(1, 2), self._narrow.flatten(2).transpose(1, 2))

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """`<dL/dW, R> = <dL/dy, layer_R(x)>`, where `layer_R` has the weight R and no bias."""
        if name == "bias":
            return super().inner_products(name, reference)
        module, kind, weight = self.module, self._dimensions - 1, reference.to(self.given)
        if self._transposed:
            back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[kind]
            came_out = back(self._narrow, weight, None, module.stride, self._padding, 0, module.groups, module.dilation)
            return (came_out * self._wide).flatten(1).sum(dim=1)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[kind]
        came_out = convolve(self._wide, weight, None, module.stride, self._padding, module.dilation, module.groups)
        return (came_out * self._narrow).flatten(1).sum(dim=1)

    def _cut(self) -> list[tuple[int, int]]:
        """What a transposed convolution cuts off before and after, by axis: they differ where it pads its output.

        Seen from the shapes, since a forward pass may have been told its output size.
        """
        module, cut = self.module, []
        for axis, (given, came_out) in enumerate(zip(self.given.shape[2:], self.gradient.shape[2:], strict=True)):
            whole = (given - 1) * module.stride[axis] + module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
            cut.append((self._padding[axis], whole - self._padding[axis] - came_out))
        return cut

    def _is_pointwise(self) -> bool:
        return all(size == 1 for size in self.module.kernel_size) and not any(self._padding)

    def _sampled(self, wide: Tensor) -> Tensor:
        """What a kernel of one entry meets."""
        for axis, step in enumerate(self.module.stride):
            if step > 1:
                wide = wide.index_select(axis + 2, torch.arange(0, wide.shape[axis + 2], step, device=wide.device))
        return wide

    def _patches(self) -> Tensor:
        """The part of the wide side that belongs to each position of the narrow one, `(N, P, T)`."""
        module = self.module
        if self._is_pointwise():
            return self._sampled(self._wide).flatten(2)
        return F.unfold(self._wide, module.kernel_size, module.dilation, self._padding, module.stride)


class NormRule(LayerRule):
    """Batch norm in eval mode, instance, group and layer norm: `y = weight * normalised + bias`."""

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Sum over positions, for bias and weight."""
        return self._gradients[name][images]

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        if isinstance(self.module, _BATCH_NORMS):
            return self._of_running_statistics()
        normalised = self._normalised()
        if isinstance(self.module, nn.LayerNorm):
            shape = (len(self.gradient), -1, *self.module.normalized_shape)
            weight, bias = ((each.reshape(shape)).sum(dim=1) for each in (self.gradient * normalised, self.gradient))
            return {"weight": weight, "bias": bias}
        count, channels = self.gradient.shape[:2]
        gradient = self.gradient.reshape(count, channels, -1)
        # A batch of inner products over positions, without a third tensor of the size of the feature map.
        positions = gradient.shape[2]
        products = gradient.reshape(-1, 1, positions) @ normalised.reshape(-1, positions, 1)
        return {"weight": products.reshape(count, channels), "bias": gradient.sum(dim=2)}

    def _of_running_statistics(self) -> dict[str, Tensor]:
        """Both gradients at once: every channel of every image is a channel of its own to autograd's own kernel.

        It reads both maps once and adds up in double precision; five to nine times as fast as products and sums here.
        """
        count, channels = self.gradient.shape[:2]
        rows = (1, count * channels, -1)
        mean, var = self._running()
        assert mean is not None and var is not None  # noqa: S101, PT018  # refused before; narrows the types
        _, weight, bias = torch.ops.aten.native_batch_norm_backward(
            self.gradient.reshape(rows),
            self.given.reshape(rows),
            None,
            mean.expand(count, -1).flatten(),
            var.expand(count, -1).flatten(),
            None,
            None,
            False,
            self.module.eps,
            [False, True, True],
        )
        return {"weight": weight.view(count, channels), "bias": bias.view(count, channels)}

    def _normalised(self) -> Tensor:
        module, given = self.module, self.given
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(given, module.normalized_shape, None, None, module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(given, module.num_groups, None, None, module.eps)
        mean, var = self._running()
        return F.instance_norm(given, mean, var, None, None, mean is None, 0.0, module.eps)  # type: ignore[arg-type]

    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        """Running statistics of a half-precision model in the precision of what goes in, which has been widened."""
        mean, var = self.module.running_mean, self.module.running_var
        widened = (each.to(self.given.dtype) if isinstance(each, Tensor) else None for each in (mean, var))
        return next(widened), next(widened)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RULES: dict[tuple[type[nn.Module], ...], type[LayerRule]] = {
    (nn.Linear,): LinearRule,
    _CONVOLUTIONS: ConvolutionRule,
    (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm): NormRule,
}


def rule_of(module: nn.Module) -> type[LayerRule] | None:
    """The rule of a layer; None for any other, also for a subclass with a `forward` of its own."""
    for kinds, rule in _RULES.items():
        for known in kinds:
            if isinstance(module, known):
                methods = ("forward", "_conv_forward")
                plain = all(getattr(type(module), name, None) is getattr(known, name, None) for name in methods)
                return rule if plain else None
    return None


def _positions(tensor: Tensor) -> Tensor:
    """`(N, ..., C)` as `(N, T, C)`."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _rows(gradients: Tensor) -> Tensor:
    """`(N, *shape)` as `(N, entries)`; a parameter without dimensions has one entry."""
    return gradients.flatten(1) if gradients.ndim > 1 else gradients[:, None]


def _gram_norms(given: Tensor, gradient: Tensor) -> Tensor:
    """`||sum_t g_t a_t^T||^2 = sum_st (a_s . a_t)(g_s . g_t)` for `(N, T, P)` and `(N, T, O)`."""
    if given.shape[1] == 1:
        return given.square().sum(dim=(1, 2)) * gradient.square().sum(dim=(1, 2))
    return ((given @ given.transpose(1, 2)) * (gradient @ gradient.transpose(1, 2))).sum(dim=(1, 2))
