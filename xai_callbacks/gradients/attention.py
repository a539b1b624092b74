"""Per-sample parameter gradients of multi-head attention."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_callbacks.gradients.calls import Call, precise
from xai_callbacks.gradients.rules import LinearRule, Rule

__all__ = ["AttentionRule"]

_NAMES = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


class AttentionRule(Rule):
    """`nn.MultiheadAttention`, taken apart into its projections, each of which is a linear layer.

    Args:
        call: A call that `knows` of.
        gradient: Gradient of the sum of the losses with respect to what came out.
    """

    def __init__(self, call: Call, gradient: Tensor) -> None:
        module = cast("nn.MultiheadAttention", call.module)
        given = [_batch_first(precise(_arguments(call)[name].detach()), module) for name in _NAMES[:3]]
        together: Tensor | None = module.in_proj_bias
        bias = (None,) * 3 if together is None else together.detach().to(given[0]).chunk(3)
        projections = zip(given, module.in_proj_weight.detach().to(given[0]).chunk(3), bias, strict=True)
        projected = [F.linear(*each).requires_grad_(True) for each in projections]
        with torch.enable_grad():
            q, k, v = [each.reshape(*each.shape[:2], module.num_heads, -1).transpose(1, 2) for each in projected]
            context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        gradient = _batch_first(gradient, module)
        gradients = torch.autograd.grad(context, projected, gradient @ module.out_proj.weight.detach().to(gradient))
        self._in = [LinearRule(module, *each) for each in zip(given, gradients, strict=True)]
        self._out = [LinearRule(module.out_proj, context.detach(), gradient)]

    @staticmethod
    def knows(call: Call) -> bool:
        """Whether this is plain attention: no masks, keys as wide as queries, and none that are learnt."""
        module, arguments = call.module, _arguments(call)
        return (
            isinstance(module, nn.MultiheadAttention)
            and type(module).forward is nn.MultiheadAttention.forward
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
            and arguments.get("attn_mask") is None
            and arguments.get("key_padding_mask") is None
        )

    def gradients(self, name: str, images: slice = slice(None)) -> Tensor:
        """Rows of each projection, one below the other."""
        return torch.cat([rule.gradients(_kind(name), images) for rule in self._rules(name)], dim=1)

    def squared_norms(self, name: str) -> Tensor:
        """Sum over the projections."""
        return torch.stack([rule.squared_norms(_kind(name)) for rule in self._rules(name)]).sum(dim=0)

    def inner_products(self, name: str, reference: Tensor) -> Tensor:
        """Sum over the projections, each with its own rows."""
        rules = self._rules(name)
        rows = zip(rules, reference.chunk(len(rules)), strict=True)
        return torch.stack([rule.inner_products(_kind(name), each) for rule, each in rows]).sum(dim=0)

    def _rules(self, name: str) -> list[LinearRule]:
        return self._out if name.startswith("out_proj") else self._in


def _arguments(call: Call) -> dict[str, Any]:
    return dict(zip(_NAMES, call.arguments[0], strict=False)) | dict(call.arguments[1])


def _kind(name: str) -> str:
    return "bias" if name.endswith("bias") else "weight"


def _batch_first(tensor: Tensor, module: nn.MultiheadAttention) -> Tensor:
    return tensor if module.batch_first else tensor.transpose(0, 1)
