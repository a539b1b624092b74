"""A short name for the content of a probe set, so that records tell whether they saw the same probes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from torch import Tensor

__all__ = ["fingerprint_of"]


def fingerprint_of(tensors: Mapping[str, Tensor | None], facts: Mapping[str, tuple[str | float, ...] | None]) -> str:
    """Return 16 hex characters of the SHA-256 of all tensors and facts given.

    The order of the mappings does not matter; names, shapes, dtypes and every bit of the content do. Numbers are
    hashed in little-endian order, so the result is the same on every machine.

    Args:
        tensors: CPU tensors by name; None entries count as absent.
        facts: Tuples of strings or finite numbers by name; None entries count as absent.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor is None:
            continue
        array = np.ascontiguousarray(tensor.numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.data)
    known = {name: list(fact) for name, fact in facts.items() if fact is not None}
    digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()[:16]
