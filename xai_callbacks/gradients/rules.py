"""Per-sample parameter gradients of one layer, from its input and the gradient of its output.

Convolutions follow Rochette, Manoel and Tramel (arXiv 1912.06015), norms by Gram matrices Goodfellow (arXiv 1510.01799)
and, with positions, Li et al. (arXiv 2110.05679). Letters: N images, T positions, P entries of a patch, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_callbacks.gradients.calls import Call, precise

__all__ = ["AttentionRule", "ConvolutionRule", "LayerRule", "LinearRule", "NormRule", "Rule", "rule_of"]

_ALL = slice(None)

# Entries of formed per-sample gradients held at once: 1 MB in float32, which stays in the cache.
_BLOCK = 2**18


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
        return torch.cat([_rows(block).square().sum(dim=1) for block in self.blocks(name)])

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """Inner product of the gradient with a reference of the shape of the parameter, `(N,)`."""
        return torch.cat([_rows(block) @ reference.to(block).flatten() for block in self.blocks(name)])


class LayerRule(Rule):
    """One call of a layer with `weight` and `bias`: input and gradient of the output `(N, ...)`.

    `entries` are the numbers in the gradient of one image.
    """

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor, entries: int = 1) -> None:
        self.module = module
        self.given = given
        self.gradient = gradient
        self._block = max(1, _BLOCK // max(1, entries))

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Gradients of as many images at a time as stay in the cache."""
        count = len(self.given)
        step = max(1, count) if name == "bias" else self._block
        for start in range(0, count, step):
            yield self.gradients(name, slice(start, start + step))


class LinearRule(LayerRule):
    """`nn.Linear` on `(N, ..., I)`."""

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        given, gradient = (each.reshape(len(each), -1, each.shape[-1]) for each in (given, gradient))
        super().__init__(module, given, gradient, given.shape[-1] * gradient.shape[-1])

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Sum over positions of outer products."""
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

    module: nn.Conv2d | nn.ConvTranspose2d

    def __init__(self, module: nn.Module, given: Tensor, gradient: Tensor) -> None:
        assert isinstance(module, _CONVOLUTIONS)  # noqa: S101  # rule_of chose this class; narrows the type
        super().__init__(module, given, gradient, module.weight.numel())
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
            if any(before != after for before, after in cut):
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

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """`<dL/dW, R> = <narrow, convolution of wide by R>`."""
        if name == "bias":
            return super().inner_products(name, reference)
        weight, groups = reference.to(self._wide), self.module.groups
        return (
            (torch.convolution(self._wide, weight, None, *self._options, groups) * self._narrow).flatten(1).sum(dim=1)
        )

    def _patches(self, images: slice = _ALL) -> Tensor:
        """Part of the wide side that belongs to each position of the narrow one, `(N, P, T)`."""
        stride, padding, dilation, *_ = self._options
        if self._pointwise:
            return self._wide[(images, _ALL, *(slice(None, None, step) for step in stride))].flatten(2)
        return F.unfold(self._wide[images], self.module.kernel_size, dilation, padding, stride)


class NormRule(LayerRule):
    """Batch norm in eval mode, instance, group and layer norm: `y = weight * normalised + bias`."""

    module: Any

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Sum over positions."""
        return self._gradients[name][images]

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
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
            normalised = F.layer_norm(given, module.normalized_shape, None, None, module.eps)
            shape = (count, -1, *module.normalized_shape)
            weight, bias = ((each.reshape(shape)).sum(dim=1) for each in (gradient * normalised, gradient))
            return {"weight": weight, "bias": bias}
        if isinstance(module, nn.GroupNorm):
            normalised = F.group_norm(given, module.num_groups, None, None, module.eps)
        else:
            normalised = F.instance_norm(given, mean, var, None, None, mean is None, 0.0, module.eps)
        gradient = gradient.flatten(2)
        # A batch of inner products over positions, without a third tensor of the size of the feature map.
        return {"weight": torch.einsum("nct,nct->nc", gradient, normalised.flatten(2)), "bias": gradient.sum(dim=2)}


class AttentionRule(Rule):
    """A call of `nn.MultiheadAttention` that it `knows`, taken apart into its projections, which are linear layers."""

    _NAMES = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")

    def __init__(self, call: Call, gradient: Tensor) -> None:
        module, arguments = cast("nn.MultiheadAttention", call.module), self._arguments(call)
        *given, gradient = (
            each if module.batch_first else each.transpose(0, 1)
            for each in (*(precise(arguments[name].detach()) for name in self._NAMES[:3]), gradient)
        )
        together: Tensor | None = module.in_proj_bias
        bias = (None,) * 3 if together is None else together.detach().to(gradient).chunk(3)
        projections = zip(given, module.in_proj_weight.detach().to(gradient).chunk(3), bias, strict=True)
        projected = [F.linear(*each).requires_grad_(True) for each in projections]
        with torch.enable_grad():
            q, k, v = [each.reshape(*each.shape[:2], module.num_heads, -1).transpose(1, 2) for each in projected]
            context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        gradients = torch.autograd.grad(context, projected, gradient @ module.out_proj.weight.detach().to(gradient))
        self._in = [LinearRule(module, *each) for each in zip(given, gradients, strict=True)]
        self._out = [LinearRule(module.out_proj, context.detach(), gradient)]

    @classmethod
    def knows(cls, call: Call) -> bool:
        """Whether this is plain attention: no masks, keys as wide as queries, and none that are learnt."""
        module, arguments = call.module, cls._arguments(call)
        return (
            isinstance(module, nn.MultiheadAttention)
            and type(module).forward is nn.MultiheadAttention.forward
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
            and arguments.get("attn_mask") is None
            and arguments.get("key_padding_mask") is None
        )

    def gradients(self, name: str, images: slice = _ALL) -> Tensor:
        """Rows of each projection, one below the other."""
        return torch.cat([rule.gradients(kind, images) for rule, kind in self._rules(name)], dim=1)

    def squared_norms(self, name: str) -> Tensor:
        """Sum over the projections."""
        return torch.stack([rule.squared_norms(kind) for rule, kind in self._rules(name)]).sum(dim=0)

    def _rules(self, name: str) -> list[tuple[LinearRule, str]]:
        rules = self._out if name.startswith("out_proj") else self._in
        return [(rule, "bias" if name.endswith("bias") else "weight") for rule in rules]

    @classmethod
    def _arguments(cls, call: Call) -> dict[str, Any]:
        return dict(zip(cls._NAMES, call.arguments[0], strict=False)) | dict(call.arguments[1])


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RULES: dict[type[nn.Module], type[LayerRule]] = {
    nn.Linear: LinearRule,
    **dict.fromkeys(_CONVOLUTIONS, ConvolutionRule),
    **dict.fromkeys((*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm), NormRule),
}


def rule_of(module: nn.Module) -> type[LayerRule] | None:
    """The rule of a layer; None for any other, also for a subclass with a `forward` of its own."""
    known = next((kind for kind in _RULES if isinstance(module, kind)), nn.Module)
    methods = ("forward", "_conv_forward")
    plain = all(getattr(type(module), name, None) is getattr(known, name, None) for name in methods)
    return _RULES.get(known) if plain else None


def _rows(gradients: Tensor) -> Tensor:
    """`(N, *shape)` as `(N, entries)`; a parameter without dimensions has one entry."""
    return gradients.flatten(1) if gradients.ndim > 1 else gradients[:, None]


def _gram_norms(given: Tensor, gradient: Tensor) -> Tensor:
    """`||sum_t g_t a_t^T||^2 = sum_st (a_s . a_t)(g_s . g_t)` for `(N, T, P)` and `(N, T, O)`."""
    if given.shape[1] == 1:
        return given.square().sum(dim=(1, 2)) * gradient.square().sum(dim=(1, 2))
    return ((given @ given.transpose(1, 2)) * (gradient @ gradient.transpose(1, 2))).sum(dim=(1, 2))
