"""Tensors that are afterwards as they were before, bit by bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["checksums", "keep_tensor"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def keep_tensor(value: Tensor) -> Callable[[], None]:
    """Remember a tensor; the function that is returned puts it back.

    Kept are its memory and shape, the gradient as an object, `requires_grad`, that it is a leaf, and the values, which
    are copied. Those of parameters are not, see `checksums`.
    """
    # Subclasses may refuse even this, such as parameters without a shape.
    with torch._C.DisableTorchFunctionSubclass():
        held = value.detach()  # the same memory, looked at in the same way
        copied = not (isinstance(value, nn.Parameter) or held.is_meta)
        content = _dense(held).clone() if copied else None
        leaf, trained, gradient = value.is_leaf, value.requires_grad, value.grad if value.is_leaf else None

    def restore() -> None:
        with torch._C.DisableTorchFunctionSubclass():
            if leaf and not value.is_leaf:
                value.detach_()
            if _layout(value) != _layout(held):
                value.data = held
            if content is not None:
                _write(_dense(value), content)
            if leaf and value.grad is not gradient:
                value.grad = gradient
            if leaf and value.requires_grad != trained:
                value.requires_grad_(trained)

    return restore


def _layout(tensor: Tensor) -> object:
    if tensor.layout != torch.strided or tensor.is_meta:
        return tensor.shape
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _dense(tensor: Tensor) -> Tensor:
    """Without the dimensions along which `expand` repeats: they take no memory and cannot be written."""
    if tensor.layout == torch.strided and 0 in tensor.stride():
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _write(tensor: Tensor, content: Tensor) -> None:
    if not _same(tensor, content):
        with torch.inference_mode(tensor.is_inference()):
            tensor.copy_(content)


def _same(tensor: Tensor, content: Tensor) -> bool:
    """Bitwise, so that a NaN equals itself and a negative zero is none."""
    try:
        return torch.equal(_bits(tensor), _bits(content))
    except (KeyError, NotImplementedError, RuntimeError):  # sparse, quantised, nested
        return False


def _bits(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().view(_INTEGERS[tensor.element_size()])


def checksums(tensors: Sequence[Tensor]) -> list[float]:
    """The sum of each tensor, as it comes out on its device; no sum for what has no values or many owners.

    Cost: one look at all values, and one synchronisation a device.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    sums = [_sum(tensor) for tensor in tensors]
    for index, each in enumerate(sums):
        groups[each.device, each.dtype].append(index)
    found = [0.0] * len(sums)
    for indices in groups.values():
        for index, value in zip(indices, torch.stack([sums[each] for each in indices]).tolist(), strict=True):
            found[index] = value
    return found


def _sum(tensor: Tensor) -> Tensor:
    if type(tensor) is not Tensor or tensor.is_meta:
        return torch.zeros(())
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return tensor.view(torch.uint8).sum()
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.sum(dtype=torch.float32 if half else None)
