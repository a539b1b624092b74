"""Models without a feature map in real trainers: what needs no heatmap is done, and it is said that there are none."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import PACKAGES, caught, module_class, trainer
from tests.tiny import image_steps, read_events, scalar_steps
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    Auditor,
    Baselines,
    CueTrial,
    Energy,
    Gallery,
    GradCAM,
    GroupAccuracy,
    IntegratedGradients,
    Localization,
    MapClusters,
    Occlusion,
    PatchCue,
    ProbeSet,
    ShortcutMonitor,
    TargetLayerError,
    ValidationNovelty,
)

COUNT = 40
CORE = torch.zeros(COUNT, 8, 8, dtype=torch.bool)
CORE[:, 4:7, 4:7] = True
STEPS = [0, 1, 3]
NOTE = "There are no heatmaps. Expected a feature map between the images and the outputs of"
EFFECT = "audit/cue/patch/effect"
ABOUT_MAPS = [Localization(), Baselines(), MapClusters()]


def images():
    return torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def labels():
    return torch.arange(COUNT) % 2


def probes(**fields):
    return ProbeSet.from_tensors(images(), labels(), **fields)


def cue():
    return PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=[0, 1])


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 2))


def fit(folder, callback, *, name="pytorch_lightning", validation=True, **options):
    module = module_class(name)(perceptron(), lr=0.01)
    train = DataLoader(TensorDataset(images(), labels()), batch_size=20)
    check = DataLoader(TensorDataset(images(), labels()), batch_size=20) if validation else None
    one = trainer(folder, [callback], name, **{"logger": "tensorboard", **options})
    one.fit(module, train, check)
    return one, module


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ShortcutMonitor(probes(), cue(), max_panels=0), EFFECT),
        (lambda: ShortcutMonitor(Auditor(probes(), explainers=[]), cue(), max_panels=0), EFFECT),
        (lambda: AuditCallback(Auditor(probes(), trials=[CueTrial(cue())]), max_panels=0), EFFECT),
        (lambda: AuditCallback(probes()), "audit/accuracy"),
        (lambda: AuditCallback(Auditor(probes(), measures=ABOUT_MAPS), max_panels=0), "audit/novelty/gradnorm"),
    ],
    ids=["monitor", "monitor without explainers", "cue", "plain", "everything about heatmaps"],
)
def test_what_needs_no_heatmap_is_audited_and_logged(tmp_path, make, key):
    with caught() as found:
        one, _ = fit(tmp_path, make())
    assert [str(warning.message) for warning in found if "audit" in str(warning.message).lower()] == []
    assert one.callback_metrics[key].isfinite()
    assert scalar_steps(read_events(tmp_path / "tb"), key) == STEPS
    assert not any("gradcam" in name for name in one.callback_metrics)


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_but_heatmaps_at_once(tmp_path, name):
    """Accuracy, the effect of a cue, groups, novelty, alarms and expectations."""
    masks = {"core": CORE, "spurious": ~CORE}
    callback = AuditCallback(
        Auditor(probes(masks=masks), novelty=[Energy()], trials=[CueTrial(cue())]),
        watches=[GroupAccuracy(lambda batch: batch[1], min_count=1), ValidationNovelty()],
        rules=[AlarmRule(), "accuracy > 0.01", "cue/patch/effect < 0.99", "group/wga > 0.999"],
        max_panels=2, on_error="raise",
    )  # fmt: skip
    one, module = fit(tmp_path, callback, name=name)
    events = read_events(tmp_path / "tb")

    for key in ("accuracy", "confidence", "novelty/energy", "cue/patch/effect", "alarm/cue/patch"):
        assert scalar_steps(events, f"audit/{key}") == STEPS
    for key in ("group/wga", "validation/novelty/energy"):
        assert scalar_steps(events, f"audit/{key}") == STEPS[1:]
    assert scalar_steps(events, "audit/switched") == STEPS[1:]
    assert float(one.callback_metrics["audit/expectation/passed"]) == 2
    assert float(one.callback_metrics["audit/expectation/failed"]) == 1
    record = callback.last_record
    assert record.maps == {}
    assert record.failed == record.useless == ()
    assert [note for note in record.notes if note.startswith(NOTE)]
    with torch.no_grad():
        torch.testing.assert_close(record.outputs, module.net.eval()(images()))
    assert record.metrics["cue/patch/effect"].valid == COUNT


@pytest.mark.parametrize("kind", [AuditCallback, ShortcutMonitor])
def test_the_note_is_told_once_where_lightning_says_its_own(tmp_path, said, kind):
    callback = kind(probes(), *([cue()] if kind is ShortcutMonitor else []), max_panels=0)
    fit(tmp_path, callback)
    told = [sentence for sentence in said() if NOTE in sentence]
    assert len(told) == 1
    assert told[0].startswith("audit: ")
    assert [sentence for sentence in said() if sentence == f"{kind.__name__} gives no heatmaps."]


def test_panels_without_heatmaps_are_drawn_and_filmstrips_are_not(tmp_path):
    callback = AuditCallback(probes(masks={"core": CORE}), max_panels=2, on_error="raise")
    fit(tmp_path, callback)
    events = read_events(tmp_path / "tb")

    tags = ["audit_panel/000_probe_000", "audit_panel/039_probe_039"]
    assert sorted(events.Tags()["images"]) == [
        "audit/0_overview",
        "audit/1_all_probes",
        *tags,
        "audit_summary/most_novel_gradnorm",
    ]
    for tag in events.Tags()["images"]:
        assert image_steps(events, tag) == STEPS
    drawn = {each.tag: each for each in Gallery(callback.auditor.probes, max_panels=2).draw(callback.history)}
    written = events.Images(tags[1])[-1]
    assert written.encoded_image_string == drawn[tags[1]].encoded
    # The image with its region, what is known and what was answered; nothing is left blank for maps.
    assert written.height < 420
    assert 224 <= written.width <= 372


def test_pictures_of_a_cue_and_of_clusters_need_heatmaps_and_are_left_out(tmp_path):
    masks = {"core": CORE, "spurious": torch.zeros_like(CORE).index_fill_(1, torch.arange(3), True)}
    carried = PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=[0, 1], at="spurious")
    one, _ = fit(tmp_path, ShortcutMonitor(probes(masks=masks), carried, max_panels=1, on_error="raise"))
    events = read_events(tmp_path / "tb")

    assert scalar_steps(events, EFFECT) == STEPS
    assert scalar_steps(events, "audit/edges/relevance_mass/spurious") == STEPS
    assert not [
        tag for tag in events.Tags()["images"] if tag.startswith(("audit_summary/cue", "audit_summary/clusters"))
    ]
    assert "audit/alarm/cue/patch" in one.callback_metrics


def test_the_pixels_of_a_perceptron_are_explained_where_that_is_asked_for(tmp_path):
    callback = AuditCallback(
        Auditor(probes(masks={"core": CORE}), explainers=[Occlusion(4), IntegratedGradients()]),
        max_panels=1, on_error="raise",
    )  # fmt: skip
    fit(tmp_path, callback)
    events = read_events(tmp_path / "tb")

    for explainer in ("occlusion", "integrated_gradients"):
        assert scalar_steps(events, f"audit/{explainer}/why/relevance_mass/core") == STEPS
    assert image_steps(events, "audit_filmstrip/000_probe_000") == STEPS
    assert callback.last_record.notes == ()


def test_an_explainer_that_was_asked_for_is_refused_before_training(tmp_path):
    with pytest.raises(TargetLayerError, match="Expected a feature map"):
        fit(tmp_path, AuditCallback(Auditor(probes(), explainers=[GradCAM()])))
