"""The canary: what is planted, what it costs, what is reported, and that the model is left alone."""

from __future__ import annotations

import threading
from copy import deepcopy

import pytest
import torch
from _shapes import CLASSES, draw, net
from torch import nn

from tests.tiny import random_streams, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet
from xai_callbacks.access import Subject
from xai_callbacks.canary import Planted, Power, _Canvas, _gap_of, canary
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.interventions.cues import PasteCue, PatchCue
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.record import Estimate, summarize
from xai_callbacks.rules import AlarmRule

COLOURS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
QUICK = {"epochs": 2, "strengths": [1.0]}


class ReadsColour(nn.Module):
    """Answers by the channel that is brightest anywhere, or always by class 0."""

    def __init__(self, blind=False):
        super().__init__()
        self.blind = blind

    def forward(self, images):
        return nn.functional.one_hot(images.amax(dim=(2, 3)).argmax(dim=1) * (not self.blind), 3).float()


def canvas(labels, cue=None, **fields):
    labels = torch.as_tensor(labels)
    images = ProbeSet.from_tensors(torch.zeros(len(labels), 3, 12, 12), labels, **fields)
    return _Canvas(images, PixelScale.of(images), cue or PatchCue(COLOURS, [0, 1, 2]), seed=0)


def row(gap, state, strength=0.9):
    return Planted(strength, Estimate(gap, gap - 0.02, gap + 0.02, None, 64, 0), Estimate(gap, 0, 1, 0, 64, 0), state)


def shapes(count, seed):
    pictures = draw(count, seed)
    return ProbeSet.from_tensors(
        pictures.images,
        pictures.labels,
        masks={"core": pictures.core},
        class_names=CLASSES,
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )


# ---- what is planted


def drawn(labels, strength, cue=None):
    return canvas(labels, cue).drawn(strength, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strength", [1 / 3, 0.6, 1.0])
def test_an_image_has_the_cue_of_its_class_as_often_as_the_strength_says_and_else_each_other_equally_often(strength):
    labels = torch.arange(3000) % 3
    shift = (drawn(labels, strength) - labels) % 3
    shares = torch.bincount(shift, minlength=3) / 3000
    torch.testing.assert_close(shares, torch.tensor([strength, *[(1 - strength) / 2] * 2]), rtol=0, atol=0.001)


def test_what_has_the_cue_of_its_class_keeps_it_at_greater_strength():
    labels = torch.arange(300) % 3
    weak, strong = drawn(labels, 0.5), drawn(labels, 0.8)
    assert (strong == labels)[weak == labels].all()
    assert torch.equal(strong[strong != labels], weak[strong != labels])


def test_images_of_a_class_without_a_variant_may_have_any():
    variants = drawn(torch.full((600,), 2), 1.0, PatchCue(COLOURS[:2], [0, 1]))
    assert variants.bincount().tolist() == [300, 300]


def test_the_cue_is_painted_in_pixels_whatever_the_normalisation():
    images = torch.zeros(3, 3, 12, 12) - 1
    probes = ProbeSet.from_tensors(images, [0, 1, 2], mean=[0.5] * 3, std=[0.5] * 3)
    painter = _Canvas(probes, PixelScale.of(probes), PatchCue(COLOURS, [0, 1, 2]), seed=0)
    painted = painter.painted(torch.arange(3), torch.arange(3))
    assert torch.equal(painted.amax(dim=(2, 3)), 2 * torch.tensor(COLOURS) - 1)
    assert (painted != images).any(dim=1).flatten(1).sum(dim=1).tolist() == [4, 4, 4]  # round(.16 * 12) squared


# ---- what it costs


def test_the_gap_of_a_model_that_reads_the_cue_is_one_and_of_one_that_is_blind_zero():
    images = canvas(torch.arange(30) % 3)
    seen, blind = (_gap_of(Subject(ReadsColour(blind=each)), images, 7) for each in (False, True))
    assert seen[:3] == summarize(torch.ones(30), bounds=(-1.0, 1.0))[:3]
    assert blind[:3] == summarize(torch.zeros(30), bounds=(-1.0, 1.0))[:3]


def test_the_gap_counts_only_images_of_classes_with_a_cue_and_each_variant_of_a_class():
    cue = PatchCue([[1.0, 0, 0], [0.6, 0, 0], [0, 1.0, 0]], [0, 0, 1])
    found = _gap_of(Subject(ReadsColour()), canvas(torch.arange(90) % 3, cue), 16)
    assert (found.value, found.valid) == (1.0, 60)


# ---- what is reported


def test_the_weakest_is_the_smallest_gap_down_to_which_all_raised_an_alarm():
    power = Power((row(0.1, "alarm"), row(0.2, "watch"), row(0.3, "alarm"), row(0.5, "alarm")), 64)
    assert power.weakest == power.rows[2]
    assert power.missed == power.rows[1]
    assert power.sentence == (
        "With these 64 probes the audit would have seen a shortcut that costs 0.30 of accuracy or more; it missed one "
        "of 0.20."
    )


def test_gaps_count_not_strengths():
    power = Power((row(0.5, "alarm", 0.4), row(0.1, "no evidence", 1.0)), 64)
    assert power.weakest == power.rows[0]


def test_a_cue_that_no_copy_took_up_is_no_shortcut_that_was_missed():
    power = Power((row(0.0, "no evidence"), row(-0.01, "no evidence"), row(0.2, "alarm")), 64)
    assert power.missed is None
    assert power.sentence.endswith("0.20 of accuracy or more; it missed none that was planted.")
    nothing = Power(power.rows[:2], 64)
    assert nothing.weakest is None
    assert nothing.sentence.startswith("Nothing is known")


def test_a_miss_of_the_largest_gap_leaves_nothing_that_would_have_been_seen():
    power = Power((row(0.2, "alarm"), row(0.4, "watch")), 32)
    assert power.weakest is None
    assert "would have seen no shortcut that was planted, not even one that costs 0.40" in power.sentence


def test_the_table_has_a_line_a_shortcut():
    rows = (
        row(0.2, "alarm"),
        Planted(1.0, Estimate(-0.001, None, None, None, 3, 0), row(0.1, "alarm").effect, "watch"),
    )
    assert Power(rows, 64).table().splitlines() == [
        "strength  gap                   effect                state",
        "0.90      0.20 [0.18, 0.22]     0.20 [0.00, 1.00]     alarm",
        "1.00      0.00                  0.10 [0.00, 1.00]     watch",
    ]


# ---- the whole chain


@pytest.fixture(scope="module")
def powers():
    """Powers with 32 and with 256 probes of the same copies."""
    probes, model = shapes(256, 3), net(0)
    settings = {"strengths": (1.0, 0.25, 0.45, 0.7), "unseen": shapes(200, 5), "epochs": 6, "learning_rate": 3e-3}
    return {count: canary(model, shapes(256, 1), probes.select(range(count)), **settings) for count in (32, 256)}


@pytest.mark.slow
def test_a_stronger_cue_costs_more_and_is_seen(powers):
    rows = powers[256].rows
    assert [planted.strength for planted in rows] == [0.25, 0.45, 0.7, 1.0]
    gaps, effects = ([getattr(planted, key).value for planted in rows] for key in ("gap", "effect"))
    assert gaps == sorted(gaps)
    assert effects == sorted(effects)
    assert rows[-1].state == "alarm"
    assert rows[-1].gap.low > 0.2


@pytest.mark.slow
def test_a_cue_that_tells_nothing_raises_no_alarm(powers):
    for power in powers.values():
        assert power.rows[0].state == "no evidence"
        assert abs(power.rows[0].gap.value) < 0.1


@pytest.mark.slow
def test_more_probes_see_no_less(powers):
    few, many = powers[32], powers[256]
    assert [planted.gap for planted in few.rows] == [planted.gap for planted in many.rows]
    assert many.weakest.gap.value <= few.weakest.gap.value
    assert (many.rows[-1].effect.high - many.rows[-1].effect.low) < (few.rows[-1].effect.high - few.rows[-1].effect.low)
    assert f"With these {many.probes} probes" in many.sentence


# ---- the model is left alone


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [None if each.grad is None else each.grad.clone() for each in model.parameters()],
        [each.requires_grad for each in model.parameters()],
    )


@pytest.mark.parametrize("surrounding", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_and_the_random_streams_are_as_they_were(surrounding):
    model, probes = tiny_net().train(), tiny_probes(30)
    model[1].eval()
    model[0].bias.requires_grad_(False)
    nn.functional.cross_entropy(model(probes.images), probes.labels).backward()
    before, streams, given = snapshot(model), random_streams(), probes.images.clone()
    with surrounding():
        canary(model, probes, probes, **QUICK)
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    assert random_streams() == streams
    assert torch.equal(probes.images, given)


def test_equal_seeds_give_equal_results_whatever_the_random_state():
    model, probes = tiny_net(), tiny_probes(30)
    first, second, other = (
        canary(model, probes, probes, **QUICK, learning_rate=0.05, seed=seed) for seed in (0, 0, 1) if torch.rand(1) < 2
    )
    assert first == second
    assert first.rows[0].effect != other.rows[0].effect


def test_frozen_parameters_stay_frozen_and_a_single_sigmoid_output_will_do():
    model, probes = tiny_net(classes=1), tiny_probes(30, labels=torch.arange(30) % 2, class_names=None)
    model[0].requires_grad_(False)
    found = canary(model, probes, probes, **QUICK, learning_rate=0.05)
    assert found.rows[0].effect.valid > 0


def test_a_part_of_a_module_and_of_its_output_can_be_chosen():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = tiny_net()

        def forward(self, images):
            raise NotImplementedError

    probes = tiny_probes(30)
    auditor = Auditor(probes, model="classifier", output=lambda logits: logits)
    chosen = canary(Holder(), probes, auditor, **QUICK)
    assert chosen == canary(tiny_net(), probes, probes, **QUICK)


def test_grey_images_have_grey_cues():
    probes = ProbeSet.from_tensors(torch.rand(32, 1, 8, 8), torch.arange(32) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    assert canary(model, probes, probes, **QUICK, learning_rate=0.1).rows[0].effect.valid > 16


def test_a_model_that_can_see_nothing_but_the_cue_takes_it_up_whole_and_the_rule_says_what_of_it_is_an_alarm():
    probes = ProbeSet.from_tensors(0.3 * torch.rand(60, 3, 12, 12), torch.arange(60) % 3)
    model = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    called = []
    usual, strict = (
        canary(
            model,
            probes,
            probes,
            strengths=[1 / 3, 1.0],
            learning_rate=0.3,
            rule=AlarmRule(threshold, hook=called.append),
        )
        for threshold in (0.05, 0.9999)
    )
    assert [planted.state for planted in usual.rows] == ["no evidence", "alarm"]
    gap = usual.rows[1].gap
    assert (gap.value, gap.high) == (1.0, 1.0)
    assert min(gap.low, usual.rows[1].effect.low) > 0.8
    assert [planted.effect for planted in usual.rows] == [planted.effect for planted in strict.rows]
    assert strict.rows[1].state == "no evidence"
    assert strict.weakest is None
    assert called == []


# ---- messages


def uncopyable():
    model = tiny_net()
    model.lock = threading.Lock()
    return model


def blind():
    model = tiny_net()
    forward = model.forward
    model.__class__ = type("Frozen", (type(model),), {"forward": lambda _, images: forward(images).detach()})
    return model


REGRESSION = ProbeSet.from_tensors(torch.rand(30, 3, 8, 8), targets=torch.rand(30))
SEVERAL = tiny_probes(30, labels=torch.eye(3, dtype=torch.int64)[torch.arange(30) % 3])
NUMBERED = tiny_probes(30, labels=torch.arange(30) % 6, class_names=None)
UNLABELLED = tiny_probes(30, labels=None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"probes": tiny_probes(29)},
            "at least 30 probes to watch 'canary', but got 29: with fewer there is no interval",
        ),
        ({"probes": REGRESSION}, "probes with one label each for `canary`, but got regression probes"),
        ({"training": REGRESSION}, "one label each for `canary`, but got regression"),
        ({"unseen": SEVERAL}, "one label each for `canary`, but got multi-label"),
        ({"training": UNLABELLED}, "`training` to have labels, but got none"),
        ({"probes": UNLABELLED}, "`unseen` to have labels, but got none. Label the probes, or pass others"),
        ({"training": torch.rand(30, 3, 8, 8)}, "`training` to be a ProbeSet, but got Tensor"),
        ({"training": tiny_probes(6, labels=[0] * 6)}, "`cue` to point to two classes or more"),
        ({"training": NUMBERED, "cue": PatchCue(COLOURS, [0, 1, 2])}, "labels below 3, the number of classes"),
        ({"cue": PatchCue(COLOURS[0], 0)}, r"variants for classes \[0\]"),
        ({"cue": PatchCue(COLOURS, [3, 4, 5])}, "index of a class below 3"),
        ({"cue": PasteCue("cat", region="core")}, "`cue` to be one that is painted"),
        ({"strengths": []}, r"`strengths` to be a list of numbers in \(0, 1\], but got \[\]"),
        ({"strengths": [0.5, 1.5]}, "`strengths` to be a list of numbers"),
        ({"strengths": 0.5}, "`strengths` to be a list"),
        ({"epochs": 1}, "`epochs` to be an integer of 2 or more, but got 1"),
        ({"probes": Auditor(tiny_probes(30), chunk_size=1)}, "Batch normalisation needs two images"),
        ({"model": uncopyable()}, "one that copy.deepcopy can copy, but got TinyNet"),
        ({"model": blind()}, "outputs without a gradient"),
    ],
)
def test_what_does_not_suit_is_refused(changed, message):
    given = {"model": tiny_net(), "training": tiny_probes(30), "probes": tiny_probes(30), **QUICK, **changed}
    with pytest.raises(ConfigurationError, match=message):
        canary(**given)


def test_a_copy_that_diverges_is_told_and_the_model_kept():
    model, probes = tiny_net(), tiny_probes(30)
    weights = deepcopy(model.state_dict())
    with pytest.raises(AuditError, match="diverged; look at the loss and the learning rate"):
        canary(model, probes, probes, **QUICK, learning_rate=1e30)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
