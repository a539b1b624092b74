"""Where things are in the items of a dataset, and how they are read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.tasks import UNKNOWN

__all__ = ["Answer", "Fields", "Item", "parse_fields", "read_item"]

Key = int | str
Answer = int | float | tuple[int, ...] | tuple[float, ...]
"""A class, a value, labels of 0, 1 and -1, or several values."""
ALLOWED = ("image", "label", "target", "group", "name", "masks")
EXAMPLE = 'fields={"image": 0, "label": 1, "masks": {"core": 2}}'
TRANSFORM_ADVICE = (
    "Give the dataset the transform that the model is evaluated with, e.g. Compose([ToImage(), "
    "ToDtype(torch.float32, scale=True), Normalize(mean, std)]) of torchvision.transforms.v2."
)


@dataclass(frozen=True)
class Fields:
    """Index, key or attribute of each thing in an item; None where the items do not have it."""

    image: Key = 0
    label: Key | None = 1
    target: Key | None = None
    group: Key | None = None
    name: Key | None = None
    masks: Mapping[str, Key] = field(default_factory=dict)

    @property
    def answer(self) -> Key:
        """Where the label or the target is."""
        key = self.label if self.target is None else self.target
        return 1 if key is None else key


@dataclass(frozen=True)
class Item:
    """What one item of a dataset says."""

    image: Tensor
    answer: Answer
    group: int | None
    name: str | None
    masks: Mapping[str, Any]


def parse_fields(fields: Mapping[str, Any] | None) -> Fields:
    """Check a `fields=` mapping.

    Raises:
        ProbeSetError: A key is unknown (the message suggests the nearest), or a value is no index or key.
    """
    if fields is None:
        return Fields()
    if not isinstance(fields, Mapping):
        raise ProbeSetError(
            f"Expected `fields` to be a mapping, but got {type(fields).__name__}. Write e.g. {EXAMPLE}."
        )
    for key, value in fields.items():
        if key not in ALLOWED:
            near = difflib.get_close_matches(str(key), ALLOWED, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ProbeSetError(f"Expected the keys of `fields` to be among {list(ALLOWED)}, but got {key!r}.{hint}")
        if key != "masks":
            _check_key(f"fields[{key!r}]", value)
    masks = fields.get("masks", {})
    if not isinstance(masks, Mapping):
        raise ProbeSetError(
            f"Expected `fields['masks']` to map region names to keys, but got {masks!r}. Write e.g. {EXAMPLE}."
        )
    for region, value in masks.items():
        _check_key(f"fields['masks'][{region!r}]", value)
    if "label" in fields and "target" in fields:
        raise ProbeSetError("Expected `fields` to have 'label' or 'target', but got both. Targets are for regression.")
    parsed = Fields(**{**fields, "masks": dict(masks)})
    return replace(parsed, label=None) if "target" in fields else parsed


def read_item(dataset: Any, index: int, fields: Fields) -> Item:
    """Read item `index` and check each part of it.

    Raises:
        ProbeSetError: The dataset fails on the item, or a part is missing or of a wrong kind; names the item.
    """
    try:
        return _item(dataset[index], index, fields)
    except ProbeSetError:
        raise
    except Exception as error:
        raise ProbeSetError(
            f"Expected item {index} of the dataset to be readable, but got {type(error).__name__}: {error}. "
            "Mend it, or leave it out with `torch.utils.data.Subset`."
        ) from error


def _item(raw: Any, index: int, fields: Fields) -> Item:
    group = None if fields.group is None else _scalar(_pick(raw, fields.group, "group", index), "group", index)
    if isinstance(group, float) and not group.is_integer():
        raise ProbeSetError(f"Expected the group of item {index} to be a whole number, but got {group}.")
    if fields.target is None:
        answer = _label(_pick(raw, fields.answer, "label", index), index)
    else:
        answer = _target(_pick(raw, fields.answer, "target", index), index)
    return Item(
        image=_image(_pick(raw, fields.image, "image", index), index),
        answer=answer,
        group=None if group is None else int(group),
        name=None if fields.name is None else str(_pick(raw, fields.name, "name", index)),
        masks={region: _mask(_pick(raw, key, f"mask {region!r}", index)) for region, key in fields.masks.items()},
    )


def _check_key(where: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ProbeSetError(f"Expected `{where}` to be an index or a key of an item, but got {value!r}.")


def _pick(item: Any, key: Key, what: str, index: int) -> Any:
    """Return part `key` of an item that is a sequence, a mapping or an object with attributes."""
    try:
        if isinstance(item, Mapping):
            return item[key]
        if isinstance(key, str):
            return getattr(item, key)
        if isinstance(item, (tuple, list)):
            return item[key]
    except (KeyError, IndexError, AttributeError):
        pass
    raise ProbeSetError(
        f"Expected item {index} of the dataset to have its {what} at {key!r}, but the item is {_described(item)}. "
        f"Say where things are, e.g. {EXAMPLE}."
    )


def _described(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} with keys {list(item)}"
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    if isinstance(item, Tensor):
        return f"one tensor {tuple(item.shape)}"
    return f"a {type(item).__name__}"


def _image(value: Any, index: int) -> Tensor:
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__.split('.')[0]} {type(value).__name__}"
        raise ProbeSetError(
            f"Expected the image of item {index} to be a float tensor (C, H, W) as the model expects it, but got a "
            f"{kind}. {TRANSFORM_ADVICE}"
        )
    if not value.is_floating_point():
        raise ProbeSetError(
            f"Expected the image of item {index} to be a float tensor as the model expects it, but got {value.dtype}. "
            f"{TRANSFORM_ADVICE}"
        )
    if value.ndim != 3:
        raise ProbeSetError(
            f"Expected the image of item {index} to be (C, H, W), but got {tuple(value.shape)}. "
            "Add the channel axis of grey images with `unsqueeze(0)`."
        )
    return value


def _label(value: Any, index: int) -> Answer:
    """Return a class, or labels where there are several numbers; of one number in a vector, that number."""
    numbers = _numbers(value, "label", index)
    if len(numbers) == 1:
        return numbers[0]
    if any(number not in (0, 1, UNKNOWN) for number in numbers):
        raise ProbeSetError(
            f"Expected the label of item {index} to be a class index, or 0, 1 or {UNKNOWN} (unknown) for each of "
            f"several labels, but got {str(numbers)[:60]}. If these are values, say so: fields={{'target': 1}}."
        )
    return tuple(int(number) for number in numbers)


def _target(value: Any, index: int) -> Answer:
    numbers = _numbers(value, "target", index)
    return float(numbers[0]) if len(numbers) == 1 else tuple(float(number) for number in numbers)


def _numbers(value: Any, what: str, index: int) -> list[int | float]:
    """Return the numbers of a scalar or a vector."""
    if isinstance(value, (Tensor, np.ndarray)):
        if sum(side != 1 for side in value.shape) > 1:
            raise ProbeSetError(
                f"Expected the {what} of item {index} to be one number, or a vector, but got shape "
                f"{tuple(value.shape)}. Say where the {what} is, e.g. {EXAMPLE}."
            )
        value = value.reshape(-1).tolist()
    given = value if isinstance(value, (list, tuple)) else [value]
    if not given:
        raise ProbeSetError(f"Expected the {what} of item {index} to be one number or more, but got an empty vector.")
    return [_scalar(number, what, index) for number in given]


def _scalar(value: Any, what: str, index: int) -> int | float:
    """Return a Python number: int for whole-number types, float for floating ones."""
    if isinstance(value, (Tensor, np.ndarray)):
        size = value.numel() if isinstance(value, Tensor) else value.size
        if size != 1:
            raise ProbeSetError(
                f"Expected the {what} of item {index} to be one number, but got shape {tuple(value.shape)}."
            )
        value = value.item()
    if isinstance(value, (float, np.floating)):
        return float(value)
    if not isinstance(value, (bool, np.bool_, int, np.integer)):
        raise ProbeSetError(
            f"Expected the {what} of item {index} to be a number, but got {type(value).__name__} {str(value)[:60]!r}. "
            f"Give class indexes, or say where the {what} is, e.g. {EXAMPLE}."
        )
    if not -(2**63) <= value < 2**63:
        raise ProbeSetError(f"Expected the {what} of item {index} to fit into 64 bits, but got {value:.3e}.")
    return int(value)


def _mask(value: Any) -> Any:
    """Return a mask as tensor (None stays None); PIL images and arrays are read as numbers, nonzero = inside."""
    if value is None or isinstance(value, Tensor):
        return value
    array = np.array(value)
    return torch.from_numpy(array if array.dtype.kind in "biuf" and array.dtype != np.uint64 else array != 0)
