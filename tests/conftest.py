"""Settings and fixtures that every test shares."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# One thread a worker: the tests run in parallel, and sums come out the same on every machine.
torch.set_num_threads(1)

# The same examples in every run: a red build must be red for everybody.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whichever tests ran before it in this worker."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The optional folder of real images and weights, beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional folder ../shared/data is absent")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
