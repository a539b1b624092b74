import json

import bench_compare
import compare_models
import pytest
import torch

from xai_callbacks.demo import SmallCNN


def test_a_permuted_net_computes_the_same():
    net = SmallCNN().eval()
    other = compare_models.permuted(net)
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(net(images), other(images), atol=1e-5)
    assert not torch.equal(net.features[1][0].weight, other.features[1][0].weight)


def test_the_watermark_is_where_it_is_said_to_be():
    images = torch.full((2, 3, 32, 32), 0.5)
    marked = compare_models.with_mark(images, (20, 11))
    changed = (marked != images).any(dim=1)[0].nonzero()
    assert changed.amin(dim=0).tolist() == [20, 11]
    assert changed.amax(dim=0).tolist() == [29, 20]
    assert bool((images == 0.5).all())


@pytest.mark.slow
def test_the_study_runs_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_models, "PLACES", ((20, 11),))
    arguments = ["--epochs", "1", "--train-images", "100", "--seeds", "7", "--json", str(tmp_path / "found.json")]
    assert compare_models.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["copies"]["same"].values()) == {0.0}
    # In a net that has learnt so little rounding moves gradients across kinks of a ReLU, but no answer.
    assert found["copies"]["permuted"]["answer"] < 1e-5
    assert found["seeds"]["_plain"]["pairs"] == 1
    assert set(found["watermark"]) == {"gradcam", "hirescam_earlier", "occlusion"}


def test_the_benchmark_measures_all_checkpoints(tmp_path):
    arguments = ["--checkpoints", "3", "--probes", "4", "--size", "32", "--json", str(tmp_path / "found.json")]
    assert bench_compare.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["checkpoints"] == 3
    assert found["ratio"] == pytest.approx((found["audits_s"] + found["compare_s"]) / found["plain_s"])
