"""Images are paired, held out and drawn as the page says, and the audit sees a net that goes by colour."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _isic
import _isic_report
import isic_patches
import pytest
import torch
from _imagenet_nets import mobilenet_v2
from PIL import Image
from torch import nn
from torchvision.transforms import v2 as transforms

from xai_callbacks import Auditor, ProbeSet, Why
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.trials import CueTrial

DOCS = Path(__file__).parents[2] / "docs"
SIDE = 24


def lesions(count=40):
    """Even images are benign, every fourth of these has a blue patch at the left; the last eight are of validation."""
    generator = torch.Generator().manual_seed(1)
    # Almost grey: where all channels are equal, saturation has no gradient.
    grey = torch.randint(90, 170, (count, 1, SIDE, SIDE), generator=generator)
    pixels = (grey + torch.randint(0, 3, (count, 3, SIDE, SIDE), generator=generator)).to(torch.uint8)
    labels = torch.arange(count) % 2
    patched = torch.arange(count) % 4 == 0
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    masks[patched, 4:12, :6] = True
    pixels[patched, :, 4:12, :6] = torch.tensor([10, 60, 240], dtype=torch.uint8)[:, None, None]
    names = tuple(f"image {index}" for index in range(count))
    return _isic.Lesions(names, pixels, labels, patched, masks, torch.arange(count) >= count - 8)


def shown(probes):
    scale = PixelScale.of(probes)
    return Shown(scale.displayed(probes.images), torch.arange(len(probes)), probes, scale, seed=0)


def everything(images):
    return _isic.patch_probes(images, torch.ones(len(images.names), dtype=torch.bool))


class ByColour(nn.Module):
    """Says benign the more surely, the more saturated an image is; its convolution is there to be explained."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight.data = torch.eye(3)[:, :, None, None]
        self.register_buffer("std", torch.tensor(_isic.STD).view(-1, 1, 1))
        self.register_buffer("mean", torch.tensor(_isic.MEAN).view(-1, 1, 1))

    def forward(self, images):
        pixels = self.features(images) * self.std + self.mean
        saturation = (pixels.amax(dim=1) - pixels.amin(dim=1)).mean(dim=(1, 2))
        return torch.stack([20 * saturation, torch.ones_like(saturation)], dim=1)


def test_an_image_with_a_patch_and_its_twin_differ_in_the_patch_alone():
    view = shown(everything(lesions()))
    twins = _isic.RealPatch().twins(view)
    outside = ~twins.region[:, None].expand_as(view.images)
    melanoma = view.probes.labels == 1

    assert torch.equal(twins.added, melanoma)
    assert torch.equal(twins.absent[melanoma], view.images[melanoma])
    assert torch.equal(twins.present[~melanoma], view.images[~melanoma])
    assert torch.equal(twins.present[outside], twins.absent[outside])
    assert (twins.region & view.probes.masks["spurious"]).sum() == view.probes.masks["spurious"].sum()
    blue = torch.tensor([10, 60, 240]) / 255
    torch.testing.assert_close(twins.present[melanoma][0, :, 8, 2], blue, atol=1e-6, rtol=0)
    assert (twins.absent[~melanoma][:, 2, 8, 2] < 200 / 255).all()


def test_the_controls_change_the_place_of_the_patch():
    view = shown(everything(lesions()))
    real, grey, skin = (cue.twins(view) for cue in _isic.patch_cues())
    added, region = real.added, real.region[:, None]

    changed = (grey.present != grey.absent).any(dim=1, keepdim=True)
    assert not (changed & ~region).any()
    inside = torch.where(region, torch.where(added[:, None, None, None], grey.present, grey.absent), 0)
    assert torch.equal(inside[:, 0], inside[:, 1])
    covered = skin.present[added]
    assert torch.equal(covered.where(~region[added], 0), view.images[added].where(~region[added], 0))
    assert covered[0][:, real.region[added][0]].unique(dim=1).shape[1] == 1
    hole = (skin.present != skin.absent).any(dim=1)[~added]
    own = real.region[~added]
    assert hole.any()
    assert ((hole & own).sum(dim=(1, 2)) <= 0.2 * own.sum(dim=(1, 2))).all()


def test_what_is_painted_once_is_kept():
    view, cue = shown(everything(lesions())), _isic.RealPatch()
    assert cue.twins(view) is cue.twins(view)
    assert cue.twins(view) is not cue.twins(shown(everything(lesions(36))))


def test_no_image_held_out_is_drawn_for_training():
    images = lesions()
    held = _isic.hold_out(images, patched=2, melanomas=3, others=4)

    assert held[images.validation].all()
    assert int(held.sum()) == 8 + 2 + 3 + 4
    for condition in isic_patches.CONDITIONS:
        rows = isic_patches.draw(images, held, condition, 32)
        assert len(rows) == 32
        assert not held[rows].any()
        assert int((images.labels[rows] == 1).sum()) == 16


def test_conditions_differ_in_how_many_benign_images_show_a_patch():
    images = lesions(400)
    held = _isic.hold_out(images, patched=2, melanomas=3, others=4)
    patched = {
        condition: int(images.patched[isic_patches.draw(images, held, condition, 160)].sum())
        for condition in isic_patches.CONDITIONS
    }
    natural = isic_patches.patched_share(images, held, "found")
    assert patched["removed"] == 0
    assert patched["half"] == 40
    assert 0 < patched["found"] < 80
    assert natural == pytest.approx(float(images.patched[~held & (images.labels == 0)].double().mean()), abs=1e-4)


def audited(images, model):
    probes = everything(images)
    auditor = Auditor(probes, [Why(0)], novelty=[], trials=[CueTrial(cue) for cue in _isic.patch_cues()])
    return isic_patches.observed(auditor.audit(model))


def test_a_net_that_goes_by_colour_is_seen_through():
    figures = audited(lesions(), ByColour())["estimates"]

    for edit in ("added", "removed"):
        value, _, _, chance, valid, degenerate = figures[f"cue/patch/effect_{edit}"]
        assert value > 0.1
        assert (chance, degenerate) == (0, 0)
        assert valid == {"added": 20, "removed": 10}[edit]
    assert abs(figures["cue/grey/effect_added"][0]) < 0.01
    assert figures["cue/grey/effect_removed"][0] == pytest.approx(figures["cue/patch/effect_removed"][0], abs=0.02)
    assert abs(figures["cue/skin/effect_added"][0]) < 0.01


def run_of(images, model, epochs=3):
    held = torch.ones(len(images.names), dtype=torch.bool)
    epoch = audited(images, model) | isic_patches.accuracies(model, images, held)
    # As from the cache: numbers only.
    return json.loads(json.dumps({"epochs": [epoch] * epochs, "seconds": 1}))


def still(run):
    """The figures of a net that no cue moves."""
    epochs = json.loads(json.dumps(run["epochs"]))
    for epoch in epochs:
        epoch["estimates"] = {key: [0.0, -0.01, 0.01, 0.0, 160, 0] for key in epoch["estimates"]}
    return {**run, "epochs": epochs}


def test_figures_are_means_over_seeds_and_probes():
    images = lesions(160)
    run = run_of(images, ByColour())
    figures = _isic_report.over_seeds([run, run], [still(run), still(run)])
    last = figures["epochs"][-1]

    assert last["added"]["patch"]["probes"] == 80
    assert last["added"]["patch"]["low"] <= last["added"]["patch"]["mean"] <= last["added"]["patch"]["high"]
    assert last["added"]["patch"]["per_seed"][0] == last["added"]["patch"]["per_seed"][1]
    assert last["added"]["patch_minus_grey"]["mean"] == pytest.approx(last["added"]["patch"]["mean"], abs=0.01)
    assert last["melanomas_found"]["mean"] == 1  # they are grey
    assert last["melanomas_found_with_patch"]["mean"] == 0  # and the patch is not
    assert last["auc_with_patches"]["mean"] == 1
    assert list(figures["alarms"]) == ["alone", "beside the clean net"]
    for alarms in figures["alarms"].values():
        assert [alarm["raised_at"] for alarm in alarms["patch"]] == [2, 2]
        assert alarms["skin"] == [{"raised_at": None, "dated": None}] * 2


def test_tables_and_pictures_are_made_of_figures():
    run = run_of(lesions(160), ByColour())
    figures = {"patched_share_of_benign": 0.5, **_isic_report.over_seeds([run], [still(run)])}
    made = {"date": "2026-01-01", "machine": "a machine", "versions": {"torch": "2"}}
    result = {"provenance": made, "conditions": {"half": figures}}
    page = "# Page\n" + "".join(
        f"<!-- {name} table -->\nold\n<!-- end of {name} table -->\ntext\n"
        for name in ("effects", "accuracies", "seeds")
    )
    filled = isic_patches.filled(page, result)

    assert "old" not in filled
    assert filled.count("text") == 3
    assert "| half (50% of benign) |" in filled
    assert "| 100% | 0% | 100% | 0% |" in filled
    assert "\n|---|---|---|---|---|---|---|\n" in filled
    assert isic_patches.filled(filled, result) == filled
    picture = _isic_report.curves(result)
    assert picture.width > picture.height / 2 > 100
    assert isic_patches.typical(run, "removed", 1)[0] in range(160)


def test_the_pair_of_a_picture_is_one_image_without_and_with_the_patch():
    probes = everything(lesions())
    benign, melanoma = (int((probes.labels == label).nonzero()[0]) for label in (0, 1))
    pairs = isic_patches.pairs_of(probes, {"net": ByColour()}, [benign, melanoma])

    assert [pair.title.partition(": ")[2] for pair in pairs] == ["benign, patch taken out", "melanoma, patch pasted in"]
    for pair, row, own in zip(pairs, (benign, melanoma), (1, 0), strict=True):
        assert (torch.from_numpy(pair.images[own]).int() - probes.pixels[row].int()).abs().max() <= 1
        assert pair.benign["net"][1] > pair.benign["net"][0]
    assert _isic_report.examples(pairs).width > 4 * 150


def test_the_page_shows_the_kept_figures():
    result = json.loads((DOCS / "results" / "isic.json").read_text())
    page = (DOCS / "isic.md").read_text(encoding="utf-8")
    assert isic_patches.filled(page, result) == page
    assert set(result["conditions"]) == set(isic_patches.CONDITIONS)


def test_a_folder_without_the_data_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="Expected --data to be a folder with ISIC 2017"):
        _isic.read(tmp_path)


@pytest.mark.data
def test_real_images_are_read_trained_on_and_audited(shared_data, tmp_path):
    folder = shared_data / "isic2017"
    marked = ["ISIC_0001769", "ISIC_0001852", "ISIC_0002107", "ISIC_0002251"]
    melanomas = ["ISIC_0000002", "ISIC_0000030"]
    names = [*melanomas, *marked, "ISIC_0008406", "ISIC_0004168", "ISIC_0000001"]
    images = _isic.read(folder, names=names, size=32)

    assert images.pixels.shape == (9, 3, 32, 32)
    assert images.labels.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert images.patched.tolist() == [False, False, True, True, True, True, True, True, False]
    assert images.marked.tolist() == [False, False, True, True, True, True, False, False, False]
    probes = everything(images)
    assert len(probes) == 6
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    before = model[4].weight.detach().clone()
    isic_patches.learn(model, torch.optim.SGD(model.parameters(), 0.1), images, torch.arange(9))
    assert not torch.equal(before, model[4].weight)
    figures = audited(images, model)
    assert figures["estimates"]["cue/patch/effect_added"][4] == 2
    assert figures["estimates"]["cue/patch/effect_removed"][4] == 4


@pytest.mark.data
def test_the_net_learns_the_later_blocks_alone(shared_data):
    model = isic_patches.build(shared_data / "weights", seed=0)
    learns = {name.split(".")[1] for name, one in model.named_parameters() if one.requires_grad and "features" in name}
    assert learns == {str(block) for block in range(isic_patches.FROZEN, 19)}
    assert not any(module.training for module in model.modules())
    options = argparse.Namespace(cache=Path("cache"), epochs=1, draws=2)
    assert isic_patches._file("half", 0, options) == Path("cache/half_0_1_2.json")


@pytest.mark.data
def test_the_net_with_its_own_weights_answers_as_it_should(shared_data):
    # A wrong padding would cost a few points of probability, and nobody would see why.
    prepare = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor(),
        transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(_isic.MEAN, _isic.STD),
    ])  # fmt: skip
    photos = [Image.open(shared_data / "papers_photos" / f"{name}.jpg") for name in ("spoonbill", "flamingo")]
    images = torch.stack([prepare(photo.convert("RGB")) for photo in photos])
    probes = ProbeSet.from_tensors(images, [129, 130], mean=_isic.MEAN, std=_isic.STD)
    record = Auditor(probes, [Why()], novelty=[]).audit(mobilenet_v2(shared_data / "weights"))

    assert record.predictions.tolist() == [129, 130]
    assert record.confidences.tolist() == pytest.approx([0.98, 0.63], abs=0.01)
