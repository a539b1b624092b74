"""From what a user gives to what a probe set holds; every fault names the probe it is in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError

__all__ = [
    "probe_ref",
    "to_groups",
    "to_images",
    "to_labels",
    "to_masks",
    "to_names",
    "to_normalisation",
    "to_pixels",
    "to_targets",
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
    given = to_texts(names, "names")
    if given is None or len(given) != count:
        raise ProbeSetError(
            f"Expected `names` to hold one name for each of {count} probes, but got {len(given or ())}."
        )
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
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ProbeSetError(f"Expected `{what}` to be a sequence of strings, but got {type(texts).__name__} {texts!r}.")
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
    images = images if fresh is None else fresh
    if images.ndim != 4 or 0 in images.shape:
        raise ProbeSetError(
            f"Expected `images` to be (N, C, H, W) with no empty axis, but got {tuple(images.shape)}. "
            "Add the missing axis with `unsqueeze`, e.g. (N, 1, H, W) for grey images."
        )
    if not images.is_floating_point():
        raise ProbeSetError(f"Expected `images` to be floats, but got {images.dtype}. {FLOAT_ADVICE}")
    converted = own(images, torch.float32) if fresh is None else fresh
    finite = torch.isfinite(converted).flatten(1).all(dim=1)
    _refuse(~finite, names, "Expected `images` to be finite, but {probe} has NaN or infinite pixels. Mend or drop it.")
    return converted


def to_pixels(pixels: Tensor, names: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    """Return an own uint8 copy `(N, H, W, 3)` of the display pixels."""
    tensor = torch.as_tensor(pixels)
    expected = (len(names), *size, 3)
    if tensor.dtype != torch.uint8 or tuple(tensor.shape) != expected:
        raise ProbeSetError(
            f"Expected `pixels` to be uint8 {expected}, that is (N, H, W, 3), but got {tensor.dtype} "
            f"{tuple(tensor.shape)}. Leave `pixels` out to derive them from the images."
        )
    return own(tensor, torch.uint8)


def to_labels(labels: Any, names: tuple[str, ...], class_names: tuple[str, ...] | None) -> Tensor | None:
    """Return class indexes `(N,)` int64, each in the range of `class_names` where these are known."""
    if labels is None:
        return None
    vector = _vector(labels, "labels", names)
    if vector.is_floating_point():
        raise ProbeSetError(
            f"Expected `labels` to be whole numbers (class indexes), but got {vector.dtype}. "
            "For regression pass the values as `targets=`."
        )
    result = own(vector, torch.int64)
    _refuse(result < 0, names, "Expected `labels` to be 0 or more, but {probe} has label {value}.", result)
    if class_names is not None:
        _refuse(
            result >= len(class_names),
            names,
            f"Expected `labels` to be below {len(class_names)}, the number of `class_names`, but "
            "{probe} has label {value}. Pass `class_names=` for all classes of the model, in index order.",
            result,
        )
    return result


def to_targets(targets: Any, names: tuple[str, ...]) -> Tensor | None:
    """Return regression targets `(N,)` float32, all finite."""
    if targets is None:
        return None
    result = own(_vector(targets, "targets", names), torch.float32)
    _refuse(
        ~torch.isfinite(result),
        names,
        "Expected `targets` to be finite, but {probe} has target {value}. Mend or drop it.",
        result,
    )
    return result


def to_groups(groups: Any, names: tuple[str, ...], group_names: tuple[str, ...] | None) -> Tensor | None:
    """Return group indexes `(N,)` int64; -1 is unknown."""
    if groups is None:
        return None
    vector = _vector(groups, "groups", names)
    if vector.is_floating_point():
        raise ProbeSetError(f"Expected `groups` to be whole numbers (-1 = unknown), but got {vector.dtype}.")
    result = own(vector, torch.int64)
    _refuse(result < -1, names, "Expected `groups` to be -1 (unknown) or more, but {probe} has group {value}.", result)
    if group_names is not None:
        _refuse(
            result >= len(group_names),
            names,
            f"Expected `groups` to be below {len(group_names)}, the number of `group_names`, but "
            "{probe} has group {value}.",
            result,
        )
    return result


def to_masks(masks: Any, names: tuple[str, ...], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return region masks `(N, H, W)` bool by region name; a probe without the region has an all-False row."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        raise ProbeSetError(
            f"Expected `masks` to map region names to masks, but got {type(masks).__name__}. "
            "Write e.g. masks={'core': tensor}."
        )
    to_texts(tuple(masks), "masks")
    result = {}
    for region, given in masks.items():
        rows = list(given) if isinstance(given, Sequence) or np.ndim(given) else []
        if len(rows) != len(names):
            raise ProbeSetError(
                f"Expected mask {region!r} to have one row for each of {len(names)} probes, but got {len(rows)}. "
                "Use an all-False row (or None in a list) for a probe without the region."
            )
        result[region] = torch.stack([_mask_row(row, region, i, names, size) for i, row in enumerate(rows)])
    return result


def to_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return `mean` and `std` with one value a channel; one value alone stands for all channels."""
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ProbeSetError("Expected `mean` and `std` to be given together, but got only one of them.")
    means, stds = _per_channel(mean, "mean", channels), _per_channel(std, "std", channels)
    if min(stds) <= 0:
        raise ProbeSetError(f"Expected `std` to be above 0 in every channel, but got {stds}.")
    return means, stds


def own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a plain, detached, contiguous CPU copy that shares no memory with `tensor`."""
    plain = tensor.detach().as_subclass(Tensor)
    return plain.to("cpu", dtype, copy=True).contiguous()


def _count(images: Any) -> int:
    if not isinstance(images, (Tensor, Sequence)) or isinstance(images, str):
        raise ProbeSetError(
            f"Expected `images` to be a tensor (N, C, H, W) or a sequence of tensors (C, H, W), "
            f"but got {type(images).__name__}. Turn arrays into tensors with `torch.from_numpy`. {FLOAT_ADVICE}"
        )
    if isinstance(images, Tensor) and images.ndim == 0:
        raise ProbeSetError("Expected `images` to be (N, C, H, W), but got a single number.")
    if len(images) == 0:
        raise ProbeSetError(
            "Expected `images` to hold at least one probe, but got none. An audit needs something to see."
        )
    return len(images)


def _stacked(images: Sequence[Any], names: tuple[str, ...]) -> Tensor:
    for index, image in enumerate(images):
        ref = probe_ref(index, names)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ProbeSetError(f"Expected `images` to be float tensors, but {ref} is {got}. {FLOAT_ADVICE}")
        if image.ndim != 3:
            raise ProbeSetError(f"Expected each image to be (C, H, W), but {ref} is {tuple(image.shape)}.")
        if image.shape != images[0].shape:
            raise ProbeSetError(
                f"Expected all images to be alike, {tuple(images[0].shape)} as {probe_ref(0, names)}, "
                f"but {ref} is {tuple(image.shape)}. Use a transform that resizes and crops all images to one size."
            )
    return torch.stack([image.detach().as_subclass(Tensor).to("cpu", torch.float32) for image in images])


def _vector(values: Any, what: str, names: tuple[str, ...]) -> Tensor:
    if isinstance(values, (list, tuple)):
        for index, value in enumerate(values[: len(names)]):
            _check_number(value, what, probe_ref(index, names))
    try:
        vector = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ProbeSetError(
            f"Expected `{what}` to be (N,) numbers, but got {type(values).__name__}: {error}"
        ) from error
    if vector.ndim == 2 and vector.shape[1] > 1 and what == "labels":
        raise ProbeSetError(
            f"Expected `labels` to be class indexes (N,), but got {tuple(vector.shape)}, which looks like one-hot or "
            "probability vectors. Pass `labels.argmax(dim=1)`."
        )
    if tuple(vector.shape) != (len(names),) or vector.is_complex():
        raise ProbeSetError(
            f"Expected `{what}` to be ({len(names)},), one number a probe, but got {tuple(vector.shape)} "
            f"{vector.dtype}. Give one for each probe, in the order of the images."
        )
    return vector


def _check_number(value: Any, what: str, ref: str) -> None:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ProbeSetError(
            f"Expected `{what}` to be one number a probe, but {ref} has {value!r}."
            + (" Pass class indexes, not vectors (use `argmax`) or names." if what == "labels" else "")
        ) from error
    if isinstance(value, str):
        raise ProbeSetError(f"Expected `{what}` to be numbers, but {ref} has the text {value!r}.")


def _mask_row(row: Any, region: str, index: int, names: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    if row is None:
        return torch.zeros(size, dtype=torch.bool)
    ref = f"mask {region!r} of {probe_ref(index, names)}"
    try:
        mask = torch.as_tensor(row).detach().as_subclass(Tensor).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeSetError(f"Expected {ref} to be a tensor {size}, but got {type(row).__name__}: {error}") from error
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if tuple(mask.shape) != size:
        raise ProbeSetError(
            f"Expected {ref} to be {size}, as its image, but got {tuple(mask.shape)}. "
            "Apply to masks the geometry that the images went through."
        )
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ProbeSetError(
            f"Expected {ref} to be bool, or numbers 0 and 1, but it holds other values. "
            "Threshold it, e.g. `mask > 0.5`."
        )
    return mask != 0


def _per_channel(values: Sequence[float], what: str, channels: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ProbeSetError(f"Expected `{what}` to be a sequence of numbers, but got {values!r}.") from error
    if len(numbers) == 1:
        numbers = numbers * channels
    if len(numbers) != channels or not all(math.isfinite(number) for number in numbers):
        raise ProbeSetError(f"Expected `{what}` to be {channels} finite numbers, one a channel, but got {values!r}.")
    return numbers


def _refuse(bad: Tensor, names: tuple[str, ...], message: str, values: Tensor | None = None) -> None:
    faulty = bad.nonzero().flatten().tolist()
    if not faulty:
        return
    first = faulty[0]
    value = values[first].item() if values is not None else None
    others = f" ({len(faulty) - 1} more like it.)" if len(faulty) > 1 else ""
    raise ProbeSetError(message.replace("{probe}", probe_ref(first, names)).replace("{value}", str(value)) + others)
