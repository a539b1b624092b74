"""The study of explainers and architectures runs, tells faults from refusals, and the page shows what is kept."""

import json
import re
from pathlib import Path

import explainer_architectures as study
import pytest
import torch
from torch import nn

from xai_callbacks.explainers import Explainer, Gradient, GuidedBackprop, Plan

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def kept():
    return json.loads((DOCS / "results" / "explainer_architectures.json").read_text())


def test_the_page_shows_what_is_kept(kept):
    text = (DOCS / "explainers.md").read_text(encoding="utf-8")
    assert study.filled(text, kept) == text


def test_every_cell_is_an_answer_or_a_refusal_with_advice(kept):
    assert kept["cells"].keys() == study.exported().keys()
    for row in kept["cells"].values():
        assert row.keys() == study.NETS.keys()
        for entry in row.values():
            advised = re.match(r"Expected .*, but .*\. [A-Z]\w+ ", entry.get("why", ""))
            assert entry["answer"] == "yes" or (entry["answer"] == "refused" and advised)


def test_two_cells_from_end_to_end(tmp_path, capsys):
    path, page = tmp_path / "new" / "cells.json", tmp_path / "page.md"
    page.write_text("Before.\n<!-- architectures table -->\n<!-- end of architectures table -->\nAfter.\n")
    chosen = ["--explainers", "Gradient", "AttentionRollout", "--nets", "resnet18"]
    cells = study.main([*chosen, "--json", str(path), "--page", str(page)])
    assert cells["Gradient"]["resnet18"] == {"answer": "yes", "grid": [48, 48], "verified": True}
    assert cells["AttentionRollout"]["resnet18"]["answer"] == "refused"
    assert json.loads(path.read_text())["cells"] == cells
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "| `Gradient` | 48 x 48 |\n| `AttentionRollout` | refused: ResNet has no attention |" in text
    assert "resnet18, Gradient: 48 x 48" in capsys.readouterr().out


class Faulty(Explainer):
    name = "faulty"

    def __init__(self, fault="empty"):
        super().__init__()
        self.fault = fault

    def prepare(self, trace, reference):
        return Plan(reason="the pixels", cost=9.0)  # so that it is not tried beforehand

    def explain(self, observation, plan):
        if self.fault == "raises":
            raise RuntimeError("No.")
        maps = observation.images.new_zeros(2, 2, 4, 4)
        return maps + float("nan") if self.fault == "NaN" else maps


@pytest.mark.parametrize(
    ("fault", "why"),
    [("empty", "heatmaps are empty"), ("raises", "RuntimeError: No."), ("NaN", "heatmaps are not finite")],
)
def test_faults_are_told(fault, why):
    class Of(Faulty):
        def __init__(self):
            super().__init__(fault)

    entry = study.examine(Of, net())
    assert entry["answer"] == "fault"
    assert why in entry["why"]


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_a_net_that_an_audit_changes_is_a_fault(monkeypatch):
    class Changed(Gradient):
        def __init__(self):
            super().__init__()

    model = net()
    true = study.Auditor.audit

    def audit(auditor, given):
        record = true(auditor, given)
        with torch.no_grad():
            model[0].bias.add_(1)
        model[1].training = not model[1].training
        return record

    monkeypatch.setattr(study.Auditor, "audit", audit)
    assert study.examine(Changed, model)["why"] == "changed 0.bias, train flags"


def test_new_explainers_are_made_by_themselves_with_fast_settings():
    assert {"Gradient", "SmoothGrad", "GuidedGradCAM", "AttentionRollout"} <= study.exported().keys()
    assert not {"Every", "LayerExplainer", "Explainer"} & study.exported().keys()
    assert study.made(study.exported()["SmoothGrad"]).samples == study.FAST["samples"]
    assert repr(study.made(GuidedBackprop)) == repr(GuidedBackprop())
