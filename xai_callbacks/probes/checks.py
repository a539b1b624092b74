"""From what a user gives to what a probe set holds: images, pixels, names and masks; faults name the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError

__all__ = [
    "as_tensor",
    "own",
    "probe_ref",
    "refuse",
    "to_images",
    "to_masks",
    "to_names",
    "to_pixels",
    "to_texts",
]

FLOAT_ADVICE = (
    "The model expects floats: apply the transform it was trained with, "
    "e.g. `images.float() / 255` and then the same Normalize."
)


def probe_ref(index: int, names: Sequence[str]) -> str:
    """Say which probe is meant, by index and name."""
    return f"probe {index} ({names[index]!r})"


def to_names(names: Any, images: Any) -> tuple[str, ...]:
    """Check the names against the number of images, or make `probe_000`, `probe_001`, ..."""
    count = _count(images)
    if names is None:
        width = max(3, len(str(count - 1)))
        return tuple(f"probe_{index:0{width}d}" for index in range(count))
    given = to_texts(names, "names") or ()
    if len(given) != count:
        raise ProbeSetError(f"Expected `names` to hold one name for each of {count} probes, but got {len(given)}.")
    first: dict[str, int] = {}
    for index, name in enumerate(given):
        if name in first:
            raise ProbeSetError(
                f"Expected `names` to be unique, but probes {first[name]} and {index} are both named {name!r}. "
                "Rename one of them."
            )
        first[name] = index
    return given


def to_texts(texts: Any, what: str) -> tuple[str, ...] | None:
    """Check a sequence of non-empty printable strings."""
    if texts is None:
        return None
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or len(texts) == 0:
        raise ProbeSetError(
            f"Expected `{what}` to be a non-empty sequence of strings, but got {type(texts).__name__} {texts!r}."
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise ProbeSetError(
                f"Expected `{what}` to be non-empty printable strings, but `{what}[{index}]` is {text!r}. "
                "Give it a readable one-line name."
            )
    return tuple(texts)


def to_images(images: Any, names: tuple[str, ...]) -> Tensor:
    """Return an own float32 copy `(N, C, H, W)` of the images, all finite."""
    fresh = None if isinstance(images, Tensor) else _stacked(images, names)
    images = as_tensor(images, "images") if fresh is None else fresh
    if images.ndim != 4 or 0 in images.shape:
        raise ProbeSetError(
            f"Expected `images` to be (N, C, H, W) with no empty axis, but got {tuple(images.shape)}. "
            "Add the missing axis with `unsqueeze`, e.g. (N, 1, H, W) for grey images."
        )
    if not images.is_floating_point():
        raise ProbeSetError(f"Expected `images` to be floats, but got {images.dtype}. {FLOAT_ADVICE}")
    converted = own(images, torch.float32) if fresh is None else fresh
    finite = torch.isfinite(converted).flatten(1).all(dim=1)
    refuse(~finite, names, "Expected `images` to be finite, but {probe} has NaN or infinite pixels. Mend or drop it.")
    return converted


def to_pixels(pixels: Any, names: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    """Return an own uint8 copy `(N, H, W, 3)` of the display pixels."""
    tensor = as_tensor(pixels, "pixels")
    expected = (len(names), *size, 3)
    if tensor.dtype != torch.uint8 or tuple(tensor.shape) != expected:
        raise ProbeSetError(
            f"Expected `pixels` to be uint8 {expected}, that is (N, H, W, 3), but got {tensor.dtype} "
            f"{tuple(tensor.shape)}. Leave `pixels` out to derive them from the images."
        )
    return own(tensor, torch.uint8)


def to_masks(masks: Any, names: tuple[str, ...], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return region masks `(N, H, W)` bool by region name; a probe without the region has an all-False row."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        raise ProbeSetError(
            f"Expected `masks` to map region names to masks, but got {type(masks).__name__}. "
            "Write e.g. masks={'core': tensor}."
        )
    to_texts(tuple(masks) or None, "masks")
    result = {}
    for region, given in masks.items():
        rows = list(given) if isinstance(given, (Tensor, np.ndarray)) and given.ndim else given
        if isinstance(rows, str) or not isinstance(rows, Sequence) or len(rows) != len(names):
            got = len(rows) if isinstance(rows, Sequence) else type(given).__name__
            raise ProbeSetError(
                f"Expected mask {region!r} to have one row for each of {len(names)} probes, but got {got}. "
                "Use an all-False row (or None in a list) for a probe without the region."
            )
        result[region] = torch.stack([_mask_row(row, region, i, names, size) for i, row in enumerate(rows)])
    return result


def as_tensor(values: Any, what: str) -> Tensor:
    """Return a dense tensor of values: the same memory where that is possible.

    Raises:
        ProbeSetError: They are none.
    """
    try:
        tensor = torch.as_tensor(values)
        dense = not tensor.is_nested and not tensor.is_meta and tensor.layout == torch.strided
    except Exception as error:  # whatever a foreign object raises
        raise ProbeSetError(
            f"Expected `{what}` to be a tensor, an array or numbers, but got {type(values).__name__}: {error}."
        ) from error
    if not dense:
        raise ProbeSetError(f"Expected `{what}` to be a dense tensor with values, but got {type(values).__name__}.")
    return tensor


def own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a plain, detached, contiguous CPU copy that shares no memory with `tensor`."""
    plain = tensor.detach().as_subclass(Tensor)
    return plain.to("cpu", dtype, copy=True).contiguous()


def refuse(bad: Tensor, names: tuple[str, ...], message: str, values: Tensor | None = None) -> None:
    """Raise if any probe is bad; `{probe}` in the message is the first of them, `{value}` its value.

    Raises:
        ProbeSetError: One is.
    """
    faulty = bad.nonzero().flatten().tolist()
    if not faulty:
        return
    first = faulty[0]
    value = values[first].tolist() if values is not None else None
    others = f" ({len(faulty) - 1} more like it.)" if len(faulty) > 1 else ""
    raise ProbeSetError(message.replace("{probe}", probe_ref(first, names)).replace("{value}", str(value)) + others)


def _count(images: Any) -> int:
    if not isinstance(images, (Tensor, Sequence)) or isinstance(images, (str, bytes)):
        raise ProbeSetError(
            f"Expected `images` to be a tensor (N, C, H, W) or a sequence of tensors (C, H, W), "
            f"but got {type(images).__name__}. Turn arrays into tensors with `torch.from_numpy`. {FLOAT_ADVICE}"
        )
    if isinstance(images, Tensor) and images.ndim == 0:
        raise ProbeSetError("Expected `images` to be (N, C, H, W), but got a single number.")
    count = images.size(0) if isinstance(images, Tensor) else len(images)
    if count == 0:
        raise ProbeSetError(
            "Expected `images` to hold at least one probe, but got none. An audit needs something to see."
        )
    return count


def _stacked(images: Sequence[Any], names: tuple[str, ...]) -> Tensor:
    for index, image in enumerate(images):
        ref = probe_ref(index, names)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ProbeSetError(f"Expected `images` to be float tensors, but {ref} is {got}. {FLOAT_ADVICE}")
        as_tensor(image, f"images[{index}]")
        if image.ndim != 3:
            raise ProbeSetError(f"Expected each image to be (C, H, W), but {ref} is {tuple(image.shape)}.")
        if image.shape != images[0].shape:
            raise ProbeSetError(
                f"Expected all images to be alike, {tuple(images[0].shape)} as {probe_ref(0, names)}, "
                f"but {ref} is {tuple(image.shape)}. Use a transform that resizes and crops all images to one size."
            )
    return torch.stack([image.detach().as_subclass(Tensor).to("cpu", torch.float32) for image in images])


def _mask_row(row: Any, region: str, index: int, names: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    if row is None:
        return torch.zeros(size, dtype=torch.bool)
    ref = f"mask {region!r} of {probe_ref(index, names)}"
    try:
        mask = as_tensor(row, region).detach().as_subclass(Tensor).cpu()
    except ProbeSetError as error:
        raise ProbeSetError(f"Expected {ref} to be a tensor {size}, but got {type(row).__name__}.") from error
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if tuple(mask.shape) != size:
        raise ProbeSetError(
            f"Expected {ref} to be {size}, as its image, but got {tuple(mask.shape)}. "
            "Apply to masks the geometry that the images went through."
        )
    if not bool(((mask == 0) | (mask == 1)).all()) and (mask.is_floating_point() or mask.is_complex()):
        raise ProbeSetError(
            f"Expected {ref} to be bool, or numbers 0 and 1, but it holds other values. "
            "Threshold it, e.g. `mask > 0.5`."
        )
    return mask != 0
