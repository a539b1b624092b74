"""Several labels and several values in real trainers, read back from TensorBoard's own files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import PACKAGES, TinyModule, caught, module_class, trainer
from tests.tiny import centre_masks, image_steps, pictures, read_events, scalar_steps, tiny_net
from xai_callbacks import (
    AuditCallback,
    Auditor,
    ConfigurationError,
    CueTrial,
    Gallery,
    GradCAM,
    GroupAccuracy,
    MapClusters,
    Occlusion,
    OutputError,
    PatchCue,
    ProbeSet,
    RegionTrial,
    ShortcutMonitor,
    Why,
    WhyValueRatherThan,
)
from xai_callbacks.gallery.words import answer, truth

LABELS = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [-1, 1, 0], [-1, -1, -1]])
NAMES = ("rain", "snow", "fog")
VALUES = ("blur", "grain of film")
STEPS = [0, 3, 7, 11]


def weather(count=6, **fields):
    labels = LABELS.repeat(-(-count // 6), 1)[:count]
    given = {"labels": labels, "class_names": NAMES, "masks": centre_masks(count), **fields}
    return ProbeSet.from_tensors(pictures(count), **given)


def film(count=6, **fields):
    targets = torch.rand(count, 2, generator=torch.Generator().manual_seed(2))
    given = {"targets": targets, "target_names": VALUES, "masks": centre_masks(count), **fields}
    return ProbeSet.from_tensors(pictures(count), **given)


def net_of(outputs):
    """Without dropout, so that the weights of a run can be looked at again."""
    net = tiny_net(classes=outputs)
    net[5].p = 0.0
    return net


def module_of(name, loss, net):
    class Module(module_class(name)):
        def training_step(self, batch, batch_idx):
            return loss(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", loss(self(batch[0]), batch[1]))

    return Module(net)


def fit(folder, callback, targets, loss, *, name="pytorch_lightning", net=None, **options):
    net = net_of(targets.shape[1]) if net is None else net
    data = DataLoader(TensorDataset(pictures(16, seed=5), targets), batch_size=4)
    module = module_of(name, loss, net)
    one = trainer(folder, [callback], name, **{"max_epochs": 3, "logger": "tensorboard", **options})
    one.fit(module, data, data)
    return one, module


def fit_labels(folder, callback, **given):
    targets = (torch.rand(16, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    return fit(folder, callback, targets, nn.functional.binary_cross_entropy_with_logits, **given)


def fit_values(folder, callback, **given):
    targets = torch.rand(16, 2, generator=torch.Generator().manual_seed(1))
    return fit(folder, callback, targets, nn.functional.mse_loss, **given)


def last(events, tag):
    return events.Scalars(tag)[-1].value


def outputs_of(module, probes):
    with torch.no_grad():
        return module.net.eval()(probes.images)


# ---- several labels


@pytest.mark.parametrize("name", PACKAGES)
def test_several_labels_are_audited_and_written(tmp_path, name):
    probes = weather()
    callback = AuditCallback(probes, max_panels=3, on_error="raise")
    one, module = fit_labels(tmp_path, callback, name=name)
    events = read_events(tmp_path / "tb")

    tags = set(events.Tags()["scalars"])
    regions = [
        f"{metric}/{region}" for metric in ("relevance_mass", "relevance_lift") for region in ("core", "spurious")
    ]
    wanted = {f"audit/gradcam/{question}/{key}" for question in ("why", "why_rather_than") for key in regions}
    wanted |= {f"audit/{key}" for key in ("accuracy", "exact_match", "confidence")}
    assert wanted <= tags
    assert not [tag for tag in tags if "absolute_error" in tag or tag.endswith("accuracy/chance")]
    for tag in ("audit/accuracy", "audit/exact_match", "audit/confidence", "audit/gradcam/why/relevance_mass/core"):
        assert scalar_steps(events, tag) == STEPS
    assert scalar_steps(events, "audit/switched") == STEPS[1:]

    outputs = outputs_of(module, probes)
    said, known = outputs > 0, LABELS != -1
    right = ((said == (LABELS == 1)) & known).sum(dim=1) / known.sum(dim=1)
    assert last(events, "audit/accuracy") == pytest.approx(float(right[:5].mean()))
    assert last(events, "audit/exact_match") == pytest.approx(float((right[:5] == 1).float().mean()))
    assert last(events, "audit/confidence") == pytest.approx(float(outputs.sigmoid().amax(dim=1).mean()), abs=1e-6)
    # One probe has no known label.
    assert callback.last_record.metrics["accuracy"].degenerate == 1
    assert float(one.callback_metrics["audit/exact_match"]) == pytest.approx(last(events, "audit/exact_match"))


def test_panels_of_several_labels_say_what_is_known_and_what_was_found(tmp_path):
    probes = weather()
    callback = AuditCallback(probes, max_panels=6, on_error="raise")
    fit_labels(tmp_path, callback)
    events, record = read_events(tmp_path / "tb"), callback.last_record
    drawn = {picture.tag: picture for picture in Gallery(probes, max_panels=6).draw(callback.history)}

    assert [truth(probes, index) for index in range(6)] == [
        "is rain, fog",
        "is snow",
        "is none of the labels",
        "is rain, snow, fog",
        "is snow",
        "",
    ]
    for index in range(6):
        found = [NAMES[label] for label in record.predictions[index].nonzero()[:, 0].tolist()]
        caption = answer(probes, record, index)
        assert [part.partition(" (")[0] for part in caption.split(", ")] == (found or caption.split(", ")) or (
            not found and caption.startswith("none, at most ")
        )
        tag = f"audit_panel/{index:03d}_probe_{index:03d}"
        assert image_steps(events, tag) == image_steps(events, tag.replace("panel", "filmstrip")) == STEPS
        assert events.Images(tag)[-1].encoded_image_string == drawn[tag].encoded


def test_a_cue_and_a_region_are_tried_on_several_labels_by_the_monitor(tmp_path):
    probes = weather(36)
    cue = PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=["rain", "fog"], size=0.4)
    monitor = ShortcutMonitor(
        probes, cue, on_error="raise", max_panels=1,
        rules=["cue/patch/effect < 0.9", "exact_match < 0.9", "accuracy > 0.01"],
    )  # fmt: skip
    one, _ = fit_labels(tmp_path, monitor, max_epochs=2)
    events = read_events(tmp_path / "tb")

    assert scalar_steps(events, "audit/cue/patch/effect") == [0, 3, 7]
    assert scalar_steps(events, "audit/alarm/cue/patch") == [0, 3, 7]
    assert monitor.last_record.failed == ()
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("audit/cluster")]
    assert sum(float(one.callback_metrics[f"audit/expectation/{what}"]) for what in ("passed", "undecided")) == 3
    effect = monitor.last_record.metrics["cue/patch/effect"]
    assert effect.valid == 36
    assert effect.low < effect.value < effect.high


def test_what_wants_one_label_each_is_refused_of_several_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="Expected probes with one label each for `MapClusters"):
        Auditor(weather(), measures=[MapClusters()])
    with pytest.raises(ConfigurationError, match="Expected probes with one label each for `GroupAccuracy`"):
        fit_labels(tmp_path, AuditCallback(weather(), watches=[GroupAccuracy("cue")]))


def test_a_net_of_another_number_of_labels_is_refused_before_training(tmp_path):
    with pytest.raises(OutputError, match="outputs for 3 labels"):
        fit_labels(tmp_path, AuditCallback(weather()), net=net_of(4))


# ---- several values


@pytest.mark.parametrize("name", PACKAGES)
def test_several_values_are_audited_and_written(tmp_path, name):
    probes = film()
    callback = AuditCallback(probes, max_panels=2, on_error="raise")
    one, module = fit_values(tmp_path, callback, name=name)
    events = read_events(tmp_path / "tb")

    questions = ("why_blur", "why_blur_rather_than_target", "why_grain_of_film", "why_grain_of_film_rather_than_target")
    assert callback.last_record.questions == questions
    keys = ["absolute_error", "absolute_error/blur", "absolute_error/grain_of_film"]
    keys += [f"gradcam/{question}/relevance_mass/core" for question in questions]
    for key in keys:
        assert scalar_steps(events, f"audit/{key}") == STEPS
    for question in questions:
        assert scalar_steps(events, f"audit/gradcam/{question}/drift") == STEPS[1:]
    assert not {"audit/accuracy", "audit/exact_match", "audit/confidence", "audit/switched"} & set(
        events.Tags()["scalars"]
    )
    errors = (outputs_of(module, probes) - probes.targets).abs()
    assert last(events, "audit/absolute_error") == pytest.approx(float(errors.mean()), abs=1e-6)
    assert last(events, "audit/absolute_error/blur") == pytest.approx(float(errors[:, 0].mean()), abs=1e-6)
    assert last(events, "audit/absolute_error/grain_of_film") == pytest.approx(float(errors[:, 1].mean()), abs=1e-6)
    assert float(one.callback_metrics["audit/absolute_error/blur"]) == pytest.approx(float(errors[:, 0].mean()))


def test_panels_of_several_values_name_each(tmp_path):
    probes = film()
    auditor = Auditor(probes, [Why("blur"), WhyValueRatherThan(of=1)])
    callback = AuditCallback(auditor, max_panels=2, on_error="raise")
    fit_values(tmp_path, callback)
    record = callback.last_record
    drawn = {picture.tag: picture for picture in Gallery(probes, max_panels=2).draw(callback.history)}

    (blur, grain), known = record.outputs[0].tolist(), probes.targets[0].tolist()
    assert answer(probes, record, 0) == f"blur {blur:.3g}, grain of film {grain:.3g}"
    assert truth(probes, 0) == f"is blur {known[0]:.3g}, grain of film {known[1]:.3g}"
    assert [titles[0] for titles in record.titles] == [
        f"Why blur {blur:.3g}?",
        f"Why grain of film {grain:.3g}, rather than {known[1]:.3g}?",
    ]
    events = read_events(tmp_path / "tb")
    assert image_steps(events, "audit_panel/000_probe_000") == STEPS
    assert scalar_steps(events, "audit/gradcam/why_blur/relevance_mass/core") == STEPS
    tag = "audit_panel/000_probe_000"
    assert events.Images(tag)[-1].encoded_image_string == drawn[tag].encoded


def test_pixels_of_several_values_are_explained_beside(tmp_path):
    auditor = Auditor(film(), explainers=[GradCAM(), Occlusion(4)])
    callback = AuditCallback(auditor, max_panels=1, on_error="raise")
    fit_values(tmp_path, callback, max_epochs=1)
    maps = callback.last_record.maps
    assert maps["gradcam"].heatmaps.shape == maps["occlusion"].heatmaps.shape == (4, 6, 8, 8)
    tags = read_events(tmp_path / "tb").Tags()["scalars"]
    assert "audit/occlusion/why_grain_of_film_rather_than_target/relevance_mass/core" in tags


def test_a_value_that_is_missing_in_the_name_of_the_questions_is_refused_at_construction():
    with pytest.raises(ConfigurationError, match="which of 2 values is asked about"):
        Auditor(film(), [Why()])


@pytest.mark.parametrize("trial", [CueTrial(PatchCue([[1.0, 0, 0]], points_to=[0])), RegionTrial("core")])
def test_trials_that_count_right_answers_are_refused_of_values(trial):
    with pytest.raises(ConfigurationError, match=r"Expected (labelled )?probes"):
        Auditor(film(), trials=[trial])


# ---- one value, and others that stay as they were


def test_one_value_has_no_error_by_name(tmp_path):
    probes = film(targets=torch.rand(6), target_names=("blur",))
    callback = AuditCallback(probes, max_panels=1, on_error="raise")
    targets = torch.rand(16, 1, generator=torch.Generator().manual_seed(1))
    _, module = fit(tmp_path, callback, targets, nn.functional.mse_loss)
    tags = [tag for tag in read_events(tmp_path / "tb").Tags()["scalars"] if "absolute_error" in tag]
    assert tags == ["audit/absolute_error"]
    assert callback.last_record.predictions.shape == (6,)
    with torch.no_grad():
        np.testing.assert_allclose(callback.last_record.predictions, outputs_of(module, probes)[:, 0], rtol=1e-5)


def test_probes_of_labels_do_not_suit_a_net_of_values_and_nothing_is_trained(tmp_path):
    steps = []

    class Counted(TinyModule):
        def training_step(self, batch, batch_idx):
            steps.append(batch_idx)

    data = DataLoader(TensorDataset(pictures(8), torch.rand(8, 2)), batch_size=4)
    with pytest.raises(OutputError, match="outputs for 3 classes"), caught():
        trainer(tmp_path, [AuditCallback(weather(labels=torch.arange(6) % 3))]).fit(Counted(net_of(2)), data)
    assert steps == []


def test_every_probe_without_a_known_label_has_no_accuracy_and_the_run_goes_on(tmp_path):
    callback = AuditCallback(weather(labels=torch.full((6, 3), -1)), max_panels=1, on_error="raise")
    one, _ = fit_labels(tmp_path, callback, max_epochs=1)
    assert math.isnan(one.callback_metrics["audit/accuracy"])
    assert one.callback_metrics["audit/confidence"].isfinite()
    tags = read_events(tmp_path / "tb").Tags()["scalars"]
    assert "audit/accuracy" not in tags
    assert "audit/confidence" in tags
