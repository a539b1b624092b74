"""The studies of implicit saliency and of the uncertainty of explanations, on few photos."""

from __future__ import annotations

import json

import explanation_uncertainty
import implicit_saliency
import pytest
import torch

pytest.importorskip("sklearn")


@pytest.mark.data
@pytest.mark.slow
def test_saliency_is_judged_at_both_layers_and_under_noise(shared_data, tmp_path, capsys):
    path = tmp_path / "saliency.json"
    arguments = [
        "--photos",
        "4",
        "--foils",
        "2",
        "--nets",
        "squeezenet",
        "--data",
        str(shared_data),
        "--json",
        str(path),
    ]
    implicit_saliency.main(arguments)
    written = json.loads(path.read_text())
    assert written["choice"]["chosen"] in implicit_saliency.VARIANTS
    places = {"late, noise 0.0", "late, noise 0.1", "late, noise 0.3", "middle, noise 0.0", "middle, noise 0.3"}
    net = written["nets"]["squeezenet"]
    assert places < net.keys()
    for place in places:
        assert set(implicit_saliency.VARIANTS) < net[place]["scores"].keys()
        assert net[place]["chosen_less"].keys() >= set(implicit_saliency.PRIORS)
    # Pooling comes straight after the late layer: its gradients are the same in all cells, and all CAMs are one.
    late = net["late, noise 0.0"]["scores"]
    assert late["magnitude"]["nss"][0] == 0
    assert late["product"]["nss"] == late["weighted"]["nss"]
    assert "squeezenet, middle" in capsys.readouterr().out


def test_fixations_are_counted_on_cells_and_flat_maps_are_zeros(tmp_path):
    path = tmp_path / "fixations.csv"
    path.write_text("image,subject,x,y,duration_ms\n7,0,0.5,3.9,200\n7,1,399.9,299.9,90\n7,1,1,1,90\n")
    counts = implicit_saliency.fixations(path)["7"]
    assert counts.shape == (75, 100)
    assert (counts[0, 0], counts[74, 99], counts.sum()) == (2, 1, 3)
    assert not implicit_saliency.shown(torch.full((7, 7), 0.3) + 1e-8 * torch.rand(7, 7)).any()
    values = implicit_saliency.judged(implicit_saliency.shown(torch.zeros(7, 7)), counts)
    assert values == (0, 0, pytest.approx(0.5))


@pytest.mark.data
@pytest.mark.slow
def test_uncertainty_is_judged_beside_confidence(shared_data, tmp_path, capsys):
    path = tmp_path / "uncertainty.json"
    explanation_uncertainty.main(["--images", "120", "--data", str(shared_data), "--json", str(path)])
    written = json.loads(path.read_text())
    assert 0.7 < written["accuracy"] < 0.98
    assert written["one_less_confidence"]["auroc"][0] > 0.7
    assert written["uncertainty"].keys() == explanation_uncertainty.METHODS.keys()
    assert "AUROC of wrong answers" in capsys.readouterr().out
