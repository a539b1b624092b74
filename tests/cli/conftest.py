"""Two runs that are written once."""

from __future__ import annotations

import pytest

from tests.cli.audited import write_run


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """The same output wherever the tests run."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs `sound` and `leaning`."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "sound")
    write_run(folder / "leaning", 20.0)
    return folder
