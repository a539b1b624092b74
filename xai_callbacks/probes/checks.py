"""Checks of what a probe set is given: names, images, pixels, masks, labels, targets, groups; faults name the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.tasks import UNKNOWN, in_key

__all__ = [
    "as_tensor",
    "check_truth",
    "to_groups",
    "to_images",
    "to_labels",
    "to_masks",
    "to_names",
    "to_pixels",
    "to_target_names",
    "to_targets",
    "to_texts",
]

Names = tuple[str, ...]

FLOAT_ADVICE = (
    "The model expects floats: apply the transform it was trained with, "
    "e.g. `images.float() / 255` and then the same Normalize."
)


def to_names(names: Any, images: Any) -> Names:
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
        if first.setdefault(name, index) != index:
            raise ProbeSetError(
                f"Expected `names` to be unique, but probes {first[name]} and {index} are both named {name!r}."
            )
    return given


def to_texts(texts: Any, what: str) -> Names | None:
    """Check a sequence of non-empty printable strings."""
    if texts is None:
        return None
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or len(texts) == 0:
        raise ProbeSetError(f"Expected `{what}` to be a non-empty sequence of strings, but got {texts!r}.")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise ProbeSetError(
                f"Expected `{what}` to be non-empty printable strings, but `{what}[{index}]` is {text!r}. "
                "Give it a readable one-line name."
            )
    return tuple(texts)


def to_images(images: Any, names: Names) -> Tensor:
    """Own float32 copy `(N, C, H, W)` of the images, all finite."""
    images = as_tensor(images, "images") if isinstance(images, Tensor) else _stacked(images, names)
    if images.ndim != 4 or 0 in images.shape:
        raise ProbeSetError(
            f"Expected `images` to be (N, C, H, W) with no empty axis, but got {tuple(images.shape)}. "
            "Add the missing axis with `unsqueeze`, e.g. (N, 1, H, W) for grey images."
        )
    if not images.is_floating_point():
        raise ProbeSetError(f"Expected `images` to be floats, but got {images.dtype}. {FLOAT_ADVICE}")
    converted = _own(images, torch.float32)
    finite = torch.isfinite(converted).flatten(1).all(dim=1)
    _refuse(~finite, names, "Expected `images` to be finite, but {probe} has NaN or infinite pixels. Mend or drop it.")
    return converted


def to_pixels(pixels: Any, names: Names, size: tuple[int, int]) -> Tensor:
    """Own uint8 copy `(N, H, W, 3)` of the display pixels."""
    tensor = as_tensor(pixels, "pixels")
    expected = (len(names), *size, 3)
    if tensor.dtype != torch.uint8 or tuple(tensor.shape) != expected:
        raise ProbeSetError(
            f"Expected `pixels` to be uint8 {expected}, that is (N, H, W, 3), but got {tensor.dtype} "
            f"{tuple(tensor.shape)}. Leave `pixels` out to derive them from the images."
        )
    return _own(tensor, torch.uint8)


def to_masks(masks: Any, names: Names, size: tuple[int, int]) -> dict[str, Tensor]:
    """Region masks `(N, H, W)` bool by region name; a probe without the region has an all-False row."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        raise ProbeSetError(
            f"Expected `masks` to map region names to masks, as {{'core': tensor}}, but got {type(masks).__name__}."
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
        refs = (f"mask {region!r} of {_ref(index, names)}" for index in range(len(names)))
        result[region] = torch.stack([_mask(row, ref, size) for row, ref in zip(rows, refs, strict=True)])
    return result


def check_truth(labels: object, targets: object, class_names: object, target_names: object) -> None:
    """Refuse labels beside targets, and names of what is not given."""
    if labels is not None and targets is not None:
        raise ProbeSetError("Expected `labels` or `targets`, but got both. Targets are for regression only.")
    if targets is not None and class_names is not None:
        raise ProbeSetError(
            "Expected `class_names` to come with `labels`, but got `targets`: `target_names` names values."
        )
    if targets is None and target_names is not None:
        raise ProbeSetError(
            "Expected `target_names` to come with `targets`, but got none: `class_names` names classes."
        )


def to_labels(labels: Any, names: Names, class_names: Names | None) -> Tensor | None:
    """Class indexes `(N,)` int64, or labels `(N, K)` of 0, 1 and -1; named by `class_names` where known."""
    if labels is None:
        return None
    table = _table(labels, "labels", names)
    if table.ndim == 2:
        return _multi_hot(table, names, class_names)
    if table.is_floating_point():
        raise ProbeSetError(
            f"Expected `labels` to be whole numbers (class indexes), but got {table.dtype}. "
            "For regression pass the values as `targets=`."
        )
    advice = " Pass `class_names=` for all classes of the model, in index order."
    return _indexes(table, names, class_names, ("labels", "label", "class_names"), 0, advice)


def to_groups(groups: Any, names: Names, group_names: Names | None) -> Tensor | None:
    """Group indexes `(N,)` int64; -1 is unknown."""
    if groups is None:
        return None
    vector = _table(groups, "groups", names)
    if vector.is_floating_point() or vector.ndim != 1:
        raise ProbeSetError(
            f"Expected `groups` to be ({len(names)},) whole numbers (-1 = unknown), but got {tuple(vector.shape)} "
            f"{vector.dtype}."
        )
    return _indexes(vector, names, group_names, ("groups", "group", "group_names"), -1)


def to_targets(targets: Any, names: Names) -> Tensor | None:
    """Regression targets `(N,)` or, of several values, `(N, V)`; float32, all finite."""
    if targets is None:
        return None
    result = _own(_table(targets, "targets", names), torch.float32)
    bad = ~torch.isfinite(result.view(len(result), -1)).all(dim=1)
    _refuse(
        bad, names, "Expected `targets` to be finite, but {probe} has target {value}. Mend or drop it.", result.tolist()
    )
    return result[:, 0].contiguous() if result.ndim == 2 and result.shape[1] == 1 else result


def to_target_names(target_names: Any, targets: Tensor | None) -> Names | None:
    """Check one name for each value."""
    given = to_texts(target_names, "target_names")
    if given is None or targets is None:
        return None
    values = 1 if targets.ndim == 1 else targets.shape[1]
    if len(given) != values:
        raise ProbeSetError(f"Expected `target_names` to name each of {values} values, but got {len(given)}.")
    if len(set(map(in_key, given))) < len(given):
        raise ProbeSetError(f"Expected `target_names` to differ in letters and digits, as keys do, but got {given!r}.")
    return given


def as_tensor(values: Any, what: str) -> Tensor:
    """Dense tensor of values: the same memory where that is possible."""
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


def _ref(index: int, names: Sequence[str]) -> str:
    return f"probe {index} ({names[index]!r})"


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Plain, detached, contiguous CPU copy that shares no memory with `tensor`."""
    return tensor.detach().as_subclass(Tensor).to("cpu", dtype, copy=True).contiguous()


def _refuse(bad: Tensor, names: Names, message: str, values: list[Any] | None = None) -> None:
    """Raise if any probe is bad; `{probe}` in the message is the first of them, `{value}` its value."""
    faulty = bad.nonzero().flatten().tolist()
    if faulty:
        value = "" if values is None else str(values[faulty[0]])
        others = f" ({len(faulty) - 1} more like it.)" if len(faulty) > 1 else ""
        raise ProbeSetError(message.replace("{probe}", _ref(faulty[0], names)).replace("{value}", value) + others)


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
        raise ProbeSetError("Expected `images` to hold at least one probe, but got none.")
    return count


def _stacked(images: Sequence[Any], names: Names) -> Tensor:
    for index, image in enumerate(images):
        ref = _ref(index, names)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ProbeSetError(f"Expected `images` to be float tensors, but {ref} is {got}. {FLOAT_ADVICE}")
        as_tensor(image, f"images[{index}]")
        if image.ndim != 3 or image.shape != images[0].shape:
            alike = "(C, H, W)" if image.ndim != 3 else f"alike, {tuple(images[0].shape)} as {_ref(0, names)}"
            raise ProbeSetError(
                f"Expected all images to be {alike}, but {ref} is {tuple(image.shape)}. "
                "Use a transform that resizes and crops all images to one size."
            )
    return torch.stack([image.detach().as_subclass(Tensor).to("cpu", torch.float32) for image in images])


def _mask(row: Any, ref: str, size: tuple[int, int]) -> Tensor:
    if row is None:
        return torch.zeros(size, dtype=torch.bool)
    try:
        mask = as_tensor(row, ref).detach().as_subclass(Tensor).cpu()
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
            f"Expected {ref} to be bool, or 0 and 1, but it holds other values. Threshold it, as in `mask > 0.5`."
        )
    return mask != 0


def _table(values: Any, what: str, names: Names) -> Tensor:
    """Numbers `(N,)` or `(N, columns)`."""
    if isinstance(values, (list, tuple)):
        values = [as_tensor(row, what).tolist() if isinstance(row, (Tensor, np.ndarray)) else row for row in values]
        rows = [row if isinstance(row, (list, tuple)) else None for row in values]
        for index in range(min(len(rows), len(names))):
            row = rows[index]
            _check_numbers([values[index]] if row is None else row, what, _ref(index, names))
            if (row is None) != (rows[0] is None) or len(row or ()) != len(rows[0] or ()):
                raise ProbeSetError(
                    f"Expected `{what}` to be as many for every probe as for {_ref(0, names)}, which has {values[0]}, "
                    f"but {_ref(index, names)} has {values[index]}."
                )
    table = as_tensor(values, what)
    if table.ndim not in (1, 2) or len(table) != len(names) or 0 in table.shape or table.is_complex():
        raise ProbeSetError(
            f"Expected `{what}` to be ({len(names)},), one number a probe, or ({len(names)}, columns), but got "
            f"{tuple(table.shape)} {table.dtype}. Give one for each probe, in the order of the images."
        )
    return table


def _check_numbers(values: Sequence[Any], what: str, ref: str) -> None:
    wrong = [value for value in values if not hasattr(value, "__float__")]
    if wrong:
        advice = " Pass class indexes, not names." if what == "labels" else ""
        raise ProbeSetError(f"Expected `{what}` to be numbers, but {ref} has {wrong[0]!r}.{advice}")


def _indexes(
    vector: Tensor, names: Names, known: Names | None, words: tuple[str, str, str], lowest: int, advice: str = ""
) -> Tensor:
    """Indexes from `lowest` to the number of known names; `words` are the argument, one of it, and its names."""
    what, one, named = words
    result = _own(vector, torch.int64)
    got = f", but {{probe}} has {one} {{value}}."
    lowest_in_words = "0 or more" if lowest == 0 else "-1 (unknown) or more"
    _refuse(result < lowest, names, f"Expected `{what}` to be {lowest_in_words}{got}", result.tolist())
    if known is not None:
        limit = f"below {len(known)}, the number of `{named}`"
        _refuse(result >= len(known), names, f"Expected `{what}` to be {limit}{got}{advice}", result.tolist())
    return result


def _multi_hot(table: Tensor, names: Names, class_names: Names | None) -> Tensor:
    count = table.shape[1]
    plain = _own(table, table.dtype if table.is_floating_point() else torch.int64)
    wrong = (plain != 0) & (plain != 1) & (plain != UNKNOWN)
    hint = "pass `labels[:, 0]`." if count == 1 else "values are `targets`."
    _refuse(
        wrong.any(dim=1),
        names,
        f"Expected `labels` of shape (N, K) to be 1 where a probe has a label, 0 where it has not and {UNKNOWN} where "
        f"that is unknown, but {{probe}} has {{value}}. Class indexes have shape (N,); {hint}",
        plain.gather(1, wrong.int().argmax(dim=1, keepdim=True))[:, 0].tolist(),
    )
    if class_names is not None and len(class_names) != count:
        raise ProbeSetError(f"Expected `class_names` to name each of {count} labels, but got {len(class_names)}.")
    return plain.to(torch.int64)
