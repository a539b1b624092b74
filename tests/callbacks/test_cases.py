"""What users met, each as a small program: wrong numbers, lost alarms and resumes that failed."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from tests.callbacks.leaning import leaning_module, leaning_probes, object_loader, patch
from tests.callbacks.runs import TinyModule, caught, loader, trainer
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    Auditor,
    CueTrial,
    Explainer,
    GradCAM,
    GradientNorm,
    GradNorm,
    HiResCAM,
    History,
    LayerCAM,
    NoveltyMap,
    PatchCue,
    ProbeSet,
    PurviewDistance,
    Schedule,
    ShortcutMonitor,
    Why,
)
from xai_callbacks.explainers import Plan

resumes = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

# ---- drift of a model that has not changed


def drifts(before, after, net):
    """Drift by key, of one and the same model, audited by one explainer and then by another."""
    history, probes = History(), tiny_probes()
    for step, explainer in enumerate((before, after)):
        auditor = Auditor(probes, [Why(0)], novelty=[], explainers=[explainer])
        history.append(auditor.audit(net, step=step, past=history))
    return {key: value.value for key, value in history.last.metrics.items() if key.endswith("/drift")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (GradCAM("1"), GradCAM("2")),
        (GradCAM("0"), GradCAM("1")),
        (GradCAM("1"), LayerCAM("1")),
        (LayerCAM("1"), HiResCAM("1")),
        (GradCAM("1"), LayerCAM("1", name="gradcam")),
        (LayerCAM("1", name="mine"), HiResCAM("1", name="mine")),
    ],
    ids=["layer 2", "layer 1", "explainer", "another", "same name", "same name of another"],
)
def test_no_drift_is_reported_between_settings(before, after):
    assert drifts(before, after, tiny_net().eval()) == {}


def test_drift_of_an_unchanged_model_under_the_same_settings_is_nought():
    found = drifts(GradCAM("1"), GradCAM("1"), tiny_net().eval())
    assert found == {"gradcam/why_0/drift": pytest.approx(0, abs=1e-6)}


def resumed(folder, first, second):
    """Two runs of which the second goes on where the first, after one epoch, stopped."""
    path = None
    for epochs, callback in enumerate((first, second), 1):
        keep = ModelCheckpoint(folder / "checkpoints")  # as a new process has one of its own
        one = trainer(folder, [callback, keep], max_epochs=epochs, enable_checkpointing=True, logger=False)
        one.fit(TinyModule(), loader(), loader(2, seed=6), ckpt_path=path)
        path = keep.best_model_path
    return second.history


@resumes
@pytest.mark.parametrize("after", [GradCAM("net.2"), LayerCAM("net.1", name="gradcam")], ids=["layer", "explainer"])
def test_a_resumed_run_with_other_settings_reports_no_drift(tmp_path, after):
    callbacks = [
        AuditCallback(Auditor(tiny_probes(), explainers=[each]), max_panels=0, on_error="raise")
        for each in (GradCAM("net.1"), after)
    ]
    history = resumed(tmp_path, *callbacks)
    assert [each.step for each in history] == [0, 3, 7]
    assert ["gradcam/why/drift" in each.metrics for each in history] == [False, True, False]


# ---- a question is posed once


class PathGradients(Explainer):
    """Integrated gradients from black, as a user writes it: the posed question is scored all along the path."""

    name = "path"
    units = "score"
    steps = 64

    def prepare(self, trace, reference):
        return Plan(reason="the pixels", cost=2.0 * self.steps)

    def explain(self, observation, plan):
        images, maps = observation.images, []
        for posed in observation.posed:
            total = torch.zeros_like(images)
            for at in (torch.arange(self.steps) + 0.5) / self.steps:
                point = (at * images).detach().requires_grad_()
                with torch.enable_grad():
                    score = posed.score(observation.subject(point)).sum()
                total += torch.autograd.grad(score, point)[0]
            maps.append((images * total / self.steps).sum(1).detach())
        return torch.stack(maps)


def test_a_posed_question_keeps_its_class_all_along_a_path():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 5
    colours = 0.7 * torch.rand(5, 3, 1, 1, generator=generator)
    images = 0.3 * torch.rand(60, 3, 16, 16, generator=generator) + colours[labels]
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    net.eval()

    auditor = Auditor(ProbeSet.from_tensors(images, labels), [Why()], novelty=[], explainers=[PathGradients()])
    record = auditor.audit(net)

    with torch.no_grad():
        answers, nothing = net(images), net(torch.zeros_like(images))
        on_the_way = net(0.3 * images).argmax(1)
    assert bool((on_the_way != record.predictions).any())  # else there is nothing to keep
    change = (answers - nothing).gather(1, record.predictions[:, None])[:, 0]
    # The map sums to the change of the logit, but for what 64 steps miss at kinks.
    wrong = (record.heatmaps[0].sum((1, 2)) - change).abs() > 0.1 * change.abs()
    assert int(wrong.sum()) <= 3


# ---- an alarm whose messenger fails


class Memory(Logger):
    """Steps at which the effect of the cue was logged."""

    name, version, experiment = "memory", "0", None

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        if "audit/cue/patch/effect" in metrics:
            self.steps.append(step)


def test_a_hook_that_raises_costs_neither_the_alarm_nor_the_audit(tmp_path, caplog):
    def down(finding):
        raise ConnectionError("the chat is down")

    memory = Memory()
    monitor = ShortcutMonitor(leaning_probes(), patch(), rules=[AlarmRule(audits=1, hook=down)], max_panels=0)
    with caught() as found, caplog.at_level("WARNING"):
        one = trainer(tmp_path, [monitor], logger=memory, max_epochs=4)
        one.fit(leaning_module(since=1), object_loader(), object_loader())

    said = [record.getMessage() for record in caplog.records]
    assert len([sentence for sentence in said if "answers by the cue 'patch'" in sentence]) == 1
    assert memory.steps == [each.step for each in monitor.history] == [0, 3, 7, 11, 15]
    assert monitor.last_record.findings[0].state == "alarm"
    (message,) = (str(each.message) for each in found if "the chat is down" in str(each.message))
    assert "AlarmRule" in message


# ---- a resume with other trials and rules


PLAIN = {"rules": ["accuracy > 0.1"]}
TRIED = {"trials": [CueTrial(PatchCue([1.0, 0.0, 0.0], points_to=0))]}


@resumes
@pytest.mark.parametrize(
    ("before", "after"),
    [(PLAIN, PLAIN | TRIED), (PLAIN | TRIED, PLAIN), (PLAIN | TRIED, TRIED)],
    ids=["a trial added", "a trial taken away", "expectations taken away"],
)
def test_a_resumed_run_may_try_and_expect_something_else(tmp_path, before, after):
    def audit(rules=None, trials=None):
        return AuditCallback(Auditor(tiny_probes(32), trials=trials), rules=rules, max_panels=0, on_error="raise")

    history = resumed(tmp_path, audit(**before), audit(**after))

    assert [each.step for each in history] == [0, 3, 7]
    for record, given in zip(history, (before, before, after), strict=True):
        assert ("cue/patch/effect" in record.metrics) == ("trials" in given)
        assert ("expectation/passed" in record.metrics) == ("rules" in given)
    assert history.last.failed == ()


@resumes
@pytest.mark.parametrize("audited", [True, False])
def test_a_resumed_run_knows_the_checkpoint_of_the_latest_audit_if_it_is_of_its_weights(tmp_path, audited):
    schedule = Schedule() if audited else Schedule(every_n_epochs=None)  # before training only
    callbacks = [AuditCallback(tiny_probes(), schedule=each, max_panels=0) for each in (schedule, Schedule())]
    history = resumed(tmp_path, *callbacks)
    assert [each.step for each in history] == ([0, 3, 7] if audited else [0, 7])
    path = str(tmp_path / "checkpoints" / "epoch=0-step=4.ckpt")
    assert [each.checkpoint for each in history] == ([None, path, None] if audited else [None, None])


# ---- a parameter without dimensions


class Tempered(nn.Module):
    """A learnable temperature and the weight of a branch."""

    def __init__(self, shape):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.log_scale = nn.Parameter(torch.full(shape, 0.3))
        self.branch = nn.Parameter(torch.full(shape, 0.5))

    def forward(self, images):
        features = self.conv(images).relu()
        features = features + self.branch * features.flip(1)
        return self.head(features.mean((2, 3)) * self.log_scale.exp())


@pytest.mark.parametrize(
    "given",
    [
        {"novelty": [GradientNorm()]},
        {"novelty": [PurviewDistance()], "inliers": tiny_probes(24, seed=3)},
        {"explainers": [NoveltyMap()]},
    ],
    ids=["GradientNorm", "PurviewDistance", "NoveltyMap"],
)
def test_a_parameter_without_dimensions_is_as_one_of_one_entry(given):
    expected, found = (Auditor(tiny_probes(), **given).audit(Tempered(shape).eval()) for shape in ((1,), ()))
    assert found.scores.keys() == expected.scores.keys()
    for name, scores in expected.scores.items():
        torch.testing.assert_close(found.scores[name], scores, rtol=1e-4, atol=0)
    for name, maps in expected.maps.items():
        torch.testing.assert_close(found.maps[name].heatmaps, maps.heatmaps, rtol=1e-4, atol=1e-7)
    assert expected.scores
    assert found.useless == found.failed == ()


def test_training_with_a_parameter_without_dimensions_is_audited(tmp_path):
    auditor = Auditor(tiny_probes(), novelty=[GradNorm(), GradientNorm()])
    callback = AuditCallback(auditor, max_panels=0, on_error="raise")
    trainer(tmp_path, [callback], logger=False, max_epochs=1).fit(TinyModule(Tempered(())), loader(), loader())
    assert callback.last_record.scores.keys() == {"gradnorm", "gradient_norm_uniform"}
