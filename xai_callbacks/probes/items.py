"""Items of a dataset, and the place of each thing in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from xai_callbacks.errors import ProbeSetError, in_words
from xai_callbacks.tasks import UNKNOWN

Key = int | str
Answer = int | float | tuple[int | float, ...]  # a class, a value, labels of 0, 1 and -1, or several values
ALLOWED = ("image", "label", "target", "group", "name", "masks")
EXAMPLE = 'fields={"image": 0, "label": 1, "masks": {"core": 2}}'


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


def parse_fields(fields: Any) -> Fields:
    """Check a `fields=` mapping."""
    if fields is None:
        return Fields()
    given = fields if isinstance(fields, Mapping) else {"": fields}
    masks = given.get("masks", {})
    places = [place for key, place in given.items() if key != "masks"]
    places += masks.values() if isinstance(masks, Mapping) else [None]
    known = set(given) <= set(ALLOWED) and not {"label", "target"} <= set(given)
    if not known or not all(type(place) in (int, str) for place in places):
        raise ProbeSetError(
            f"Expected `fields` to map some of {list(ALLOWED)} to an index or a key of items, masks to one for each "
            f"region, and not both 'label' and 'target' (for regression), but got {fields!r}. Write e.g. {EXAMPLE}."
        )
    return Fields(**given)


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
            masks={region: _pick(raw, key, f"mask {region!r}", index) for region, key in fields.masks.items()},
        )
    except ProbeSetError:
        raise
    except Exception as error:
        raise ProbeSetError(
            f"Expected item {index} of the dataset to be readable, but got {in_words(error)} "
            "Mend it, or leave it out with `torch.utils.data.Subset`."
        ) from error


def whole(value: Any, what: str, index: int) -> int:
    """Class or group of an item, as a whole number; of one number in a tuple, that number."""
    if np.size(value) != 1 or not float(np.ravel(value)[0]).is_integer():
        advice = " If it is a value of a regression, say so: fields={'target': 1}." if what == "label" else ""
        raise ProbeSetError(f"Expected the {what} of item {index} to be one whole number, but got {value}.{advice}")
    return int(np.ravel(value)[0])


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
    held = list(item) if isinstance(item, Mapping) else len(item) if isinstance(item, (tuple, list)) else "no parts"
    raise ProbeSetError(
        f"Expected item {index} of the dataset to have its {what} at {key!r}, but it is a {type(item).__name__} of "
        f"{held}. Say where things are, e.g. {EXAMPLE}."
    )


def _image(value: Any, index: int) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
        return value
    got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"a {type(value)}"
    raise ProbeSetError(
        f"Expected the image of item {index} to be a float tensor (C, H, W) as the model expects it, but got {got}. "
        "Give the dataset the transform that the model is evaluated with, e.g. Compose([ToImage(), "
        "ToDtype(torch.float32, scale=True), Normalize(mean, std)]) of torchvision.transforms.v2."
    )


def _numbers(value: Any, what: str, index: int) -> tuple[int | float, ...]:
    """Numbers of a scalar or a vector: int for whole-number types, float for floating ones."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size == 0 or sum(side != 1 for side in array.shape) > 1:
        raise ProbeSetError(
            f"Expected the {what} of item {index} to be a number, or a vector of some, but got {type(value).__name__} "
            f"{str(value)[:60]!r}. Give class indexes, or say where the {what} is, e.g. {EXAMPLE}."
        )
    return tuple(float(number) if array.dtype.kind == "f" else int(number) for number in array.ravel())
