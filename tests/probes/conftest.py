"""A folder of probes that the tests of folders begin with."""

from __future__ import annotations

import numpy as np
import pytest

from tests.probes.folders import noise, write


@pytest.fixture
def animals(tmp_path):
    """Two classes, three images of 8 x 8, a core mask for one of them."""
    for number, file in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        write(tmp_path / file, noise(seed=number))
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, :4] = 1
    write(tmp_path / "masks" / "core" / "cat" / "2.png", half)
    return tmp_path
