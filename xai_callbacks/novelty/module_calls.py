"""Per-sample parameter gradients of modules that are more than one layer: attention, and whatever else there is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten  # private; torch.func itself speaks in these trees

from xai_callbacks.novelty.layer_calls import LayerCall, LinearCall

__all__ = ["AttentionCall", "FunctionalCall", "ModuleCall"]


class ModuleCall:
    """One call of one module.

    Args:
        module: The module.
        given: Positional and keyword arguments of the call.
        axes: For every tensor among them in order, the axis of the images; None for one that all images share.
        gradients: For every tensor that came out, the gradient of the sum of the losses, or None.
        output_axes: Axis of the images of each of these.
    """

    def __init__(
        self,
        module: nn.Module,
        given: tuple[tuple[Any, ...], Mapping[str, Any]],
        axes: tuple[int | None, ...],
        gradients: tuple[Tensor | None, ...],
        output_axes: tuple[int | None, ...],
    ) -> None:
        self.module = module
        self.given = given
        self.axes = axes
        self.output_gradients = gradients
        self.output_axes = output_axes


class FunctionalCall(ModuleCall):
    """Any module, run again under `torch.func`: right for whatever treats images one by one, but slow."""

    def gradients(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Gradients of parameters, named from the module, for every image: `(N, *parameter.shape)` each."""
        parameters = {name: self.module.get_parameter(name).detach() for name in names}
        leaves, tree = tree_flatten(self.given)
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[index].detach() for index in places]
        wanted = [index for index, gradient in enumerate(self.output_gradients) if gradient is not None]
        arrived = [gradient for gradient in self.output_gradients if gradient is not None]
        arrived_axes = [self.output_axes[index] for index in wanted]

        def one(tensors: list[Tensor], arrived: list[Tensor]) -> dict[str, Tensor]:
            batch = [_batch_of_one(tensor, axis) for tensor, axis in zip(tensors, self.axes, strict=True)]
            filled = list(leaves)
            for index, tensor in zip(places, batch, strict=True):
                filled[index] = tensor
            args, kwargs = tree_unflatten(filled, tree)

            def run(parameters: dict[str, Tensor]) -> list[Tensor]:
                result = torch.func.functional_call(self.module, parameters, args, dict(kwargs))
                came_out = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
                return [came_out[index] for index in wanted]

            pull_back = torch.func.vjp(run, parameters)[1]
            ones = [_batch_of_one(tensor, axis) for tensor, axis in zip(arrived, arrived_axes, strict=True)]
            gradients: dict[str, Tensor] = pull_back(ones)[0]
            return gradients

        # Other parameters of the module would draw a graph of their own behind what comes out; `vjp` needs none.
        with torch.no_grad():
            return _for_each_image(one, (tensors, list(self.axes)), (arrived, arrived_axes))


def _for_each_image(
    one: Callable[[list[Tensor], list[Tensor]], dict[str, Tensor]],
    given: tuple[list[Tensor], list[int | None]],
    arrived: tuple[list[Tensor], list[int | None]],
) -> dict[str, Tensor]:
    (tensors, axes), (gradients, gradient_axes) = given, arrived
    try:
        with warnings.catch_warnings():
            # Operations without a batching rule run one image after another, which is what is wanted here.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            return torch.func.vmap(one, in_dims=(axes, gradient_axes))(tensors, gradients)
    except RuntimeError:
        # What depends on values, or has no batching rule, still runs image by image.
        pairs = list(zip(gradients, gradient_axes, strict=True))
        count = next(tensor.shape[axis] for tensor, axis in pairs if axis is not None)
        singles = [
            one(_of_image(tensors, axes, image), _of_image(gradients, gradient_axes, image)) for image in range(count)
        ]
        return {name: torch.stack([single[name] for single in singles]) for name in singles[0]}


def _of_image(tensors: list[Tensor], axes: list[int | None], image: int) -> list[Tensor]:
    return [tensor if axis is None else tensor.select(axis, image) for tensor, axis in zip(tensors, axes, strict=True)]


def _batch_of_one(tensor: Tensor, axis: int | None) -> Tensor:
    return tensor if axis is None else tensor.unsqueeze(axis)


class AttentionCall(ModuleCall):
    """`nn.MultiheadAttention`, taken apart into its projections, each of which is a linear layer."""

    module: nn.MultiheadAttention

    def __init__(
        self,
        module: nn.MultiheadAttention,
        given: tuple[tuple[Any, ...], Mapping[str, Any]],
        axes: tuple[int | None, ...],
        gradients: tuple[Tensor | None, ...],
        output_axes: tuple[int | None, ...],
    ) -> None:
        super().__init__(module, given, axes, gradients, output_axes)
        self._linear = self._take_apart()

    def layers(self, name: str) -> list[tuple[LayerCall, str, slice]]:
        """The linear layers that use a parameter: each with its own name for it and its rows of the parameter."""
        width = self.module.embed_dim
        kind = "bias" if name.endswith("bias") else "weight"
        if name.startswith("out_proj"):
            return [(self._linear["out"], kind, slice(None))]
        if name.startswith("in_proj"):
            rows = (slice(start, start + width) for start in (0, width, 2 * width))
            return [(self._linear[part], kind, place) for part, place in zip("qkv", rows, strict=True)]
        return [(self._linear[name[0]], kind, slice(None))]

    def gradients(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """As `FunctionalCall.gradients`."""
        return {name: torch.cat([call.gradients(own) for call, own, _ in self.layers(name)], dim=1) for name in names}

    @staticmethod
    def knows(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
        """Whether the module is plain multi-head attention, without learnt keys and values beside its inputs."""
        return (
            isinstance(module, nn.MultiheadAttention)
            and type(module).forward is nn.MultiheadAttention.forward
            and module.bias_k is None
            and module.bias_v is None
            and not module.add_zero_attn
        )

    def _take_apart(self) -> dict[str, LayerCall]:
        module = self.module
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")
        call = dict(zip(names, self.given[0], strict=False)) | dict(self.given[1])
        query, key, value = (_batch_first(call[name].detach(), module) for name in names[:3])
        projected = [
            F.linear(tensor, *weights).detach().requires_grad_(True)
            for tensor, weights in zip((query, key, value), _projections(module), strict=True)
        ]
        mask = _mask(call.get("attn_mask"), call.get("key_padding_mask"), query, module.num_heads)
        q, k, v = (_heads(tensor, module.num_heads) for tensor in projected)
        context = F.scaled_dot_product_attention(q, k, v, mask)
        context = context.transpose(1, 2).flatten(2)
        arrived = self.output_gradients[0]
        assert arrived is not None  # noqa: S101  # no gradient, no call
        arrived = _batch_first(arrived, module)
        into_context = arrived @ module.out_proj.weight.detach()
        gradients = torch.autograd.grad(context, projected, into_context)
        inputs = zip("qkv", (query, key, value), gradients, strict=True)
        linear: dict[str, LayerCall] = {name: LinearCall(module, tensor, grad) for name, tensor, grad in inputs}
        linear["out"] = LinearCall(module.out_proj, context.detach(), arrived)
        return linear


def _batch_first(tensor: Tensor, module: nn.MultiheadAttention) -> Tensor:
    return tensor if module.batch_first else tensor.transpose(0, 1)


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """`(N, T, E)` as `(N, heads, T, E / heads)`."""
    images, tokens, _ = tensor.shape
    return tensor.reshape(images, tokens, heads, -1).transpose(1, 2)


def _projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias for query, key and value."""
    together: Tensor | None = module.in_proj_bias
    bias: Any = (None,) * 3 if together is None else together.detach().chunk(3)
    if module._qkv_same_embed_dim:
        weights: Any = module.in_proj_weight.detach().chunk(3)
    else:
        weights = [getattr(module, f"{name}_proj_weight").detach() for name in "qkv"]
    return list(zip(weights, bias, strict=True))


def _mask(attention: Tensor | None, padding: Tensor | None, query: Tensor, heads: int) -> Tensor | None:
    """Both masks as one that is added to the scores, broadcastable to `(N, heads, T, S)`."""
    total = None
    for mask in (attention, padding):
        if mask is None:
            continue
        added = mask
        if mask.dtype == torch.bool:
            added = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -torch.inf)
        if mask is padding:
            added = added[:, None, None, :]
        elif added.dim() == 3:
            added = added.reshape(-1, heads, *added.shape[1:])
        total = added if total is None else total + added
    return total
