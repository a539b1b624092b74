"""Records on disk: one safetensors file each, tensors plus JSON in the header; no pickle."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
from safetensors.torch import load, save
from torch import Tensor

from xai_callbacks.errors import AuditError
from xai_callbacks.record.audit_record import AuditRecord
from xai_callbacks.record.values import Estimate, Finding, Key, MapSet, Onset

__all__ = ["SCHEMA", "from_bytes", "from_text", "to_bytes", "to_text"]

SCHEMA = 1
"""Version of the format; raised when an older reader would misread a file, as when fields are put in another order."""

_HEADER = "xai_callbacks.record"
_FIELDS = {kind: tuple(kind.__annotations__) for kind in (Estimate, Finding, Key, MapSet, Onset)}
# Keys are the same at every audit: each is held once, however many records are read.
_MADE: dict[str, Any] = {kind.__name__: kind for kind in _FIELDS} | {"Key": lru_cache(4096, typed=True)(Key)}
_NAMED: dict[str, tuple[str, ...]] = {kind.__name__: names for kind, names in _FIELDS.items()}


def to_bytes(record: AuditRecord) -> bytes:
    """The file of a record."""
    tensors: dict[str, Tensor] = {}
    text = to_text(record, tensors)
    return save(tensors, {_HEADER: text})


def from_bytes(data: bytes) -> AuditRecord:
    """Undo `to_bytes`; damaged or foreign data may raise any exception."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return from_text(header["__metadata__"][_HEADER], load(data))


def to_text(record: AuditRecord, tensors: dict[str, Tensor]) -> str:
    """JSON of a record, in one line of ASCII; its tensors are put aside under the name of their place."""
    content = {each.name: _encoded(getattr(record, each.name), each.name, tensors) for each in fields(record)}
    return json.dumps({"schema": SCHEMA, "record": content}, allow_nan=False, separators=(",", ":"))


def from_text(text: str | bytes, tensors: Mapping[str, Tensor]) -> AuditRecord:
    """Undo `to_text`; damaged text may raise any exception.

    Raises:
        AuditError: It is of a newer version.
    """
    given = json.loads(text)
    if given["schema"] > SCHEMA:
        raise AuditError(f"It is of version {given['schema']}, newer than {SCHEMA}. Update xai_callbacks.")
    content = {name: _decoded(value, tensors) for name, value in given["record"].items()}
    return AuditRecord(**{each.name: content[each.name] for each in fields(AuditRecord) if each.name in content})


def _encoded(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, Tensor):
        while place in tensors:  # of two names with dots
            place += "_"
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {"$": ["tensor", place]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$": ["float", str(value)]}
    if type(value) in _FIELDS:
        names = _FIELDS[type(value)]
        parts = (_encoded(getattr(value, name), f"{place}.{name}", tensors) for name in names)
        return {"$": [type(value).__name__, *parts]}
    if isinstance(value, Mapping):
        if "$" in value or not all(isinstance(key, str) for key in value):
            return {"$": ["mapping", *_encoded(tuple(value.items()), place, tensors)]}
        return {key: _encoded(each, f"{place}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(each, f"{place}.{index}", tensors) for index, each in enumerate(value)]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(each, tensors) for each in value)
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {sys.intern(key): _decoded(each, tensors) for key, each in value.items()}
    kind, *parts = _decoded(value["$"], tensors)
    if kind == "tensor":
        return tensors.get(parts[0])
    if kind == "float":
        return float(parts[0])
    if kind == "mapping":
        return dict(parts)
    return _MADE[kind](**dict(zip(_NAMED[kind], parts, strict=False)))
