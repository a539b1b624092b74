"""Items of a dataset, and the place of each thing in them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.tasks import UNKNOWN

__all__ = ["Answer", "Fields", "Item", "parse_fields", "read_item", "whole"]

Key = int | str
Answer = int | float | tuple[int | float, ...]
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
    label: Key = 1
    target: Key | None = None
    group: Key | None = None
    name: Key | None = None
    masks: Mapping[str, Key] = field(default_factory=dict)

    @property
    def answer(self) -> Key:
        """Place of the label or the target."""
        return self.label if self.target is None else self.target


@dataclass(frozen=True)
class Item:
    """Content of one item of a dataset."""

    image: Tensor
    answer: Answer
    group: int | None
    name: str | None
    masks: Mapping[str, Any]


def parse_fields(fields: Mapping[str, Any] | None) -> Fields:
    """Check a `fields=` mapping; of an unknown key the message suggests the nearest."""
    if fields is None:
        return Fields()
    if not isinstance(fields, Mapping):
        raise ProbeSetError(f"Expected `fields` to be a mapping, but got {type(fields).__name__}. Write {EXAMPLE}.")
    for key in fields:
        if key not in ALLOWED:
            near = difflib.get_close_matches(str(key), ALLOWED, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ProbeSetError(f"Expected the keys of `fields` to be among {list(ALLOWED)}, but got {key!r}.{hint}")
    masks = fields.get("masks", {})
    if not isinstance(masks, Mapping):
        raise ProbeSetError(f"Expected `fields['masks']` to map regions to keys, but got {masks!r}. Write {EXAMPLE}.")
    places = {f"fields[{key!r}]": value for key, value in fields.items() if key != "masks"}
    for where, value in (places | {f"fields['masks'][{region!r}]": value for region, value in masks.items()}).items():
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ProbeSetError(f"Expected `{where}` to be an index or a key of an item, but got {value!r}.")
    if "label" in fields and "target" in fields:
        raise ProbeSetError("Expected `fields` to have 'label' or 'target', but got both. Targets are for regression.")
    return Fields(**{**fields, "masks": dict(masks)})


def read_item(dataset: Any, index: int, fields: Fields) -> Item:
    """Read item `index` and check each part of it; faults name the item."""
    try:
        raw = dataset[index]
        group = None if fields.group is None else _numbers(_pick(raw, fields.group, "group", index), "group", index)
        what = "label" if fields.target is None else "target"
        answer = _numbers(_pick(raw, fields.answer, what, index), what, index)
        if what == "label" and len(answer) > 1 and any(number not in (0, 1, UNKNOWN) for number in answer):
            raise ProbeSetError(
                f"Expected the label of item {index} to be a class index, or 0, 1 or {UNKNOWN} (unknown) for each of "
                f"several labels, but got {str(list(answer))[:60]}. Of values, say so: fields={{'target': 1}}."
            )
        answer = answer if what == "label" else tuple(map(float, answer))
        return Item(
            image=_image(_pick(raw, fields.image, "image", index), index),
            answer=answer[0] if len(answer) == 1 else answer,
            group=None if group is None else whole(group, "group", index),
            name=None if fields.name is None else str(_pick(raw, fields.name, "name", index)),
            masks={region: _mask(_pick(raw, key, f"mask {region!r}", index)) for region, key in fields.masks.items()},
        )
    except ProbeSetError:
        raise
    except Exception as error:
        raise ProbeSetError(
            f"Expected item {index} of the dataset to be readable, but got {type(error).__name__}: {error}. "
            "Mend it, or leave it out with `torch.utils.data.Subset`."
        ) from error


def whole(value: Any, what: str, index: int) -> int:
    """Class or group of an item, as a whole number of 64 bits; of one number in a tuple, that number."""
    if np.size(value) != 1:
        raise ProbeSetError(f"Expected the {what} of item {index} to be one number, but got {str(value)[:60]}.")
    number = value[0] if np.ndim(value) else value
    if number is None or not float(number).is_integer():
        advice = " If it is a value of a regression, say so: fields={'target': 1}." if what == "label" else ""
        raise ProbeSetError(f"Expected the {what} of item {index} to be a whole number, but got {number!r}.{advice}")
    if not -(2**63) <= int(number) < 2**63:
        raise ProbeSetError(f"Expected the {what} of item {index} to fit into 64 bits, but got {float(number):.3e}.")
    return int(number)


def _pick(item: Any, key: Key, what: str, index: int) -> Any:
    """Part `key` of an item that is a sequence, a mapping or an object with attributes."""
    try:
        if isinstance(item, Mapping):
            return item[key]
        if isinstance(key, str):
            return getattr(item, key)
        if isinstance(item, (tuple, list)):
            return item[key]
    except (KeyError, IndexError, AttributeError):
        pass
    described = f"a {type(item).__name__}"
    if isinstance(item, Mapping):
        described += f" with keys {list(item)}"
    elif isinstance(item, (tuple, list)):
        described += f" of {len(item)}"
    elif isinstance(item, Tensor):
        described = f"one tensor {tuple(item.shape)}"
    raise ProbeSetError(
        f"Expected item {index} of the dataset to have its {what} at {key!r}, but the item is {described}. "
        f"Say where things are, e.g. {EXAMPLE}."
    )


def _image(value: Any, index: int) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
        return value
    advice = TRANSFORM_ADVICE
    if not isinstance(value, Tensor):
        got = f"a {type(value).__module__.split('.')[0]} {type(value).__name__}"
    elif not value.is_floating_point():
        got = str(value.dtype)
    else:
        got, advice = str(tuple(value.shape)), "Add the channel axis of grey images with `unsqueeze(0)`."
    raise ProbeSetError(
        f"Expected the image of item {index} to be a float tensor (C, H, W) as the model expects it, but got {got}. "
        f"{advice}"
    )


def _numbers(value: Any, what: str, index: int) -> tuple[int | float, ...]:
    """Numbers of a scalar or a vector: int for whole-number types, float for floating ones."""
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
    return tuple(_number(number, what, index) for number in given)


def _number(value: Any, what: str, index: int) -> int | float:
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (float, np.floating)):
        return float(value)
    if not isinstance(value, (bool, np.bool_, int, np.integer)):
        raise ProbeSetError(
            f"Expected the {what} of item {index} to be a number, but got {type(value).__name__} {str(value)[:60]!r}. "
            f"Give class indexes, or say where the {what} is, e.g. {EXAMPLE}."
        )
    return whole(int(value), what, index)


def _mask(value: Any) -> Any:
    """A mask as tensor (None stays None); PIL images and arrays are read as numbers, nonzero = inside."""
    if value is None or isinstance(value, Tensor):
        return value
    array = np.array(value)
    return torch.from_numpy(array if array.dtype.kind in "biuf" and array.dtype != np.uint64 else array != 0)
