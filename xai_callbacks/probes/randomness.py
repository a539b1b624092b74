"""Random augmentation under a seed of its own, with the global random streams left exactly as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserved_rng", "seed_generators"]


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global generators of `random`, numpy and torch (CPU and CUDA) on the way out, also on errors."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def seed_generators(*parts: int) -> None:
    """Seed the global generators from whole numbers; call within `preserved_rng` only."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    # Not `torch.manual_seed`: before CUDA is initialised that leaves a seed behind for the moment it will be.
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)


def _cuda_in_use() -> bool:
    """Tell whether CUDA is initialised; asking a device that is not would initialise it, a side effect of its own."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
