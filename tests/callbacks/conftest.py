"""Settings of runs that are shorter than pictures take to draw."""

from __future__ import annotations

import pytest

from xai_callbacks.sinks import Background


@pytest.fixture(scope="module", autouse=True)
def _patient():
    """Let any number of audits wait for their pictures: these runs audit faster than anybody trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Background.__init__.__kwdefaults__, "capacity", 99)
        yield
