"""Masks of what hinders a class: against a slow loop, on nets where the answer is known, and without gradients."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from tests.explaining import explain, observed, subject_of
from xai_callbacks import Auditor, ProbeSet, UndesirablePixels, WhatHinders, Why, WhyRatherThan
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers.pixels import baseline_of
from xai_callbacks.explainers.undesirable import covered, to_area
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel


class Quarters(nn.Module):
    """Class 0 is hindered by the upper left, class 1 feeds on the upper right, class 2 on the lower left."""

    def forward(self, images):
        left, right = images[:, 0, :8, :8].mean(dim=(1, 2)), images[:, 0, :8, 8:].mean(dim=(1, 2))
        lower = images[:, 0, 8:, :8].mean(dim=(1, 2))
        return torch.stack([1 - 4 * left, 6 * right, lower - 6], dim=1)


IMAGES = torch.ones(2, 1, 16, 16)
BLACK = {"cells": 4, "baseline": 0.0, "area": 0.25}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 5))
    return model.eval(), torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(1))


def quarters(maps):
    """Share of what is hidden in each quarter: upper left, upper right, lower left, lower right."""
    half = maps.shape[-1] // 2
    parts = [maps[..., :half, :half], maps[..., :half, half:], maps[..., half:, :half], maps[..., half:, half:]]
    return torch.stack([part.sum(dim=(-2, -1)) for part in parts], dim=-1) / maps.sum(dim=(-2, -1))[..., None]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("factors", "quarter"), [("target", 0), ("non-target", 1)])
def test_the_quarter_that_hinders_is_found_for_each_kind_of_factors(factors, quarter, gradients):
    explainer = UndesirablePixels(factors, gradients=gradients, **BLACK)
    maps = explain(explainer, Quarters(), IMAGES, [Why(of=0)]).heatmaps[0]
    assert (maps <= 0).all()
    assert (quarters(maps)[:, quarter] > 0.9).all()


@pytest.mark.parametrize(("price", "count"), [(0.05, 8), (0.5, 4), (0.8, 3), (0.9, 1), (2.0, 0)])
def test_without_an_area_just_the_cells_are_hidden_that_are_worth_their_price(price, count):
    """The score is linear, and an enlarged cell has an eighth of it beyond each border: 1, .875, .766, .125, ..."""
    explainer = UndesirablePixels(cells=4, baseline=0.0, area=None, area_weight=price, pinning=0.0, steps=200)
    found = -explain(explainer, Quarters(), IMAGES, [Why(of=0)]).heatmaps[0]
    worth = torch.outer(*2 * [torch.tensor([1.0, 0.875, 0.125, 0.0])])
    assert int((worth > price).sum()) == count
    torch.testing.assert_close(found, (worth > price).float().expand(2, 4, 4))


def slow_masks(explainer, model, images, classes):
    """One image after the other, in double precision, all written out."""
    rows = []
    for image, label in zip(images, classes.tolist(), strict=True):
        base = baseline_of(image[None], "blur")
        before = model(image[None])[0].detach()
        hidden = torch.full((explainer.cells, explainer.cells), explainer.area or 0.2).double()
        first, second = torch.zeros_like(hidden), 0.0
        for step in range(1, explainer.steps + 1):
            hidden.requires_grad_(True)
            large = interpolate(hidden[None, None], image.shape[-2:], mode="bilinear", align_corners=False).float()
            after = model(image[None] * (1 - large) + base * large)[0]
            others = [index for index in range(len(after)) if index != label]
            gaps = (after - before).abs()
            if explainer.factors == "target":
                loss = -after[label] + explainer.pinning * gaps[others].mean()
            elif explainer.factors == "non-target":
                loss = after[others].exp().sum().log() + explainer.pinning * gaps[label]
            else:
                loss = -after.softmax(dim=0)[label]
            down, right = hidden[1:] - hidden[:-1], hidden[:, 1:] - hidden[:, :-1]
            loss = loss + explainer.smoothness * (down.abs().pow(3).sum() + right.abs().pow(3).sum())
            loss = loss + (0 if explainer.area is not None else explainer.area_weight * hidden.sum())
            (gradient,) = torch.autograd.grad(loss, hidden)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square().mean()
            move = first / (1 - 0.9**step) / (second / (1 - 0.999**step)).sqrt()
            hidden = (hidden - 0.1 * move).detach()
            hidden = hidden.clamp(0, 1) if explainer.area is None else slow_to_area(hidden, explainer.area)
        rows.append(hidden)
    return torch.stack(rows).float()


def slow_to_area(hidden, area):
    """Every way to set the smallest cells to 0 and the largest to 1; the nearest that has the area."""
    values, count = hidden.flatten().sort().values, hidden.numel()
    best = None
    for zeros in range(count + 1):
        for ones in range(count + 1 - zeros):
            free = values[zeros : count - ones]
            shift = (free.sum() + ones - area * count) / len(free) if len(free) else torch.tensor(0.0)
            tried = (values - shift).clamp(0, 1)
            if abs(tried.mean() - area) < 1e-9:
                far = float((tried - values).square().sum())
                best = (far, shift) if best is None or far < best[0] else best
    return (hidden - best[1]).clamp(0, 1)


@pytest.mark.parametrize("factors", ["target", "non-target", "general"])
@pytest.mark.parametrize("settings", [{"area": 0.3}, {"area": None, "smoothness": 0.1, "pinning": 1.0}])
def test_masks_equal_those_of_a_slow_loop(net, factors, settings):
    model, images = net
    explainer = UndesirablePixels(factors, cells=3, steps=6, **settings)
    classes = torch.tensor([2, 0, 1, 4])
    found = explain(explainer, model, images, [WhatHinders()], classes).heatmaps[0]
    torch.testing.assert_close(-found, slow_masks(explainer, model, images, classes), rtol=1e-3, atol=1e-4)


def test_the_nearest_mask_of_an_area_is_that_of_a_search():
    for seed in range(5):
        drawn = 0.6 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(seed))
        found = to_area(drawn, 0.2)
        torch.testing.assert_close(found.mean(dim=(1, 2)), torch.full((2,), 0.2))
        expected = torch.stack([slow_to_area(each.double(), 0.2) for each in drawn])
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_mask_lowers_its_own_loss_as_no_random_mask_of_its_area_does(net, gradients):
    model, images = net
    base = baseline_of(images, "blur")
    for factors in ("target", "non-target"):
        explainer = UndesirablePixels(factors, gradients=gradients)
        with undisturbed(model):
            subject, trace = subject_of(model, images)
            observation = observed(subject, explainer.prepare(trace, None), images, [Why(of=3)], trace=trace)
            loss = explainer._loss(observation, torch.full((4,), 3))
            own = loss(-explainer.explain(observation, explainer.prepare(trace, None))[0])
            drawn = to_area(torch.rand(50, 7, 7, generator=torch.Generator().manual_seed(0)), 0.2)
            others = torch.stack([loss(each.expand(4, 7, 7)) for each in drawn])
        assert (own < others.amin(dim=0)).all()
    assert covered(images, base, torch.ones(4, 7, 7)).allclose(base, atol=1e-6)


def test_questions_of_the_same_facts_share_a_mask(net):
    model, images = net
    seen = []
    handle = model[0].register_forward_hook(lambda _module, _given, output: seen.append(len(output)))
    plan = explain(UndesirablePixels(steps=5), model, images, [Why()]).plan
    alone, _ = sum(seen), seen.clear()
    maps = explain(UndesirablePixels(steps=5), model, images, [Why(), WhyRatherThan(), Why(of=1)]).heatmaps
    handle.remove()
    assert plan.cost == 10
    assert sum(seen) == alone + 5 * len(images)
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_an_image_without_a_fact_has_an_empty_map(net):
    truth = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    maps = explain(UndesirablePixels(steps=3), *net, [WhatHinders()], truth, MultiLabel(width=5)).heatmaps[0]
    assert (maps.flatten(1) != 0).any(dim=1).tolist() == [True, False, True, True]


def test_progress_goes_on_step_by_step(net):
    told = []
    with undisturbed(net[0]):
        subject, trace = subject_of(*net)
        explainer = UndesirablePixels(steps=2)
        plan = explainer.prepare(trace, None)
        observation = observed(subject, plan, net[1], [Why(), Why(of=1)], trace=trace)
        observation.progress = told.append
        explainer.explain(observation, plan)
    assert told == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_functions_are_explained_without_gradients_and_refused_with_them(net):
    model, images = net
    probes = ProbeSet.from_tensors(images, [0, 1, 2, 0], mean=[0.5] * 3, std=[0.5] * 3)

    def black_box(batch):
        with torch.no_grad():
            return model(batch).numpy()

    explainer = UndesirablePixels(gradients=False, steps=30)
    records = [Auditor(probes, [WhatHinders()], explainers=[explainer]).audit(each) for each in (black_box, model)]
    torch.testing.assert_close(records[0].heatmaps, records[1].heatmaps)
    torch.testing.assert_close(-records[0].heatmaps.float().mean(dim=(2, 3)), torch.full((1, 4), 0.2))
    with pytest.raises(ValueError, match="differentiated with respect to its images for UndesirablePixels"):
        Auditor(probes, explainers=[UndesirablePixels()]).audit(black_box)


@pytest.mark.parametrize(
    ("task", "outputs", "got"), [(Regression(), 1, "values"), (MultiLabel(width=1), 1, "one label")]
)
def test_nets_without_a_second_class_are_refused(task, outputs, got):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, outputs))
    with pytest.raises(ConfigurationError, match=f"several classes or labels for UndesirablePixels.*of {got}. Use Occ"):
        explain(UndesirablePixels(), model, torch.randn(2, 3, 8, 8), [Why()], torch.zeros(2, 1).long(), task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UndesirablePixels("rival"),
            "Expected `factors` to be one of target, non-target, general, but got 'ri",
        ),
        (lambda: UndesirablePixels(cells=1), "Expected `cells` to be an integer of 2 or more, but got 1"),
        (lambda: UndesirablePixels(baseline="noise"), "Expected `baseline` to be 'blur', 'mean' or a finite"),
        (lambda: UndesirablePixels(area=1.0), "Expected `area` to be a number in (0, 1), but got 1.0. None leaves it"),
        (lambda: UndesirablePixels(area=None, gradients=False), "Expected `area` to be a number without `gradients`"),
        (lambda: UndesirablePixels(area_weight=-1), "Expected `area_weight` to be a number of 0 or more, but got -1"),
        (lambda: UndesirablePixels(smoothness="no"), "Expected `smoothness`"),
        (lambda: UndesirablePixels(pinning=float("nan")), "Expected `pinning`"),
        (lambda: UndesirablePixels(steps=0), "Expected `steps` to be an integer of 1 or more, but got 0"),
        (lambda: UndesirablePixels(gradients="no"), "Expected `gradients` to be True or False, but got 'no'"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


def test_the_question_reads_as_one_and_asks_of_the_label():
    outputs, truth = torch.tensor([[2.0, 0.5], [0.1, 0.3]]), torch.tensor([1, 1])
    posed = WhatHinders().pose(outputs, truth, SingleLabel(width=2))
    assert posed.score(outputs).tolist() == [0.5, pytest.approx(0.3)]
    assert WhatHinders().title("cat", "") == "What hinders cat?"
    keys = [question.key for question in (WhatHinders(), WhatHinders("predicted"), WhatHinders(of=1))]
    assert keys == ["what_hinders_label", "what_hinders", "what_hinders_1"]
    with pytest.raises(ConfigurationError, match="suit regression probes"):
        WhatHinders("predicted").check(Regression(), labelled=True)
    with pytest.raises(ConfigurationError, match="probes with `labels`"):
        WhatHinders().check(SingleLabel(width=2), labelled=False)


def test_a_cell_that_no_random_mask_hid_is_not_marked(net):
    model, images = net
    explainer = UndesirablePixels("non-target", area=0.03, steps=12, gradients=False)
    marked = explain(explainer, model, images, [Why(of=0)]).heatmaps[0] < 0
    drawn = torch.rand(12, 7, 7, generator=torch.Generator().manual_seed(0)) < 0.03
    assert 0 < int(drawn.any(dim=0).sum()) < 49
    assert not (marked & ~drawn.any(dim=0)).any()
