"""The budget of pictures, as the script measures it."""

from __future__ import annotations

import json

import bench_pictures
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")


@pytest.mark.slow
def test_pictures_keep_to_their_budget(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["bench_pictures", "--json", "--audits", "10", "--keep", str(tmp_path / "kept")])
    bench_pictures.main()
    measured = json.loads(capsys.readouterr().out)
    assert set(measured) == {"mb_per_audit", "growth", "cpu_s_per_audit"}
    assert 0.5 < measured["mb_per_audit"] <= 1.5
    assert measured["growth"] <= 1.4
    # Twice the budget: test machines are busy.
    assert measured["cpu_s_per_audit"] <= 3.0
    kept = [path.name for path in (tmp_path / "kept").iterdir()]
    assert len(kept) == 2 * 16 + 3
    assert "audit_0_overview.jpg" in kept


def test_photos_of_ones_own(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    probes = bench_pictures.probe_set(bench_pictures.photos(tmp_path))
    assert probes.pixels.shape == (16, 224, 224, 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit):
        bench_pictures.photos(tmp_path / "none")
