"""Gradients of many scores of one forward pass: products of vectors with the Jacobian of the outputs."""

import warnings
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

# Numbers of a gradient held at once, on the CPU (measured: more falls out of its cache) and on other devices.
_BLOCK, _BLOCK_ELSEWHERE = 2**20, 2**24


def block_size(inputs: Collection[Tensor]) -> int:
    """Number of vectors that go at once in bounded memory, at least one."""
    largest = max(inputs, key=Tensor.numel)
    return max(1, (_BLOCK if largest.is_cpu else _BLOCK_ELSEWHERE) // max(1, largest.numel()))


def jacobian_products(
    outputs: Tensor, vectors: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    """Gradients with respect to `inputs`, for each of the vectors `(N, K)` that come from outputs `(N, K)`.

    One backward pass for all vectors where autograd can batch it (`vmap`), else one each. None for an input that the
    outputs do not depend on. The graph is kept.
    """

    def gradients(vector: Tensor, *, batched: bool = False) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, [*inputs], vector, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    if not outputs.requires_grad:
        return [(None,) * len(inputs)] * len(vectors)
    if len(vectors) > 1:
        try:
            with warnings.catch_warnings():
                # Operations without a rule for batches go one by one inside, and say so.
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found = gradients(torch.stack([*vectors]), batched=True)
        except RuntimeError:  # functions of a user's own, hooks that look at values; one by one takes less memory, too
            pass
        else:
            return [tuple(None if each is None else each[row] for each in found) for row in range(len(vectors))]
    return [gradients(each) for each in vectors]
