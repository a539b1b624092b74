"""Integrated gradients and occlusion against their definitions, written slowly."""

import math

import pytest
import torch
from torch import nn

from tests.explaining import explain
from xai_callbacks import Auditor, IntegratedGradients, Occlusion, ProbeSet, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.explainers.pixels import baseline_of
from xai_callbacks.questions import WhyValueRatherThan
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

QUESTIONS = [Why(), WhyRatherThan(), WhyNotCertain(), Why(of=1), WhyRatherThan(foil=2, fact=0)]


@pytest.fixture(scope="module")
def net():
    """Trained to tell brightness, so that the class changes on the way from black to an image."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 5
    images = 0.3 * torch.rand(60, 3, 16, 16, generator=generator)
    images = images + 0.7 * torch.rand(5, 3, 1, 1, generator=generator)[labels]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval(), images, labels


def scores_of(question, model, images, altered, task=None, truth=None):
    task = task or SingleLabel(width=5)
    with torch.no_grad():
        return question.pose(model(images), truth, task).score(model(altered))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.key)
def test_integrated_gradients_sum_to_the_change_of_the_score(net, question):
    model, images, _ = net
    found = explain(IntegratedGradients(64), model, images, [question]).heatmaps[0].sum(dim=(1, 2))
    change = scores_of(question, model, images, images) - scores_of(question, model, images, torch.zeros_like(images))
    assert ((found - change).abs() <= 1e-2 * change.abs().clamp_min(float(change.abs().mean()))).all()
    assert ((found - change).abs() / change.abs()).median() < 2e-3


class _Jumps(nn.Module):
    """Sees the same in a photo of any brightness, as nets that normalise patches do."""

    def forward(self, images):
        maps = images / (images.square().mean(dim=1, keepdim=True) + 1e-9).sqrt()
        return torch.stack([maps.mean(dim=(1, 2, 3)), maps.std(dim=(1, 2, 3))], dim=1)


@pytest.mark.parametrize(("baseline", "told"), [(0.0, True), (0.5, False)])
def test_integrated_gradients_that_miss_the_change_are_told(baseline, told):
    probes = ProbeSet.from_tensors(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), [0, 1] * 3)
    explainer, by_tasks = IntegratedGradients(64, baseline), {"novelty": [], "chunk_size": 2}
    record = Auditor(probes, [Why(), Why(of="label")], explainers=[explainer], **by_tasks).audit(_Jumps())
    notes = [note for note in record.notes if "`integrated_gradients` miss more than a tenth" in note]
    assert len(notes) == told


@pytest.mark.parametrize(
    ("task", "question"),
    [
        (MultiLabel(width=5), WhyRatherThan()),
        (MultiLabel(width=5), WhyNotCertain()),
        (Regression(width=5), WhyValueRatherThan(of=3)),
    ],
)
def test_integrated_gradients_are_complete_for_every_task(net, task, question):
    model, images, _ = net
    truth = torch.rand(60, 5) if task.kind == "regression" else None
    found = explain(IntegratedGradients(64), model, images, [question], truth, task).heatmaps[0].sum(dim=(1, 2))
    change = scores_of(question, model, images, images, task, truth)
    change = change - scores_of(question, model, images, torch.zeros_like(images), task, truth)
    assert ((found - change).abs() <= 1e-2 * change.abs().clamp_min(float(change.abs().mean()))).all()
    assert ((found - change).abs() / change.abs()).median() < 2e-3


def test_a_question_asked_anew_at_each_point_would_mix_classes(net):
    """Why questions are posed once: the predicted class changes on the way from black to an image."""
    model, images, _ = net
    on_the_way = torch.stack([model(images * share).argmax(dim=1) for share in torch.linspace(0, 1, 9)])
    assert (on_the_way != on_the_way[-1]).any(dim=0).float().mean() > 0.3


def test_the_map_of_a_linear_model_is_weight_times_image():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 2))
    images = torch.randn(4, 3, 6, 6)
    expected = (model[1].weight[1].reshape(3, 6, 6) * (images - 0.5)).sum(dim=1).detach()
    found = explain(IntegratedGradients(3, baseline=0.5), model, images, [Why(of=1)]).heatmaps[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def slow_occlusion(model, images, question, window, stride, baseline):
    """Each pixel: the mean loss of the score over the squares that hide it, per pixel of a square."""
    count, _, height, width = images.shape
    whole = scores_of(question, model, images, images)
    total, times = torch.zeros(count, height, width), torch.zeros(height, width)
    for row in range(math.ceil((height - window) / stride) + 1):
        for column in range(math.ceil((width - window) / stride) + 1):
            rows = slice(row * stride, row * stride + window)
            columns = slice(column * stride, column * stride + window)
            hidden = images.clone()
            hidden[:, :, rows, columns] = baseline[:, :, rows, columns]
            total[:, rows, columns] += (whole - scores_of(question, model, images, hidden))[:, None, None]
            times[rows, columns] += 1
    return total / times / window**2


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 2), (5, 3), (16, 8), (3, 1)])
def test_occlusion_equals_a_slow_loop(net, window, stride):
    model, images, _ = net
    images = images[:5]
    found = explain(Occlusion(window, stride), model, images, QUESTIONS, chunk_size=7).heatmaps
    baseline = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    for heatmaps, question in zip(found, QUESTIONS, strict=True):
        expected = slow_occlusion(model, images, question, window, stride, baseline)
        torch.testing.assert_close(heatmaps, expected, rtol=1e-4, atol=1e-6)


def test_occlusion_runs_the_model_once_for_all_questions(net):
    model, images, _ = net
    seen = []
    handle = model[0].register_forward_hook(lambda _module, _given, output: seen.append(len(output)))
    one = explain(Occlusion(8, 8), model, images[:4], [Why()]).plan.cost
    alone, _ = sum(seen), seen.clear()
    explain(Occlusion(8, 8), model, images[:4], QUESTIONS)
    handle.remove()
    assert sum(seen) == alone
    assert one == 4


def test_the_window_follows_the_size_of_the_images(net):
    model, images, _ = net
    plan = explain(Occlusion(), model, images[:2], [Why()]).plan
    assert plan.reason == "225 squares of 2 x 2 pixels, hidden one after another"
    assert plan.cost == 225


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntegratedGradients(0), "Expected `steps` to be an integer of 1 or more, but got 0"),
        (lambda: IntegratedGradients(baseline="black"), "Expected `baseline` to be 'blur', 'mean' or a finite number"),
        (lambda: IntegratedGradients(baseline=float("nan")), "Expected `baseline`"),
        (lambda: IntegratedGradients(name="a/b"), "Expected `name` of an explainer"),
        (lambda: Occlusion(0), "Expected `window`"),
        (
            lambda: Occlusion(4, 5),
            "Expected `stride` to be at most `window`, 4, so that every pixel is hidden, but got",
        ),
        (lambda: Occlusion(stride=True), "Expected `stride`"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


def test_a_square_larger_than_the_images_is_refused(net):
    model, images, labels = net
    with pytest.raises(ConfigurationError, match="Expected `window` to be at most 16"):
        Auditor(ProbeSet.from_tensors(images, labels), explainers=[Occlusion(17)]).prepare(model)


class OwnIntegratedGradients(Explainer):
    """Written against the contract by a user: the middle of 64 intervals on the way from black to each image."""

    name = "own"

    def prepare(self, trace, reference):
        return Plan(reason="the pixels", cost=128)

    def explain(self, observation, plan):
        total = torch.zeros(len(observation.posed), *observation.images.shape)
        for share in (torch.arange(64) + 0.5) / 64:
            point = (share * observation.images).requires_grad_(True)
            for index, score in enumerate(observation.scores(point.clone())):
                total[index] += torch.autograd.grad(score.sum(), point, retain_graph=True)[0]
        return (observation.images * total / 64).sum(dim=2)


def test_maps_of_a_users_own_explainer_sum_to_the_change_of_the_logit_in_an_audit(net):
    model, images, labels = net
    record = Auditor(
        ProbeSet.from_tensors(images, labels), [Why()], novelty=[], explainers=[OwnIntegratedGradients()]
    ).audit(model)
    black = model(torch.zeros_like(images)).detach()
    change = (record.outputs - black).gather(1, record.predictions[:, None])[:, 0]
    error = (record.heatmaps[0].sum(dim=(1, 2)) - change).abs()
    assert (error <= 0.01 * change.abs()).all()


def test_the_blur_is_that_of_scipy():
    from scipy.ndimage import gaussian_filter

    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(images.numpy(), (0, 0, 3, 3), mode="mirror", truncate=4)
    torch.testing.assert_close(baseline_of(images, "blur"), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert baseline_of(images[..., :1, :1], "blur").shape == (2, 3, 1, 1)
