"""Checks of what a probe set is given: names, images, pixels, masks, labels, targets, groups; faults name the probe."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.tasks import UNKNOWN, in_key

Names = tuple[str, ...]


def to_texts(texts: Any, what: str) -> Names | None:
    """Check a sequence of non-empty printable strings."""
    if texts is None:
        return None
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or not texts:
        raise ProbeSetError(f"Expected `{what}` to be a non-empty sequence of strings, but got {texts!r}.")
    for at, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise ProbeSetError(f"Expected `{what}` to be non-empty printable strings, but `{what}[{at}]` is {text!r}.")
    return tuple(texts)


def to_images(images: Any, names: Any) -> tuple[Tensor, Names]:
    """Own float32 copy `(N, C, H, W)` of the images, all finite; and the names of the probes."""
    rows = _rows(images)
    if not rows:
        raise ProbeSetError(
            "Expected `images` to be a tensor (N, C, H, W) or a sequence of tensors (C, H, W), at least one probe, but "
            f"got {type(images).__name__}."
        )
    ids = _to_names(names, len(rows))
    for index, image in enumerate(rows):
        plain = isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 3 and 0 not in image.shape
        if not plain or image.shape != rows[0].shape:
            got = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
            raise ProbeSetError(
                "Expected `images` to be float tensors (C, H, W) with no empty axis, all of one size, but "
                f"{_ref(index, ids)} is {got}. Apply the transform that the model was trained with, e.g. "
                "`images.float() / 255`, then Normalize; `torch.from_numpy` makes tensors, `unsqueeze` a missing axis."
            )
    own = torch.stack([_plain(image).to("cpu", torch.float32) for image in rows]).contiguous()
    bad = ~torch.isfinite(own).flatten(1).all(dim=1)
    _refuse(bad, ids, "`images` to be finite", ["NaN or infinite pixels"] * len(ids), "Mend or drop it.")
    return own, ids


def to_pixels(pixels: Any, names: Names, size: tuple[int, int]) -> Tensor:
    """Own uint8 copy `(N, H, W, 3)` of the display pixels."""
    tensor = _tensor(pixels, "`pixels`")
    expected = (len(names), *size, 3)
    if tensor.dtype != torch.uint8 or tuple(tensor.shape) != expected:
        raise ProbeSetError(
            f"Expected `pixels` to be uint8 {expected}, that is (N, H, W, 3), but got {tensor.dtype} "
            f"{tuple(tensor.shape)}. Leave `pixels` out to derive them from the images."
        )
    return tensor.to("cpu", copy=True).contiguous()


def to_masks(masks: Any, names: Names, size: tuple[int, int]) -> dict[str, Tensor]:
    """Region masks `(N, H, W)` bool by region name; a probe without the region has an all-False row."""
    if masks is not None and not isinstance(masks, Mapping):
        raise ProbeSetError(
            f"Expected `masks` to map region names to masks, as {{'core': tensor}}, but got {type(masks).__name__}."
        )
    result, given = {}, masks or {}
    for region in to_texts(tuple(given) or None, "masks") or ():
        rows = _rows(given[region])
        if len(rows) != len(names):
            raise ProbeSetError(
                f"Expected mask {region!r} to have one row for each of {len(names)} probes, but got {len(rows)}. "
                "Use an all-False row (or None in a list) for a probe without the region."
            )
        where = f"mask {region!r} of "
        result[region] = torch.stack([_mask(row, where + _ref(index, names), size) for index, row in enumerate(rows)])
    return result


def check_truth(labels: object, targets: object, class_names: object, target_names: object) -> None:
    """Refuse labels beside targets, and names of what is not given."""
    if labels is not None and targets is not None:
        raise ProbeSetError("Expected `labels` or `targets`, but got both. Targets are for regression only.")
    misnamed = class_names if targets is not None else target_names
    if misnamed is not None:
        raise ProbeSetError(
            "Expected `target_names` to come with `targets`, and `class_names` to come without, but got "
            f"{misnamed!r}: `class_names` names classes and labels, `target_names` names values."
        )


def to_labels(labels: Any, names: Names, class_names: Names | None) -> Tensor | None:
    """Class indexes `(N,)` int64, or labels `(N, K)` of 0, 1 and -1; named by `class_names` where known."""
    if labels is None:
        return None
    table = _table(labels, "labels", names)
    if table.ndim == 1:
        return _indexes(table, "label", names, class_names, 0)
    expected = f"`labels` of shape (N, K) to be 1 where a probe has a label, 0 where not, {UNKNOWN} where unknown"
    bad = ((table != 0) & (table != 1) & (table != UNKNOWN)).any(dim=1)
    advice = "Class indexes have shape (N,), as `labels[:, 0]` has; values are `targets`."
    _refuse(bad, names, expected, table.tolist(), advice)
    if class_names is not None and len(class_names) != table.shape[1]:
        raise ProbeSetError(
            f"Expected `class_names` to name each of {table.shape[1]} labels, but got {len(class_names)}."
        )
    return table.to(torch.int64)


def to_groups(groups: Any, names: Names, group_names: Names | None) -> Tensor | None:
    """Group indexes `(N,)` int64; -1 is unknown."""
    return None if groups is None else _indexes(_table(groups, "groups", names), "group", names, group_names, UNKNOWN)


def to_targets(targets: Any, target_names: Any, names: Names) -> tuple[Tensor | None, Names | None]:
    """Regression targets `(N,)` or, of several values, `(N, V)`, float32, all finite; and one name for each value."""
    given = to_texts(target_names, "target_names")
    if targets is None:
        return None, given
    result = _table(targets, "targets", names).to(torch.float32)
    bad = ~torch.isfinite(result.view(len(result), -1)).all(dim=1)
    _refuse(bad, names, "`targets` to be finite", [f"target {row}" for row in result.tolist()], "Mend or drop it.")
    values = 1 if result.ndim == 1 else result.shape[1]
    if given is not None and not len(given) == len(set(map(in_key, given))) == values:
        raise ProbeSetError(
            f"Expected `target_names` to name each of {values} values, differing in letters and digits as keys do, but "
            f"got {len(given)}: {given!r}."
        )
    return result.flatten() if values == 1 else result, given


def _to_names(names: Any, count: int) -> Names:
    given = to_texts(names, "names")
    if given is None:
        width = max(3, len(str(count - 1)))
        return tuple(f"probe_{index:0{width}d}" for index in range(count))
    if len(given) != count:
        raise ProbeSetError(f"Expected `names` to hold one name for each of {count} probes, but got {len(given)}.")
    name, often = Counter(given).most_common(1)[0]
    if often > 1:
        raise ProbeSetError(f"Expected `names` to be unique, but {often} probes are named {name!r}.")
    return given


def _ref(index: int, names: Names) -> str:
    return f"probe {index} ({names[index]!r})"


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor)


def _rows(values: Any) -> list[Any]:
    """What is given for each probe; empty where that is nothing one can count."""
    try:
        return list(values)
    except TypeError:
        return []


def _tensor(values: Any, what: str) -> Tensor:
    try:
        return _plain(torch.as_tensor(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeSetError(
            f"Expected {what} to be numbers, an array or a tensor, but got {type(values).__name__} {values!r}."
        ) from error


def _refuse(bad: Tensor, names: Names, expected: str, got: Sequence[object], advice: str = "") -> None:
    """Raise if any probe is bad, and name the first of them and what it has."""
    faulty = bad.nonzero().flatten().tolist()
    if faulty:
        others = f" (and {len(faulty) - 1} more like it)" if len(faulty) > 1 else ""
        raise ProbeSetError(
            f"Expected {expected}, but {_ref(faulty[0], names)} has {got[faulty[0]]}{others}. {advice}".strip()
        )


def _mask(row: Any, ref: str, size: tuple[int, int]) -> Tensor:
    if row is None:
        return torch.zeros(size, dtype=torch.bool)
    mask = _tensor(row if isinstance(row, Tensor) else np.array(row), ref).cpu()
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if tuple(mask.shape) != size:
        raise ProbeSetError(
            f"Expected {ref} to be {size}, as its image, but got {tuple(mask.shape)}. "
            "Apply to masks the geometry that the images went through."
        )
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ProbeSetError(
            f"Expected {ref} to be bool, or 0 and 1, but it holds other values. Threshold it, as in `mask > 0.5`."
        )
    return mask != 0


def _table(values: Any, what: str, names: Names) -> Tensor:
    """Own table of numbers `(N,)` or `(N, columns)`."""
    given = _rows(values)
    if len(given) != len(names):
        raise ProbeSetError(
            f"Expected `{what}` to be ({len(names)},), one number a probe, or ({len(names)}, columns), but got "
            f"{len(given)} rows. Give one for each probe, in the order of the images."
        )
    rows = [_tensor(row, f"`{what}` of {_ref(index, names)}").cpu() for index, row in enumerate(given)]
    for index, row in enumerate(rows):
        if row.ndim > 1 or row.numel() == 0 or row.shape != rows[0].shape:
            raise ProbeSetError(
                f"Expected `{what}` to be one number a probe, or a vector as long for each as for {_ref(0, names)}, of "
                f"shape {tuple(rows[0].shape)}, but {_ref(index, names)} has {tuple(row.shape)}."
            )
    return torch.stack(rows)


def _indexes(table: Tensor, one: str, names: Names, known: Names | None, lowest: int) -> Tensor:
    """Indexes from `lowest` to the number of known names; `one` is a label or a group."""
    if table.is_floating_point() or table.ndim != 1:
        raise ProbeSetError(
            f"Expected `{one}s` to be ({len(names)},) whole numbers from {lowest}, but got {tuple(table.shape)} "
            f"{table.dtype}. For regression pass the values as `targets=`."
        )
    result = table.to(torch.int64)
    most = torch.iinfo(torch.int64).max if known is None else len(known) - 1
    limit = "" if known is None else f" to {most}, as there are {len(known)} names"
    got = [f"{one} {value}" for value in result.tolist()]
    _refuse((result < lowest) | (result > most), names, f"`{one}s` to be whole numbers from {lowest}{limit}", got)
    return result
