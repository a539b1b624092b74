"""What every explainer must hold to; a new one is picked up from `xai_callbacks.explainers` by itself."""

import copy
import gc
import inspect
import pickle
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import xai_callbacks
from tests.contract.every_explainer import (
    EXPLAINERS,
    OF_CLASSES,
    OF_PLACES,
    QUESTIONS,
    SETTINGS,
    InputTimesGradient,
    Net,
    close,
    every_about_questions,
    every_explainer,
    every_linear,
    every_linear_of_values,
    images,
    made,
    net_of,
)
from tests.explaining import explain, observed, subject_of
from tests.tiny import random_streams
from xai_callbacks import Auditor, ProbeSet, Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import (
    VOICE,
    Explainer,
    GuidedGradCAM,
    ImplicitSaliency,
    IntegratedGradients,
    LayerExplainer,
    Occlusion,
)
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel


def test_the_contract_covers_what_is_exported():
    names = {explainer.__name__ for explainer in EXPLAINERS}
    assert names >= {"GradCAM", "HiResCAM", "LayerCAM", "IntegratedGradients", "Occlusion"}
    assert names - {"InputTimesGradient"} <= set(xai_callbacks.__all__)


@every_explainer
@pytest.mark.parametrize("size", [(12, 12), (12, 20), (20, 12)])
def test_answers_are_finite_detached_and_one_for_each_question_and_image(explainer, size):
    explained = explain(made(explainer), net_of(explainer), images(3, *size), QUESTIONS)
    maps = explained.heatmaps
    questions = 1 if explainer.about == "image" else len(QUESTIONS)
    assert maps.shape[:2] == (questions, 3)
    assert abs(maps.shape[2] / size[0] - maps.shape[3] / size[1]) < 0.1
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert (maps[0].std(dim=(1, 2)) > 0).all()


@every_explainer
def test_the_plan_is_plain_and_says_what_it_costs(explainer):
    plan = explain(made(explainer), net_of(explainer), images(), [Why()]).plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.reason
    assert plan.cost >= 0
    assert (plan.cost == 0) == issubclass(explainer, (LayerExplainer, VOICE, ImplicitSaliency))


@every_explainer
def test_the_model_is_run_as_often_as_the_plan_says(explainer):
    model, forwards, backwards = net_of(explainer), [], []

    def count(_module, _given, output):
        forwards.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda _gradient: backwards.append(len(output)))

    with undisturbed(model):
        subject, trace = subject_of(model, images())
        plan = made(explainer).prepare(trace, None)
    handle = model.stem[0].register_forward_hook(count)
    with undisturbed(model):
        observation = observed(subject, plan, images(), [Why()], trace=trace)
        forwards.clear()
        made(explainer).explain(observation, plan)
    handle.remove()
    # Captum asks for the score of the image itself once more.
    assert (sum(forwards) + sum(backwards)) / len(images()) <= plan.cost + 1
    assert plan.cost <= 2 * sum(forwards) / len(images())


@pytest.mark.gpu
@every_explainer
def test_answers_on_a_gpu_are_those_on_the_cpu(explainer):
    expected = explain(made(explainer), net_of(explainer), images(), QUESTIONS).heatmaps
    found = explain(made(explainer), net_of(explainer).cuda(), images(), QUESTIONS).heatmaps.cpu()
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-2)


@every_explainer
def test_its_docstring_says_what_it_costs(explainer):
    described = [each for each in explainer.__mro__ if each.__module__.startswith("xai_callbacks.explainers")]
    words = [inspect.getdoc(each) or "" for each in described if each is not Explainer]
    assert explainer is InputTimesGradient or any("Cost:" in each or "Cost as of" in each for each in words)


@every_explainer
def test_it_can_be_named_in_yaml(explainer):
    jsonargparse = pytest.importorskip("jsonargparse", reason="LightningCLI reads YAML by it")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--explainer", type=Explainer)
    given = SETTINGS.get(explainer.__name__, {})
    if "explainer" in given:
        given = given | {"explainer": {"class_path": "xai_callbacks.HiResCAM"}}
    named = {"class_path": f"{explainer.__module__}.{explainer.__name__}", "init_args": given}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name in older releases
    found = instantiate(parser.parse_object({"explainer": named})).explainer
    assert type(found) is explainer
    assert repr(found) == repr(made(explainer))


@every_explainer
def test_questions_do_not_influence_each_other(explainer):
    together = explain(made(explainer), net_of(explainer), images(), QUESTIONS)
    for index, question in enumerate(QUESTIONS if explainer.about == "question" else ()):
        alone = explain(made(explainer), net_of(explainer), images(), [question])
        # Grad-CAM may have no positive cell to guide to.
        close(alone.heatmaps[0], together.heatmaps[index], may_be_empty=explainer is GuidedGradCAM)


@every_explainer
@pytest.mark.parametrize("chunk_size", [2, 16])
def test_chunks_give_what_the_whole_gives(explainer, chunk_size):
    whole = explain(made(explainer), net_of(explainer), images(5), QUESTIONS).heatmaps
    parts = [
        explain(made(explainer), net_of(explainer), part, QUESTIONS, chunk_size=chunk_size).heatmaps
        for part in images(5).split([1, 3, 1])
    ]
    close(torch.cat(parts, dim=1), whole)


@every_about_questions
def test_the_labels_belong_to_their_images(explainer):
    batch, truth = images(3), torch.tensor([2, 0, 1])
    by_label = explain(made(explainer), net_of(explainer), batch, [Why(of="label")], truth).heatmaps[0]
    by_index = explain(made(explainer), net_of(explainer), batch, [Why(of=index) for index in range(3)]).heatmaps
    close(by_label, by_index[truth, torch.arange(3)])


@every_explainer
def test_the_order_of_the_classes_does_not_matter(explainer):
    order, model = torch.tensor([2, 0, 1]), net_of(explainer)
    before = explain(made(explainer), model, images(), [Why(of=2), WhyRatherThan(foil=0, fact=1)]).heatmaps
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
    close(explain(made(explainer), model, images(), [Why(of=0), WhyRatherThan(foil=1, fact=2)]).heatmaps, before)


@every_linear
def test_a_map_is_in_units_of_the_score(explainer):
    model = net_of(explainer)
    before, bias = explain(made(explainer), model, images(), [Why(of=0)]).heatmaps, model.head.bias[0].item()
    with torch.no_grad():
        model.head.weight.mul_(3)
        model.head.bias.add_(5)  # the same for every image and place: nothing to show
    after = explain(made(explainer), model, images(), [Why(of=0)]).heatmaps
    if explainer.__name__ in OF_PLACES:
        close(after, 3 * (before - bias) + bias + 5)
    elif made(explainer).units == "score":
        close(after, 3 * before)
    else:
        close(after / after.abs().amax(), before / before.abs().amax())


@every_explainer
@pytest.mark.parametrize(
    ("task", "outputs", "questions", "truth"),
    [
        (SingleLabel(), 1, [Why(), WhyRatherThan(), WhyNotCertain()], torch.tensor([0, 1, 1, 0])),
        (
            MultiLabel(width=3),
            3,
            [Why(), Why("label"), WhyRatherThan(), WhyNotCertain()],
            torch.eye(3).long()[[0, 1, 2, 0]],
        ),
        (MultiLabel(width=1), 1, [Why(), WhyNotCertain()], torch.ones(4, 1).long()),
        (Regression(), 1, [Why(), WhyValueRatherThan()], torch.arange(4.0)),
        (Regression(("a", "b"), 2), 2, [Why("b"), WhyValueRatherThan(9.0, of="a")], torch.rand(4, 2)),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_every_task_is_explained(explainer, task, outputs, questions, truth):
    alone = task.kind == "regression" or task.width == 1
    # There is no variance over the one foil of two classes.
    if explainer.__name__ in OF_CLASSES and (alone or (explainer is VOICE and outputs < 3)):
        with pytest.raises(ConfigurationError, match="Expected"):
            explain(made(explainer), net_of(explainer, outputs), images(), questions, truth, task)
        return
    maps = explain(made(explainer), net_of(explainer, outputs), images(), questions, truth, task).heatmaps
    assert maps.isfinite().all()
    assert (maps[0].flatten(1).std(dim=1) > 0).all()


@every_linear_of_values
def test_a_map_of_a_squared_error_is_its_closed_form(explainer):
    explained = explain(
        made(explainer), net_of(explainer, 1), images(), [Why(), WhyValueRatherThan(-100.0)], task=Regression()
    )
    # Far from the value, (y - v)^2 is linear in y: 2 (y - v) times the map of y.
    factor = 2 * (explained.outputs[:, 0] + 100)
    found, expected = explained.heatmaps[1], factor[:, None, None] * explained.heatmaps[0]
    if explainer.__name__ in OF_PLACES:
        expected = (explained.heatmaps[0] + 100).square()
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=2e-2)


@every_explainer
@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_nothing_is_left_behind(explainer, surrounding):
    model = net_of(explainer).train()
    model.stem.eval()
    model(images()).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [(parameter.grad, parameter.grad.clone()) for parameter in model.parameters()]
    flags, streams = [module.training for module in model.modules()], random_streams()
    with surrounding():
        explain(made(explainer), model, images(), QUESTIONS)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter, (same, content) in zip(model.parameters(), held, strict=True):
        assert parameter.grad is same
        assert torch.equal(same, content)
    assert [module.training for module in model.modules()] == flags
    assert random_streams() == streams
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@every_explainer
def test_the_state_of_the_random_streams_does_not_matter(explainer):
    first = explain(made(explainer), net_of(explainer), images(), QUESTIONS)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert torch.equal(explain(made(explainer), net_of(explainer), images(), QUESTIONS).heatmaps, first.heatmaps)


@every_explainer
def test_frozen_nets_are_explained_like_trainable_ones(explainer):
    expected = explain(made(explainer), net_of(explainer), images(), QUESTIONS).heatmaps
    close(explain(made(explainer), net_of(explainer).requires_grad_(False), images(), QUESTIONS).heatmaps, expected)
    half = explain(made(explainer), net_of(explainer).to(torch.bfloat16), images(), [Why(of=0)]).heatmaps
    assert half.dtype == torch.float32
    assert half.isfinite().all()


@every_explainer
def test_an_explainer_is_plain_and_keeps_no_model_alive(explainer):
    original, model = made(explainer), net_of(explainer)
    expected = explain(original, model, images(), QUESTIONS).heatmaps
    for twin in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
        assert repr(twin) == repr(original)
        assert torch.equal(explain(twin, net_of(explainer), images(), QUESTIONS).heatmaps, expected)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@every_explainer
def test_an_auditor_takes_it_and_its_name_begins_the_keys(explainer):
    masks = {"core": torch.ones(4, 12, 12).bool().tril()}
    probes = ProbeSet.from_tensors(images(), [0, 1, 2, 0], masks=masks, mean=[0.5] * 3, std=[0.5] * 3)
    record = Auditor(probes, QUESTIONS, explainers=[made(explainer)]).audit(net_of(explainer))
    name = made(explainer).name
    assert list(record.maps) == [name]
    assert record.failed == ()
    key = "/why" if explainer.about == "question" else ""
    assert f"{name}{key}/relevance_mass/core" in record.metrics
    expected = explain(made(explainer), net_of(explainer), images(), QUESTIONS, torch.tensor([0, 1, 2, 0])).heatmaps
    close(record.heatmaps, expected)


def test_black_boxes_are_explained_by_what_needs_neither_gradients_nor_modules():
    model = Net().eval()

    def black_box(batch):
        with torch.no_grad():
            return model(batch).numpy()

    probes = ProbeSet.from_tensors(images(), [0, 1, 2, 0], mean=[0.5] * 3, std=[0.5] * 3)
    record = Auditor(probes, explainers=[Occlusion(4)]).audit(black_box)
    expected = Auditor(probes, explainers=[Occlusion(4)]).audit(model)
    torch.testing.assert_close(record.heatmaps, expected.heatmaps)
    assert record.metrics["accuracy"].value == expected.metrics["accuracy"].value
    with pytest.raises(ValueError, match="differentiated with respect to its images for IntegratedGradients"):
        Auditor(probes, explainers=[IntegratedGradients()]).audit(black_box)
