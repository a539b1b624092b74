"""The global random streams: kept as they are, or seeded for a while."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["isolated_rng", "seed_generators"]


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the streams of Python, NumPy, torch and each initialised accelerator on leaving, also on errors."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def seed_generators(*parts: int) -> None:
    """Seed the global generators from whole numbers; call within `isolated_rng` only."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    # Not `torch.manual_seed`: before CUDA is initialised that leaves a seed behind for the moment it will be.
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)


def _cuda_in_use() -> bool:
    """Asking a device that is not initialised for its state would initialise it, a side effect of its own."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
