"""The one-class protocol keeps its images apart, and the script runs at a small size."""

from __future__ import annotations

import json

import _one_class
import pytest
import reproduce_novelty
import torch

SMALL = ["--epochs", "1", "--images", "64", "--seeds", "0", "1"]


def pool(tested=None, count=500):
    labels = torch.arange(count) % 10
    return _one_class.Pool(torch.arange(float(count)).view(-1, 1, 1, 1), labels, tested)


def labels_of(pixels):
    return set((pixels.flatten().long() % 10).tolist())


@pytest.mark.parametrize("tested", [None, torch.arange(500) >= 400], ids=["folds", "official"])
def test_no_image_has_two_purposes_and_only_the_novel_are_of_other_classes(tested):
    data = _one_class.split(pool(tested), inlier=3, seed=1)

    for part in (data.train, data.validation, data.known):
        assert labels_of(part) == {3}
    assert 3 not in labels_of(data.novel)
    assert len(data.novel) == len(data.known) == 10
    used = torch.cat(list(data)).flatten().tolist()
    assert len(set(used)) == len(used)
    if tested is not None:
        assert min(data.known.amin(), data.novel.amin()) >= 400
        assert len(data.validation) == 4


def test_a_split_depends_on_seed_and_class_alone():
    first, again = (_one_class.split(pool(), inlier=3, seed=1) for _ in range(2))
    other = _one_class.split(pool(), inlier=3, seed=2)

    assert torch.equal(first.train, again.train)
    assert torch.equal(first.novel, again.novel)
    assert not torch.equal(first.novel, other.novel)


@pytest.mark.slow
@pytest.mark.data
def test_the_script_keeps_every_score_and_continues_from_its_cache(shared_data, tmp_path, capsys):
    path, cache = tmp_path / "novelty.json", tmp_path / "cache"
    arguments = [*SMALL, "--data", str(shared_data), "--cache", str(cache), "--datasets", "cifar10_4000"]
    reproduce_novelty.main([*arguments, "--classes", "0", "4", "--json", str(path)])

    rows = json.loads(path.read_text())["cifar10_4000"]
    assert {"reconstruction", "gradient/fisher", "gradient/alignment", "latent/mahalanobis", "combined/gradcon"} <= set(
        rows
    )
    for row in rows.values():
        assert row["per_class"].keys() == {"0", "4"}
        assert row["mean"] == pytest.approx(sum(row["per_class"].values()) / 2, abs=2e-4)
        assert (row["seeds"], row["epochs"]) == (2, 1)
    assert "gradient/fisher" in capsys.readouterr().out

    kept = cache / "cifar10_4000_0_0_1.json"
    kept.write_text(json.dumps(dict.fromkeys(rows, 0.25)))
    reproduce_novelty.main([*arguments, "--classes", "0", "--json", str(path)])
    assert json.loads(path.read_text())["cifar10_4000"]["reconstruction"]["mean_of_each_seed"][0] == 0.25
