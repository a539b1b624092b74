"""The study of architectures runs, and what is kept of it says what is claimed."""

import json
import re

import architectures
import pytest
import torch
from _architecture_page import PAGE, RIGHT, filled, sound
from _hub_nets import HUB_NETS
from _quarters import farthest, highest, squares
from _timm_nets import TIMM_NETS

from xai_callbacks.errors import TargetLayerError

# Nets whose evidence is not at the square although they learned; why, says "Maps that peak elsewhere" in the docs.
ELSEWHERE = {
    "HGNetV2ForImageClassification",
    "LevitForImageClassification",
    "MobileNetV1ForImageClassification",
    "PPLCNetForImageClassification",
    "PerceiverForImageClassificationFourier",
    "SegformerForImageClassification",
    "TextNetForImageClassification",
    "cspnext_tiny",
    "gmixer_12_224",
    "inception_v3",
    "mobilenetv3_small_050",
    "nasnetalarge",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "resnetv2_18",
}

KEPT = PAGE.parent / "results" / "architectures.json"


@pytest.fixture(scope="module")
def kept():
    return json.loads(KEPT.read_text())


def test_enough_architectures_are_kept(kept):
    assert len(kept["timm"]) >= 60
    assert len(kept["transformers"]) >= 20
    assert kept["timm"].keys() == TIMM_NETS.keys()
    assert kept["transformers"].keys() == HUB_NETS.keys()
    assert kept["versions"].keys() >= {"torch", "timm", "transformers"}


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_each_layer_is_verified_or_the_advice_works(kept, library):
    assert [name for name, entry in kept[library].items() if not sound(entry)] == []


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_maps_of_nets_that_learned_lie_in_the_right_quarter(kept, library):
    found = {name: entry["quarter"] for name, entry in kept[library].items()}
    learned = {name: quarter for name, quarter in found.items() if quarter and quarter["learned"]}
    assert len(learned) >= 0.8 * len(kept[library])
    wrong = {name for name, quarter in learned.items() if max(quarter["peak"], quarter["stands_out"]) < RIGHT}
    assert wrong <= ELSEWHERE


def test_the_page_shows_what_is_kept(kept):
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, kept) == text
    assert all(f"`{name}`" in text for library in ("timm", "transformers") for name in kept[library])


def test_squares_lie_in_their_quarters():
    probes, quarters = squares(64)
    assert torch.equal(highest(probes.images[:, 0]), quarters)
    assert torch.equal(farthest(probes.images[:, 1]), quarters)


@pytest.mark.parametrize(("row", "column", "quarter"), [(0, 0, 0), (0, 3, 1), (2, 0, 2), (3, 2, 3)])
def test_quarters_are_told_from_the_place_of_the_extreme(row, column, quarter):
    heatmap = torch.zeros(1, 4, 4)
    heatmap[0, row, column] = -1
    assert farthest(heatmap).tolist() == highest(-heatmap).tolist() == [quarter]


def test_advice_is_read_from_the_message():
    message = "Explain at each, `explainers=[GradCAM('a.1', name='gradcam_1'), GradCAM('b:add', name='gradcam_2')]`."
    assert [(each.target_layer, each.name) for each in architectures.advised(TargetLayerError(message))] == [
        ("a.1", "gradcam_1"),
        ("b:add", "gradcam_2"),
    ]
    pytest.importorskip("captum")
    assert [each.name for each in architectures.advised(TargetLayerError("found none"))] == ["occlusion"]


def test_advice_at_one_layer_is_read_too():
    (found,) = architectures.advised(TargetLayerError("Explain there, `explainers=[GradCAM('stages.3')]`."))
    assert (found.target_layer, found.name) == ("stages.3", "gradcam")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_three_nets_from_end_to_end(tmp_path, monkeypatch, capsys):
    for needed in ("timm", "transformers", "captum"):
        pytest.importorskip(needed)
    names = ["regnetx_002", "ResNetForImageClassification", "BeitForImageClassification"]
    path, page = tmp_path / "new" / "architectures.json", tmp_path / "page.md"
    page.write_text("<!-- timm table -->\n<!-- end of timm table -->\n")
    architectures.main(["--only", *names, "--train", "15", "--json", str(path), "--page", str(page)])

    written = json.loads(path.read_text())
    entries = written["timm"] | written["transformers"]
    assert entries.keys() == set(names)
    for entry in entries.values():
        assert sound(entry)
        assert entry["quarter"]["learned"]
        assert entry["quarter"]["peak"] >= RIGHT
    assert "`regnetx_002`" in page.read_text()
    assert "regnetx_002: s4 [7, 7] verified" in capsys.readouterr().out

    architectures.main(["--only", names[1], "--json", str(path)])
    assert json.loads(path.read_text())["transformers"][names[1]]["quarter"] == entries[names[1]]["quarter"]


@pytest.mark.filterwarnings("ignore")
def test_a_refused_net_follows_the_advice():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = torch.nn.Conv2d(3, 4, 5, stride=4, padding=2)
            self.coarse = torch.nn.Conv2d(3, 4, 9, stride=8, padding=4)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, images):
            return self.head(torch.cat([part(images).mean(dim=(2, 3)) for part in (self.fine, self.coarse)], dim=1))

    entry = architectures.examine(Two(), 32)
    assert entry["layer"] is None
    assert entry["refused"]
    assert len(entry["advice"]) == 2
    assert entry["advice_works"] is True


def test_the_python_block_of_the_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=4, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )
    exec(block, {"probes": architectures.noise(32), "model": model})
    assert "`0`" in capsys.readouterr().out
