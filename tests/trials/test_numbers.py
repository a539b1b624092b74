"""What trials say of nets whose answer is known: texts on large objects, and a net that sees the background alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xai_callbacks import Auditor, BackgroundCue, BackgroundTrial, CueTrial, PatchCue, ProbeSet, WatermarkCue

SIZE, COUNT = 64, 40


def audited(probes, net, trial):
    return Auditor(probes, trials=[trial], novelty=[], explainers=[]).audit(net.eval())


# ---- a text hides what its ink hides, and not its box


def large_objects():
    """A disc that fills most of the picture."""
    at = torch.arange(SIZE) - (SIZE - 1) / 2
    core = ((at[:, None] / 0.9) ** 2 + at**2).sqrt() < 30
    images = 0.1 * torch.rand(COUNT, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) + 0.4 * core
    return ProbeSet.from_tensors(images, torch.arange(COUNT) % 4, masks={"core": core.expand(COUNT, -1, -1)})


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "width"), [(["PHOTO", "STOCK"], 0.9), (["up", "down"], 0.7), (["AGENCY", "STUDIO"], 1.0)]
)
def test_a_text_with_ink_on_a_fifth_of_the_object_at_most_leaves_nearly_all_probes_valid(texts, width):
    cue = WatermarkCue(texts, [0, 1], width=width)
    effect = audited(large_objects(), small_net(), CueTrial(cue)).metrics["cue/watermark/effect"]
    assert effect.valid >= 0.9 * COUNT
    assert effect.low is not None


def test_a_record_says_how_few_probes_suit_a_cue_and_why():
    probes = large_objects()
    masks = {"core": probes.masks["core"].clone(), "mark": probes.masks["core"].clone()}
    masks["mark"][:5] = False
    covers = CueTrial(PatchCue([0.9], 0, at="mark"), controls=())
    record = audited(ProbeSet.from_tensors(probes.images, probes.labels, masks=masks), small_net(), covers)
    assert record.notes == (
        "Of 40 probes 0 suit the cue 'patch', and with fewer than 30 there is no interval; 5 look the same with the "
        "cue and without; 35 would have more than a fifth of their object hidden.",
    )
    assert audited(probes, small_net(), CueTrial(PatchCue([0.9], 0), controls=())).notes == ()


# ---- a net that sees nothing but the background


class Around(nn.Module):
    """Dark or light, of the upper edge alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(2))
            self.head.bias.zero_()

    def forward(self, images):
        light = 20 * (images[:, 0, :4].mean(dim=(1, 2)) - 0.5)
        return self.head(torch.stack([-light, light], dim=1))


class Within(Around):
    """The same of the object alone, which is dark or light as the label says."""

    def forward(self, images):
        light = 20 * (images[:, 0, 12:20, 12:20].mean(dim=(1, 2)) - 0.5)
        return self.head(torch.stack([-light, light], dim=1))


def on_backgrounds(agree, count=120):
    """Objects on light or dark backgrounds, of which a share goes with the label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    light = torch.where(torch.rand(count, generator=generator) < agree, labels, 1 - labels)
    images = torch.where(light == 1, 0.8, 0.2)[:, None, None, None]
    images = images + 0.05 * torch.randn(count, 1, 32, 32, generator=generator)
    core = torch.zeros(count, 32, 32, dtype=torch.bool)
    core[:, 10:22, 10:22] = True
    images[:, :, 10:22, 10:22] = (0.4 + 0.2 * labels.float())[:, None, None, None]
    return ProbeSet.from_tensors(images.clamp(0, 1), labels, masks={"core": core}, class_names=["a", "b"])


def test_where_backgrounds_go_with_no_label_a_note_says_that_the_gap_cannot_show_their_use():
    record = audited(on_backgrounds(0.5), Around(), BackgroundTrial())
    gap = record.metrics["bg/gap"]
    assert math.isnan(gap.value) or gap.low > 0.05 or any("background" in note for note in record.notes)
    assert "BackgroundCue" in record.notes[0]


@pytest.mark.parametrize("agree", [1.0, 0.9])
def test_a_background_filled_gives_nothing_away_and_one_that_goes_with_the_label_shows_in_the_gap(agree):
    record = audited(on_backgrounds(agree), Around(), BackgroundTrial())
    assert record.metrics["fg/only_acc"].value == pytest.approx(0.5)
    assert record.metrics["bg/gap"].low > 0.5
    assert record.notes == ()
    assert audited(on_backgrounds(agree), Within(), BackgroundTrial()).metrics["fg/only_acc"].value == 1


def test_a_cue_of_the_background_tells_such_a_net_from_one_of_the_object_on_balanced_probes():
    dark_and_light = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 1, 8, 8)
    trial = CueTrial(BackgroundCue(dark_and_light, ["a", "b"]), controls=())
    found = {kind: audited(on_backgrounds(0.5), kind(), trial).metrics for kind in (Around, Within)}
    assert found[Around]["cue/background/gap"].value == 1
    assert found[Around]["cue/background/pull"].low > 0.9
    assert found[Within]["cue/background/pull"].value == 0
