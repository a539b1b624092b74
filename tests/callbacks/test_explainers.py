"""Several explainers of one callback in real trainers: tags, intervals over a resume, and one that fails."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from tests.callbacks import runs
from tests.callbacks.runs import PACKAGES, TinyModule, audit_warnings, caught
from tests.tiny import image_steps, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import (
    AuditCallback,
    AuditError,
    Auditor,
    ConfigurationError,
    Every,
    GradCAM,
    Localization,
    Occlusion,
    PatchCue,
    ShortcutMonitor,
    Why,
    WhyRatherThan,
)
from xai_callbacks.explainers import Explainer, Plan

PANEL, STRIP = "audit_panel/000_probe_000", "audit_filmstrip/000_probe_000"
QUESTIONS = ("why", "why_rather_than")
METRICS = ("relevance_mass", "relevance_lift", "relevance_rank", "soft_iou")


def audited(explainers, **given):
    auditor = Auditor(tiny_probes(), [Why(), WhyRatherThan()], explainers=explainers, measures=[Localization(METRICS)])
    return AuditCallback(auditor, max_panels=1, **given)


def fit(folder, *callbacks, **options):
    return runs.fit(folder, *callbacks, **{"max_epochs": 4, "logger": "tensorboard", **options})


@pytest.mark.parametrize("name", PACKAGES)
def test_each_explainer_has_tags_of_its_own_at_the_audits_at_which_it_answers(tmp_path, name):
    callback = audited([GradCAM(), GradCAM("net.0", name="early"), Every(2, Occlusion(4))], on_error="raise")
    one = fit(tmp_path, callback, name=name)

    events, steps = read_events(tmp_path / "tb"), [0, 3, 7, 11, 15]
    for explainer, when in (("gradcam", steps), ("early", steps), ("occlusion", steps[::2])):
        for question in QUESTIONS:
            for metric in METRICS:
                assert scalar_steps(events, f"audit/{explainer}/{question}/{metric}/core") == when
            assert scalar_steps(events, f"audit/{explainer}/{question}/drift") == when[1:]
    assert image_steps(events, PANEL) == image_steps(events, STRIP) == steps
    assert list(callback.last_record.maps) == ["gradcam", "early", "occlusion"]
    assert {f"audit/{explainer}/why/relevance_mass/core" for explainer in ("gradcam", "early", "occlusion")} <= (
        one.callback_metrics.keys()
    )


def test_what_an_explainer_said_earlier_is_no_metric_of_a_later_audit(tmp_path):
    """A monitor must not go on reading the numbers of an explainer that did not answer."""
    one = fit(tmp_path, audited([GradCAM(), Every(2, Occlusion(4))]), max_epochs=3)
    assert one.callback_metrics["audit/gradcam/why/relevance_mass/core"].isfinite()
    assert one.callback_metrics["audit/occlusion/why/relevance_mass/core"].isnan()


def steady():
    """Without dropout, so that a resumed run is the same as one that was not interrupted."""
    net = tiny_net()
    net[5].p = 0.0
    return TinyModule(net)


def test_an_interval_goes_on_after_a_resume(tmp_path):
    def callback():
        return audited([GradCAM(), Every(2, Occlusion(4))], on_error="raise")

    fit(tmp_path / "whole", callback(), module=steady())
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_last=True)
    # Two audits: at the start, with both, and after the first epoch, with one.
    fit(tmp_path / "first", callback(), checkpoint, module=steady(), max_epochs=1)
    fit(tmp_path / "second", callback(), module=steady(), ckpt_path=checkpoint.last_model_path)

    first, second, whole = (read_events(tmp_path / folder / "tb") for folder in ("first", "second", "whole"))
    tag = "audit/occlusion/why/relevance_mass/core"
    assert (scalar_steps(first, tag), scalar_steps(second, tag)) == ([0], [7, 15])
    assert scalar_steps(second, "audit/gradcam/why/relevance_mass/core") == [7, 11, 15]
    for tag in ("audit/occlusion/why/drift", "audit/gradcam/why/drift", "audit/occlusion/why/relevance_mass/core"):
        found, expected = ({event.step: event.value for event in each.Scalars(tag)} for each in (second, whole))
        assert found == {step: expected[step] for step in found}
    assert second.Images(STRIP)[-1].encoded_image_string == whole.Images(STRIP)[-1].encoded_image_string


# ---- one that fails


class Breaks(Explainer):
    """Well at first, broken from a call on: once in the check before training, once at the audit at the start."""

    name = "mine"

    def __init__(self, error, calls=2):
        self.error, self.calls = error, calls

    def __repr__(self):
        return "Breaks()"

    def prepare(self, trace, reference):
        return Plan(reason="nowhere", cost=1.0)

    def explain(self, observation, plan):
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        return observation.images.mean(dim=1).expand(len(observation.posed), -1, -1, -1)


ERRORS = [RuntimeError("no such thing"), IndexError("out of range"), KeyError("layer"), ZeroDivisionError("/ 0")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_explainer_that_raises_at_the_second_audit_costs_itself_alone(tmp_path, error):
    callback = audited([Breaks(error), GradCAM()])
    with caught() as found:
        one = fit(tmp_path, callback, max_epochs=3)

    (told,) = audit_warnings(found)
    assert told.startswith("The explainer `mine` failed, and audits go on without it. ")
    assert type(error).__name__ in told
    record = callback.last_record
    assert record.step == 11
    assert list(record.maps) == ["gradcam"]
    assert len(record.failed) == 1
    assert record.failed[0].startswith(f"The explainer `mine` failed and was left out. {type(error).__name__}")
    events = read_events(tmp_path / "tb")
    assert scalar_steps(events, "audit/mine/why/relevance_mass/core") == [0]
    for tag in ("audit/gradcam/why/relevance_mass/core", "audit/accuracy", "audit/novelty/gradnorm"):
        assert scalar_steps(events, tag) == [0, 3, 7, 11]
    assert image_steps(events, PANEL) == [0, 3, 7, 11]
    assert one.global_step == 12


def test_an_explainer_that_raises_ends_a_run_that_asks_for_it(tmp_path):
    with pytest.raises(AuditError, match=r"The explainer `mine` failed and was left out\. RuntimeError: no such thing"):
        fit(tmp_path, audited([GradCAM(), Breaks(RuntimeError("no such thing"))], on_error="raise"))


def test_each_part_that_fails_is_told_once(tmp_path):
    """Whatever failed before it."""
    second = Breaks(RuntimeError("later"), calls=3)
    second.name = "other"
    with caught() as found:
        fit(tmp_path, audited([Breaks(RuntimeError("sooner")), GradCAM(), second]), max_epochs=4)
    told = audit_warnings(found)
    assert [message.partition(" failed")[0] for message in told] == ["The explainer `mine`", "The explainer `other`"]
    assert ["sooner" in told[0], "later" in told[1]] == [True, True]


def test_an_explainer_that_fails_on_two_probes_is_refused_before_training(tmp_path):
    seen = []

    class Counted(TinyModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="Expected the explainer `mine` to explain two probes, but it raised KeyError"):
        fit(tmp_path, audited([GradCAM(), Breaks(KeyError("layer"), calls=0)]), module=Counted())
    assert seen == []


def test_a_costly_explainer_tells_its_progress_within_an_audit(tmp_path):
    done = []

    auditor = Auditor(tiny_probes(12), [Why()], explainers=[Occlusion(2)], chunk_size=6)
    callback = AuditCallback(auditor, max_panels=0)
    audit = callback.auditor.audit
    callback.auditor.audit = lambda model, **given: audit(model, **{**given, "on_progress": done.append})
    fit(tmp_path, callback, max_epochs=1)
    half = len(done) // 2
    assert done[half - 1] == 12  # two audits
    assert done[:half] == sorted(done[:half])
    assert len(set(done)) > 4


def test_maps_of_pixels_are_explained_on_whatever_device_and_kept_on_the_cpu(tmp_path):
    callback = audited([Occlusion(4)], on_error="raise")
    fit(tmp_path, callback, precision="bf16-true", max_epochs=1)
    assert callback.last_record.heatmaps.dtype == torch.float32
    assert callback.last_record.heatmaps.device.type == "cpu"
    assert callback.last_record.heatmaps.isfinite().all()


# ---- another default


class MaxLessMin(nn.Module):
    """Gradients of all cells add up to 0, so that their mean, by which Grad-CAM goes, says nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, images):
        seen = self.features(images).relu()
        return self.head(seen.amax(dim=(2, 3)) - seen.amin(dim=(2, 3)))


def watching(**given):
    cue = PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=[0, 1], at="spurious")
    return ShortcutMonitor(tiny_probes(40), cue, max_panels=0, on_error="raise", **given)


def test_alarms_and_expectations_follow_the_explainer_that_takes_the_place_of_the_default(tmp_path):
    sentences = ["hirescam/why/relevance_mass/core < 0.999", "hirescam/why_label/drift < 1.999"]
    callback = watching(rules=sentences)
    one = fit(tmp_path, callback, module=TinyModule(MaxLessMin()), max_epochs=2)

    assert list(callback.last_record.maps) == ["hirescam"]
    assert [note for note in callback.last_record.notes if "HiResCAM explains instead of Grad-CAM" in note]
    events = read_events(tmp_path / "tb")
    assert scalar_steps(events, "audit/hirescam/why/relevance_lift/spurious") == [0, 3, 7]
    assert scalar_steps(events, "audit/alarm/attribution/spurious") == [0, 3, 7]
    record = callback.last_record
    found = {each.key: each for each in record.findings}
    assert "alarm/attribution/spurious" in found
    assert [found[f"expectation/{sentence}"].estimate for sentence in sentences] == [
        record.metrics["hirescam/why/relevance_mass/core"], record.metrics["hirescam/why_label/drift"],
    ]  # fmt: skip
    assert float(one.callback_metrics["audit/expectation/passed"]) == 2


def test_an_expectation_of_a_default_that_does_not_suit_the_model_is_refused_before_training(tmp_path):
    callback = watching(rules=["`gradcam/why/relevance_mass/core` < 0.999"])
    with pytest.raises(ConfigurationError, match=r"Did you mean 'hirescam/why/relevance_mass/core'"):
        fit(tmp_path, callback, module=TinyModule(MaxLessMin()))
