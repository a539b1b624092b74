"""Per-sample parameter gradients of one layer, from what went into it and the gradient of what came out.

Summed over a batch these are the gradients that autograd computes; here they stay apart for each image. Norms and inner
products are computed without holding the gradient of every image at once where that is cheaper. Convolutions follow
Rochette, Manoel and Tramel, "Efficient per-example gradient computations in convolutional neural networks" (2019); the
norm by Gram matrices follows Goodfellow, "Efficient per-example gradient computations" (2015), extended to layers with
positions by Li et al., "Large language models can be strong differentially private learners" (2022).

Letters: N images, T positions, P entries of a patch (input channels of a group times kernel), O output channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as convolution_gradients

__all__ = ["ConvolutionCall", "EmbeddingCall", "LayerCall", "LinearCall", "NormCall", "call_type"]

# Entries of per-sample gradients held at once where the gradient of each image is formed: 1 MB in float32, which stays
# in the cache.
_BLOCK = 2**18


class LayerCall(ABC):
    """One call of one layer, images first.

    Args:
        module: The layer.
        given: What went in, `(N, ...)`.
        gradient: Gradient of the sum of the losses with respect to what came out, `(N, ...)`.
    """

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        self.module = module
        self.given = given
        self.gradient = gradient

    def gradients(self, name: str) -> Tensor:
        """Gradient of the parameter for every image, `(N, *parameter.shape)`."""
        return self._gradients(name)

    def squared_norms(self, name: str) -> Tensor:
        """Squared Euclidean norm of the gradient of the parameter, `(N,)`."""
        return self._squared_norms(name)

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """Inner product of the gradient with a reference of the shape of the parameter, `(N,)`."""
        return self._inner_products(name, reference)

    @abstractmethod
    def _gradients(self, name: str) -> Tensor: ...

    # Layers override these where there is a way without the gradients themselves.

    def _squared_norms(self, name: str) -> Tensor:
        return _squared_rows(self._gradients(name).flatten(1))

    def _inner_products(self, name: str, reference: Tensor) -> Tensor:
        return self._gradients(name).flatten(1) @ reference.flatten()


class LinearCall(LayerCall):
    """`nn.Linear` on `(N, ..., I)`."""

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        super().__init__(module, _positions(given), _positions(gradient))

    def _gradients(self, name: str) -> Tensor:
        if name == "bias":
            return self.gradient.sum(dim=1)
        return self.gradient.transpose(1, 2) @ self.given

    def _squared_norms(self, name: str) -> Tensor:
        positions, outputs, inputs = self.given.shape[1], self.gradient.shape[2], self.given.shape[2]
        if name == "weight" and positions * (inputs + outputs) <= inputs * outputs:
            return _gram_norms(self.given, self.gradient)
        return super()._squared_norms(name)

    def _inner_products(self, name: str, reference: Tensor) -> Tensor:
        if name == "bias":
            return super()._inner_products(name, reference)
        return ((self.given @ reference.T) * self.gradient).flatten(1).sum(dim=1)


class ConvolutionCall(LayerCall):
    """Convolutions and transposed convolutions of one to three dimensions, whatever their stride, groups or padding."""

    module: nn.Conv2d | nn.ConvTranspose2d

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        super().__init__(module, given, gradient)
        assert isinstance(module, _CONVOLUTIONS)  # noqa: S101  # call_type chose this class; narrows the type
        self._dimensions = given.dim() - 2
        self._padding: tuple[int, ...]
        if isinstance(module.padding, tuple) and module.padding_mode == "zeros":
            self._padding = module.padding
        else:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            self.given = F.pad(given, module._reversed_padding_repeated_twice, mode=mode)
            self._padding = (0,) * self._dimensions
        # A transposed convolution swaps the roles of what goes in and what comes out.
        self._transposed = isinstance(module, _TRANSPOSED)
        self._wide, self._narrow = (gradient, given) if self._transposed else (self.given, gradient)
        if self._transposed and self._has_output_padding():
            self._wide, self._padding = self._unpadded(gradient), (0,) * self._dimensions

    def _gradients(self, name: str) -> Tensor:
        if name == "bias":
            return self._bias_gradients()
        count = self.given.shape[0]
        block = max(1, _BLOCK // self.module.weight.numel())
        parts = [self._weight_gradients(slice(start, start + block)) for start in range(0, count, block)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _squared_norms(self, name: str) -> Tensor:
        if name == "bias":
            return super()._squared_norms(name)
        if self._gram_is_cheaper():
            return _gram_norms(self._patches().transpose(1, 2), self._narrow.flatten(2).transpose(1, 2))
        block = max(1, _BLOCK // self.module.weight.numel())
        starts = range(0, self.given.shape[0], block)
        return torch.cat(
            [_squared_rows(self._weight_gradients(slice(start, start + block)).flatten(1)) for start in starts]
        )

    def _inner_products(self, name: str, reference: Tensor) -> Tensor:
        if name == "bias":
            return super()._inner_products(name, reference)
        came_out = self._wide if self._transposed else self._narrow
        return (self._apply(reference) * came_out).flatten(1).sum(dim=1)

    def _has_output_padding(self) -> bool:
        """Seen from the shapes, since a forward pass may have been told its output size."""
        module, sizes = self.module, zip(self.given.shape[2:], self.gradient.shape[2:], strict=True)
        return any(
            (given - 1) * module.stride[axis]
            - 2 * self._padding[axis]
            + module.dilation[axis] * (module.kernel_size[axis] - 1)
            + 1
            < came_out
            for axis, (given, came_out) in enumerate(sizes)
        )

    def _unpadded(self, gradient: Tensor) -> Tensor:
        """What came out of a transposed convolution, as it would be without padding of either kind."""
        module, sides = self.module, []
        for axis in reversed(range(self._dimensions)):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
            whole = (self.given.shape[axis + 2] - 1) * module.stride[axis] + reach
            near = self._padding[axis]
            sides += [near, whole - near - gradient.shape[axis + 2]]
        return F.pad(gradient, sides)

    def _bias_gradients(self) -> Tensor:
        return self.gradient.flatten(2).sum(dim=2)

    def _apply(self, weight: Tensor) -> Tensor:
        """The layer with another weight and no bias; linear in the weight, so `<dL/dW, R> = <dL/dy, layer_R(x)>`."""
        module, kind, none = self.module, self._dimensions - 1, None
        if self._transposed:
            transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[kind]
            return transpose(self.given, weight, none, module.stride, self._padding, 0, module.groups, module.dilation)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[kind]
        return convolve(self.given, weight, none, module.stride, self._padding, module.dilation, module.groups)

    def _weight_gradients(self, images: slice) -> Tensor:
        """Gradients of some images, `(n, *weight.shape)`, by one convolution with a group for each image."""
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

    def _gram_is_cheaper(self) -> bool:
        module = self.module
        # Grouped, 1-d and 3-d convolutions could be unfolded too, but their maps are seldom that small.
        if module.groups != 1 or self._dimensions != 2:
            return False
        narrow, patch = self._narrow.shape[1], prod(module.weight.shape[1:])
        return self._narrow[0, 0].numel() * (patch + narrow) <= patch * narrow

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


class NormCall(LayerCall):
    """Batch norm in eval mode, instance, group and layer norm: `y = weight * normalised + bias`."""

    def _gradients(self, name: str) -> Tensor:
        if isinstance(self.module, _BATCH_NORMS):
            return self._of_running_statistics[name]
        if isinstance(self.module, nn.LayerNorm):
            shape = self.module.normalized_shape
            product = self.gradient if name == "bias" else self.gradient * self._normalised()
            return product.reshape(product.shape[0], -1, *shape).sum(dim=1)
        count, channels = self.gradient.shape[:2]
        gradient = self.gradient.reshape(count, channels, -1)
        if name == "bias":
            return gradient.sum(dim=2)
        # A batch of inner products over positions, without a third tensor of the size of the feature map.
        normalised, positions = self._normalised(), gradient.shape[2]
        products = gradient.reshape(-1, 1, positions) @ normalised.reshape(-1, positions, 1)
        return products.reshape(count, channels)

    @cached_property
    def _of_running_statistics(self) -> dict[str, Tensor]:
        """Both gradients at once: every channel of every image is a channel of its own to autograd's own kernel.

        It reads both maps once and adds up in double precision; five to nine times as fast as products and sums here.
        """
        count, channels = self.gradient.shape[:2]
        rows = (1, count * channels, -1)
        mean, var = (_widened(getattr(self.module, name), self.given) for name in ("running_mean", "running_var"))
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
        mean, var = (_widened(getattr(module, name), given) for name in ("running_mean", "running_var"))
        return F.instance_norm(given, mean, var, None, None, mean is None, 0.0, module.eps)  # type: ignore[arg-type]


def _widened(statistics: object, given: Tensor) -> Tensor | None:
    """Running statistics of a half-precision model in the precision of what goes in, which has been widened."""
    return statistics.to(given.dtype) if isinstance(statistics, Tensor) else None


class EmbeddingCall(LayerCall):
    """`nn.Embedding` on indices `(N, ...)`."""

    module: nn.Embedding

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        gradient = _positions(gradient)
        given = given.reshape(given.shape[0], -1)
        assert isinstance(module, nn.Embedding)  # noqa: S101  # call_type chose this class; narrows the type
        padding = module.padding_idx
        if padding is not None:
            gradient = gradient.masked_fill((given == padding)[..., None], 0)
        super().__init__(module, given, gradient)

    def _gradients(self, name: str) -> Tensor:
        empty = self.gradient.new_zeros(self.given.shape[0], *self.module.weight.shape)
        return empty.scatter_add_(1, self.given[..., None].expand_as(self.gradient), self.gradient)

    def _squared_norms(self, name: str) -> Tensor:
        same = self.given[:, :, None] == self.given[:, None, :]
        return ((self.gradient @ self.gradient.transpose(1, 2)) * same).sum(dim=(1, 2))

    def _inner_products(self, name: str, reference: Tensor) -> Tensor:
        return (F.embedding(self.given, reference) * self.gradient).sum(dim=(1, 2))


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def call_type(module: nn.Module) -> type[LayerCall] | None:
    """The class that knows a layer; None for any other, also for a subclass with a `forward` of its own."""
    for kinds, kind in (
        ((nn.Linear,), LinearCall),
        (_CONVOLUTIONS, ConvolutionCall),
        ((*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm), NormCall),
        ((nn.Embedding,), EmbeddingCall),
    ):
        for known in kinds:
            if isinstance(module, known):
                return kind if _is_plain(module, known) else None
    return None


def _is_plain(module: nn.Module, known: type[nn.Module]) -> bool:
    overridden = any(
        getattr(type(module), name, None) is not getattr(known, name, None) for name in ("forward", "_conv_forward")
    )
    # Both change the table, or the meaning of its gradient, during the forward pass.
    unusual = isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq)
    return not overridden and not unusual


def _positions(tensor: Tensor) -> Tensor:
    """`(N, ..., C)` as `(N, T, C)`."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _squared_rows(rows: Tensor) -> Tensor:
    """Squared norm of each row; eight times as fast as a batch of products.

    Not by `vector_norm`, which adds up along rows without pairing: on a million entries it is off by 2e-5.
    """
    return rows.square().sum(dim=1)


def _gram_norms(given: Tensor, gradient: Tensor) -> Tensor:
    """`||sum_t g_t a_t^T||^2 = sum_st (a_s . a_t)(g_s . g_t)` for `(N, T, P)` and `(N, T, O)`."""
    if given.shape[1] == 1:
        return given.square().sum(dim=(1, 2)) * gradient.square().sum(dim=(1, 2))
    return ((given @ given.transpose(1, 2)) * (gradient @ gradient.transpose(1, 2))).sum(dim=(1, 2))
