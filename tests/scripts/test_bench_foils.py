"""The benchmark of many foils, on small images."""

from __future__ import annotations

import json

import bench_foils
import pytest


@pytest.mark.slow
def test_the_benchmark_writes_every_ratio(tmp_path, capsys):
    path = tmp_path / "foils.json"
    bench_foils.main(["--repeats", "1", "--images", "2", "--size", "64", "--json", str(path)])
    written = json.loads(path.read_text())
    wanted = {"contrasts_100", "voice_100", "implicit_saliency_100", "voice_all", "eight_explainers"}
    assert set(written["ratio_to_forward"]) == wanted
    assert min(written["ratio_to_forward"].values()) > 0
    assert len(written["eight"]) == 8
    assert "eight_explainers" in capsys.readouterr().out
