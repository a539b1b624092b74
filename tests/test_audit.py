"""One audit: what the record holds, what is refused, and that the model is left as it was."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from tests.tiny import CLASSES, centre_masks, image_steps, pictures, random_streams, read_events, tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    ConfigurationError,
    GradCAM,
    HiResCAM,
    ProbeSet,
    TargetLayerError,
    TensorBoardSink,
    WhatIfNot,
    Why,
    WhyNotCertain,
    WhyRatherThan,
)


def numbers(estimate):
    return [math.nan if part is None else part for part in estimate]


def same_records(first, second, tolerance=1e-6):
    """Tensors and metrics alike, whatever the times were."""
    for name in ("outputs", "predictions", "confidences", "facts", "foils", "heatmaps"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=tolerance, atol=tolerance)
    for name, scores in first.scores.items():
        torch.testing.assert_close(scores, second.scores[name], rtol=tolerance, atol=tolerance)
    assert first.titles == second.titles
    assert first.metrics.keys() == second.metrics.keys()
    for key, estimate in first.metrics.items():
        expected = pytest.approx(numbers(second.metrics[key]), rel=1e-4, abs=1e-6, nan_ok=True)
        assert numbers(estimate) == expected, key


# ---- the record


def test_record_holds_every_probe_and_every_question():
    record = Auditor(tiny_probes(6)).audit(tiny_net(), step=40, epoch=3)

    assert (record.step, record.epoch, record.layer) == (40, 3, "2")
    assert record.questions == ("why", "why_rather_than", "why_not_certain")
    assert record.outputs.shape == (6, 3)
    assert record.heatmaps.shape == (3, 6, 8, 8)
    assert record.facts.shape == record.foils.shape == (3, 6)
    assert record.scores["gradnorm"].shape == (6,)
    assert [len(titles) for titles in record.titles] == [6, 6, 6]
    assert record.fingerprint == tiny_probes(6).fingerprint
    assert record.notes == ()
    assert set(record.seconds) == {"explain", "try", "judge"}


def test_predictions_and_confidences_are_those_of_the_model_in_eval_mode():
    net, probes = tiny_net().train(), tiny_probes()
    record = Auditor(probes).audit(net)
    with torch.no_grad():
        probabilities = copy.deepcopy(net).eval()(probes.images).softmax(dim=1)

    torch.testing.assert_close(record.confidences, probabilities.amax(dim=1))
    assert torch.equal(record.predictions, probabilities.argmax(dim=1))
    assert torch.equal(record.truth, probes.labels)
    accuracy = record.metrics["accuracy"]
    assert accuracy.value == pytest.approx((record.predictions == probes.labels).double().mean().item())
    assert accuracy.chance == pytest.approx(1 / 3)
    assert record.metrics["confidence"].value == pytest.approx(record.confidences.mean().item())


def test_titles_name_the_classes_asked_about():
    record = Auditor(tiny_probes()).audit(tiny_net())
    ranking = record.outputs.argsort(dim=1, descending=True)

    for probe in range(6):
        fact, foil = (CLASSES[index] for index in ranking[probe, :2].tolist())
        assert [titles[probe] for titles in record.titles] == [
            f"Why {fact}?",
            f"Why {fact}, rather than {foil}?",
            f"Why not {fact} with 100 % confidence?",
        ]
    assert record.headings == ("Why P?", "Why P, rather than Q?", "Why not P with 100 % confidence?")


def test_facts_and_foils_are_the_classes_asked_about():
    probes = tiny_probes()
    record = Auditor(probes, [Why("label"), WhyRatherThan(foil=1, fact=0), WhatIfNot(2)]).audit(tiny_net())

    assert torch.equal(record.facts, torch.stack([probes.labels, torch.full((6,), 0), torch.full((6,), 2)]))
    assert torch.equal(record.foils, torch.stack([torch.full((6,), -1), torch.full((6,), 1), torch.full((6,), -1)]))


def test_heatmap_of_a_net_with_global_average_pooling_sums_up_to_its_logit():
    """CAM's identity, an oracle for the whole chain."""
    net = tiny_net()
    record = Auditor(tiny_probes(), [Why(of=1)]).audit(net)
    torch.testing.assert_close(record.heatmaps[0].sum(dim=(1, 2)) + net[6].bias[1].detach(), record.outputs[:, 1])


def test_unlabelled_probes_have_all_but_accuracy():
    record = Auditor(tiny_probes(labels=None)).audit(tiny_net())

    assert record.truth is None
    assert "accuracy" not in record.metrics
    assert {"confidence", "why/relevance_mass/core"} <= record.metrics.keys()


def test_regression_probes_are_asked_about_values():
    targets = torch.linspace(0, 1, 6)
    net = tiny_net(classes=1)
    record = Auditor(tiny_probes(labels=None, class_names=None, targets=targets)).audit(net)

    assert record.questions == ("why", "why_value_rather_than_target")
    assert record.outputs.shape == (6, 1)
    assert torch.equal(record.predictions, record.outputs[:, 0])
    assert record.confidences.isnan().all()
    assert record.facts.eq(-1).all()
    assert record.titles[1][5] == f"Why {float(record.predictions[5]):.3g}, rather than 1?"
    error = (record.predictions - targets).abs().double().mean().item()
    assert record.metrics["absolute_error"].value == pytest.approx(error)
    assert not {"accuracy", "confidence", "switched"} & record.metrics.keys()
    # d (y - t)^2 = 2 (y - t) dy
    expected = 2 * (record.predictions - targets)[:, None, None] * record.heatmaps[0]
    torch.testing.assert_close(record.heatmaps[1], expected)


@pytest.mark.parametrize("ends_in_sigmoid", [False, True])
def test_one_sigmoid_output_is_read_as_two_classes(ends_in_sigmoid):
    net = tiny_net(classes=1)
    if ends_in_sigmoid:
        net.append(nn.Sigmoid())
    probes = tiny_probes(labels=torch.arange(6) % 2, class_names=("no", "yes"))
    record = Auditor(probes).audit(net)

    with torch.no_grad():
        positive = torch.sigmoid(nn.Sequential(*list(copy.deepcopy(net))[:7]).eval()(probes.images)[:, 0])
    torch.testing.assert_close(record.outputs.softmax(dim=1)[:, 1], positive)
    assert all(title in {"Why no?", "Why yes?"} for title in record.titles[0])
    assert (len(record.notes) == 1) is ends_in_sigmoid


def test_probabilities_are_explained_by_their_logarithm_and_noted():
    net = tiny_net()
    plain = Auditor(tiny_probes()).audit(net)
    record = Auditor(tiny_probes()).audit(nn.Sequential(net, nn.Softmax(dim=1)))

    torch.testing.assert_close(record.outputs, plain.outputs.log_softmax(dim=1))
    assert "probabilities" in record.notes[0]
    # Cross-entropies do not change by a constant on all logits, so neither do these two maps.
    torch.testing.assert_close(record.heatmaps[1:], plain.heatmaps[1:])


def test_net_without_a_linear_head_has_no_novelty_and_a_note_says_so():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    record = Auditor(tiny_probes()).audit(net)

    assert record.scores == {}
    assert not any(key.startswith("novelty/") for key in record.metrics)
    assert [note for note in record.notes if "Novelty was left out" in note]


def test_metrics_cover_every_question_and_region():
    keys = Auditor(tiny_probes()).audit(tiny_net()).metrics.keys()

    expected = {
        f"{question}/{metric}/{region}"
        for question in ("why", "why_rather_than", "why_not_certain")
        for metric in ("relevance_mass", "relevance_lift", "relevance_rank", "soft_iou")
        for region in ("core", "spurious")
    }
    assert keys == expected | {"accuracy", "confidence", "novelty/gradnorm"}


def test_probes_without_masks_have_no_localization():
    keys = Auditor(tiny_probes(masks=None)).audit(tiny_net()).metrics.keys()
    assert keys == {"accuracy", "confidence", "novelty/gradnorm"}


def test_relevance_mass_of_a_region_and_of_its_rest_sum_to_one_and_chance_is_the_area():
    metrics = Auditor(tiny_probes()).audit(tiny_net()).metrics
    inside, outside = (metrics[f"why_not_certain/relevance_mass/{region}"] for region in ("core", "spurious"))

    assert inside.valid > 0
    assert inside.value + outside.value == pytest.approx(1)
    assert inside.chance == pytest.approx(16 / 64)


# ---- from audit to audit


def test_second_audit_of_an_unchanged_model_finds_no_drift():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    first, second = auditor.audit(net), auditor.audit(net)

    assert not any("drift" in key or key == "switched" for key in first.metrics)
    assert second.metrics["switched"].value == 0
    for question in second.questions:
        assert second.metrics[f"{question}/drift"].value == pytest.approx(0, abs=1e-12)
    assert second.metrics["novelty/gradnorm/rank_correlation"].value == pytest.approx(1)
    of_memory = ("drift", "switched", "rank_correlation")
    same_records_without_memory = {key for key in second.metrics if not key.endswith(of_memory)}
    assert same_records_without_memory == first.metrics.keys()


def test_drift_is_two_and_every_prediction_switches_when_the_head_is_negated():
    net = tiny_net(classes=2)
    auditor = Auditor(tiny_probes(labels=torch.arange(6) % 2, class_names=("no", "yes")), [Why(of=0)])
    auditor.audit(net)
    with torch.no_grad():
        net[6].weight.neg_()
        net[6].bias.neg_()
    second = auditor.audit(net)

    assert second.metrics["why_0/drift"].value == pytest.approx(2)
    assert second.metrics["switched"].value == 1


def test_forget_begins_anew():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    first = auditor.audit(net)
    auditor.forget()
    assert auditor.audit(net).metrics == first.metrics


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_survives_a_file_that_may_hold_plain_data_only():
    before, after = tiny_net(seed=0), tiny_net(seed=1)
    there, here = Auditor(tiny_probes()), Auditor(tiny_probes())
    there.audit(before)
    here.load_state_dict(saved_and_loaded(there.state_dict()))

    same_records(here.audit(after), there.audit(after), tolerance=0)


def test_state_before_the_first_audit_can_be_saved_too():
    auditor = Auditor(tiny_probes())
    auditor.load_state_dict(saved_and_loaded(Auditor(tiny_probes()).state_dict()))
    assert "why/drift" not in auditor.audit(tiny_net()).metrics


@pytest.mark.parametrize(
    "other",
    [Auditor(tiny_probes(seed=8)), Auditor(tiny_probes(), [Why()])],
    ids=["other probes", "other questions"],
)
def test_state_of_another_audit_is_ignored(other):
    other.audit(tiny_net())
    auditor = Auditor(tiny_probes())
    auditor.load_state_dict(other.state_dict())
    assert not any("drift" in key for key in auditor.audit(tiny_net()).metrics)


def test_memory_scale_of_a_run_survives_the_state():
    """A map that is tiny against earlier ones counts as dead, also after a resume."""
    auditor, net = Auditor(tiny_probes(), [Why()]), tiny_net()
    auditor.audit(net)
    resumed = Auditor(tiny_probes(), [Why()])
    resumed.load_state_dict(saved_and_loaded(auditor.state_dict()))
    with torch.no_grad():
        net[6].weight.mul_(1e-12)

    assert resumed.audit(net).metrics["why/relevance_mass/core"].degenerate == 6
    assert Auditor(tiny_probes(), [Why()]).audit(net).metrics["why/relevance_mass/core"].degenerate < 6


def test_another_architecture_is_looked_at_anew():
    auditor = Auditor(tiny_probes())
    assert auditor.audit(tiny_net()).layer == "2"
    deeper = nn.Sequential(nn.Identity(), *tiny_net())
    assert auditor.audit(deeper).layer == "3"


def test_another_width_is_looked_at_anew():
    auditor = Auditor(tiny_probes())
    auditor.audit(tiny_net())
    with pytest.raises(ConfigurationError, match="below 2"):
        auditor.audit(tiny_net(classes=2))


# ---- one pass, in chunks


@pytest.mark.parametrize("chunk_size", [1, 7])
def test_chunks_do_not_change_the_record(chunk_size):
    probes, net = tiny_probes(18), tiny_net()
    whole = Auditor(probes, chunk_size=32).audit(net)
    same_records(Auditor(probes, chunk_size=chunk_size).audit(net), whole)


@pytest.mark.parametrize(("chunk_size", "passes"), [(32, 1), (7, 3), (1, 18)])
def test_one_forward_pass_a_chunk_answers_all_questions(chunk_size, passes):
    net = tiny_net()
    auditor = Auditor(
        tiny_probes(18),
        [Why(), Why("label"), WhyRatherThan(), WhyNotCertain(), WhatIfNot(), Why(0), Why(1), Why(2)],
        chunk_size=chunk_size,
    )
    auditor.prepare(net)
    calls = []
    net[0].register_forward_hook(lambda _module, given, _output: calls.append(len(given[0])))
    auditor.audit(net)

    assert len(calls) == passes
    assert sum(calls) == 18


def test_progress_is_told_after_each_chunk():
    done = []
    Auditor(tiny_probes(18), chunk_size=7).audit(tiny_net(), on_progress=done.append)
    assert done == [7, 14, 18]


# ---- what is refused


class Diverged(nn.Module):
    """Not finite for images with a pixel of 1, as at the edge of divergence."""

    def __init__(self, value):
        super().__init__()
        self.net, self.value = tiny_net(), value

    def forward(self, images):
        outputs = self.net(images)
        return torch.where((images.amax(dim=(1, 2, 3)) >= 1)[:, None], self.value, outputs)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_output_is_an_error_that_names_the_probe(value):
    images = pictures()
    images[4, 0, 0, 0] = 1.0
    probes = ProbeSet.from_tensors(images, torch.arange(6) % 3, names=[f"photo {index}" for index in range(6)])
    with pytest.raises(AuditError, match=r"1 of 6 probes, first for 'photo 4'"):
        Auditor(probes, chunk_size=2).audit(Diverged(value))


def test_audit_after_a_failed_one_compares_with_the_last_good_one():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    auditor.audit(net)
    bias = net[6].bias.detach().clone()
    with torch.no_grad():
        net[6].bias.fill_(math.nan)
    with pytest.raises(AuditError):
        auditor.audit(net)
    with torch.no_grad():
        net[6].bias.copy_(bias)
    assert auditor.audit(net).metrics["why/drift"].value == pytest.approx(0, abs=1e-12)


def test_label_beyond_the_classes_is_an_error_that_names_the_probe():
    probes = tiny_probes(labels=[0, 1, 0, 5, 1, 0], class_names=None, names=list("abcdef"))
    with pytest.raises(ConfigurationError, match=r"below 3, .*'d' has label 5"):
        Auditor(probes).prepare(tiny_net())


def test_unknown_layer_suggests_the_nearest():
    net = nn.Sequential()
    net.add_module("backbone", tiny_net())
    with pytest.raises(TargetLayerError, match=r"Did you mean .*'backbone.2'"):
        Auditor(tiny_probes(), explainer=GradCAM("backbon.2")).prepare(net)


def test_question_about_a_class_the_model_lacks_is_refused():
    with pytest.raises(ConfigurationError, match="below 3"):
        Auditor(tiny_probes(), [Why(of=3)]).prepare(tiny_net())


def test_question_about_labels_of_unlabelled_probes_is_refused_at_construction():
    with pytest.raises(ConfigurationError, match="labels"):
        Auditor(tiny_probes(labels=None), [Why("label")])


@pytest.mark.parametrize("probes", [pictures(), None], ids=["tensor", "None"])
def test_something_else_than_a_probe_set_is_refused(probes):
    with pytest.raises(ConfigurationError, match="ProbeSet"):
        Auditor(probes)


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True])
def test_chunk_size_must_be_a_count(chunk_size):
    with pytest.raises(ConfigurationError, match="chunk_size"):
        Auditor(tiny_probes(), chunk_size=chunk_size)


def test_images_that_the_model_cannot_take_are_refused_with_advice():
    with pytest.raises(ConfigurationError, match="size and normalisation"):
        Auditor(tiny_probes()).prepare(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(3)))


# ---- degenerate maps


def test_maps_of_a_dead_net_are_counted_and_not_averaged():
    net = tiny_net()
    auditor = Auditor(tiny_probes())
    auditor.prepare(net)
    with torch.no_grad():  # every ReLU is off: each map is exactly zero
        net[1].weight.zero_()
        net[1].bias.fill_(-1)
    record = auditor.audit(net)

    assert not record.heatmaps.any()
    mass = record.metrics["why/relevance_mass/core"]
    assert (mass.valid, mass.degenerate) == (0, 6)
    assert math.isnan(mass.value)
    assert math.isnan(mass.chance)
    assert record.metrics["confidence"].valid == 6


def test_constant_map_is_at_chance_and_not_degenerate():
    net = tiny_net()
    auditor = Auditor(tiny_probes(), [Why(of=0)])
    auditor.prepare(net)
    with torch.no_grad():  # features are 1 everywhere
        net[1].weight.zero_()
        net[1].bias.fill_(1)
        net[6].weight.fill_(1)
    metrics = auditor.audit(net).metrics

    assert metrics["why_0/relevance_mass/core"].value == pytest.approx(metrics["why_0/relevance_mass/core"].chance)
    assert metrics["why_0/relevance_lift/core"].value == pytest.approx(1)
    assert metrics["why_0/relevance_mass/core"].degenerate == 0


def test_dead_probe_is_left_out_of_the_mean_of_the_others():
    images = pictures()
    images[2] = 0.0  # without biases a black image gives a map of zeros
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(4, 2, bias=False))
    torch.nn.init.constant_(net[4].weight, 1.0)
    masks = centre_masks()
    everyone = Auditor(ProbeSet.from_tensors(images, masks=masks), [Why(0)]).audit(net)
    others = [0, 1, 3, 4, 5]
    alive = Auditor(ProbeSet.from_tensors(images, masks=masks).select(others), [Why(0)]).audit(net)

    mass = everyone.metrics["why_0/relevance_mass/core"]
    assert (mass.valid, mass.degenerate) == (5, 1)
    assert mass.value == pytest.approx(alive.metrics["why_0/relevance_mass/core"].value)


def test_probe_without_a_region_is_neither_valid_nor_degenerate():
    masks = centre_masks()
    masks["core"][1] = False
    mass = Auditor(tiny_probes(masks=masks)).audit(tiny_net()).metrics["why_not_certain/relevance_mass/core"]
    assert mass.valid + mass.degenerate == 5


# ---- the model is left as it was


def test_global_random_streams_are_neither_read_nor_advanced():
    auditor, net = Auditor(tiny_probes()), tiny_net().train()
    before = random_streams()
    auditor.audit(net)
    assert random_streams() == before

    first = auditor.audit(net)
    torch.manual_seed(99)
    second = auditor.audit(net)
    assert torch.equal(first.heatmaps, second.heatmaps)
    assert first.metrics["confidence"] == second.metrics["confidence"]


def test_model_keeps_modes_gradients_buffers_and_hooks():
    net, probes = tiny_net().train(), tiny_probes()
    net[1].eval()
    nn.functional.cross_entropy(net(probes.images), probes.labels).backward()
    weights = copy.deepcopy(net.state_dict())
    gradients = {name: (parameter.grad, parameter.grad.clone()) for name, parameter in net.named_parameters()}
    Auditor(probes).audit(net)

    assert [module.training for module in net] == [True, False, True, True, True, True, True]
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    for name, parameter in net.named_parameters():
        assert parameter.grad is gradients[name][0]
        assert torch.equal(parameter.grad, gradients[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_surrounding_grad_mode_does_not_matter(mode):
    net = tiny_net()
    expected = Auditor(tiny_probes()).audit(net)
    with mode():
        record = Auditor(tiny_probes()).audit(net)
    same_records(record, expected, tolerance=0)
    assert not record.heatmaps.requires_grad
    assert not record.outputs.requires_grad


def train_plainly(folder, audited):
    """The plain PyTorch loop of the README."""
    torch.manual_seed(3)
    net, probes = tiny_net(), tiny_probes()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    images, labels = pictures(24, seed=5), torch.arange(24) % 3
    writer = SummaryWriter(folder) if audited else None
    auditor, sink = Auditor(probes), TensorBoardSink(writer, probes, max_panels=1) if audited else None
    torch.manual_seed(4)  # dropout and shuffling follow
    for step in range(4):
        batch = torch.randperm(24)[:8]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        if audited:
            sink.write(auditor.audit(net, step=step))
        optimizer.step()
    if audited:
        sink.close()
        writer.close()
    return net, optimizer, random_streams()


def test_plain_training_loop_is_audited_and_bit_identical(tmp_path):
    net, optimizer, streams = train_plainly(tmp_path, audited=True)
    plain_net, plain_optimizer, plain_streams = train_plainly(tmp_path, audited=False)

    assert all(torch.equal(value, plain_net.state_dict()[name]) for name, value in net.state_dict().items())
    assert streams == plain_streams
    for state, plain in zip(optimizer.state.values(), plain_optimizer.state.values(), strict=True):
        assert all(torch.equal(state[key], plain[key]) for key in plain)
    events = read_events(tmp_path)
    assert image_steps(events, "audit_panel/000_probe_000") == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("audit/why/relevance_mass/core")] == [0, 1, 2, 3]


def test_explainer_can_be_chosen():
    auditor = Auditor(tiny_probes(), [Why(0)], explainer=HiResCAM("0"))
    record = auditor.audit(tiny_net())
    assert record.layer == "0"
    assert record.layer_reason.startswith("`0`, as named")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": Why()}, "Expected `questions` to be a list of Question instances"),
        ({"explainer": GradCAM}, "Expected `explainer` to be an explainer such as GradCAM()"),
        ({"novelty": ["gradnorm"]}, "Expected `novelty` to be a list of NoveltyScore instances, but got ['gradnorm']"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_at_construction(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        Auditor(tiny_probes(), **arguments)
    assert message in str(caught.value)


def test_a_model_that_cannot_be_differentiated_is_refused_when_it_is_prepared():
    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = tiny_net(), nn.Linear(3, 3)

        def forward(self, images):
            return self.head(self.net(images).detach())

    with pytest.raises(ConfigurationError):
        Auditor(tiny_probes(), explainer=GradCAM("net.2")).prepare(Rounding())
