"""What an auditor refuses: at construction, when a model is prepared, or at an audit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    ConfigurationError,
    GradCAM,
    IntegratedGradients,
    Occlusion,
    OutputError,
    ProbeSet,
    TargetLayerError,
    Why,
)


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


@pytest.mark.parametrize("explainers", [None, [GradCAM()], [GradCAM("2")], [Occlusion()], [IntegratedGradients()]])
def test_weights_that_are_nan_are_said_to_be_and_no_layer_is_blamed(explainers):
    net = tiny_net()
    with torch.no_grad():
        net[0].weight.fill_(math.nan)
    auditor = Auditor(tiny_probes(), explainers=explainers)
    with pytest.raises(AuditError, match=r"Expected finite model outputs, but got NaN .* has probably diverged"):
        auditor.audit(net)
    assert auditor.audit(tiny_net()).outputs.isfinite().all()


def test_label_beyond_the_classes_is_an_error_that_says_how_many_are_needed():
    probes = tiny_probes(labels=[0, 1, 0, 5, 1, 0], class_names=None, names=list("abcdef"))
    with pytest.raises(OutputError, match=r"for 6 classes or more, as the labels .* go up to 5, but the model gives 3"):
        Auditor(probes).prepare(tiny_net())


def test_unknown_layer_suggests_the_nearest():
    net = nn.Sequential()
    net.add_module("backbone", tiny_net())
    with pytest.raises(TargetLayerError, match=r"Did you mean .*'backbone.2'"):
        Auditor(tiny_probes(), explainers=[GradCAM("backbon.2")]).prepare(net)


@pytest.mark.parametrize("named", [True, False])
def test_question_about_a_class_the_model_lacks_is_refused(named):
    probes = tiny_probes() if named else tiny_probes(class_names=None)
    with pytest.raises(ConfigurationError, match="below 3"):
        Auditor(probes, [Why(of=3)]).prepare(tiny_net())


def test_question_about_a_class_that_probes_do_not_name_is_refused_at_construction():
    with pytest.raises(ConfigurationError, match="'wolf'"):
        Auditor(tiny_probes(), [Why(of="wolf")])


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": Why()}, "Expected `questions` to be a list of Question instances"),
        ({"explainers": GradCAM()}, "Expected `explainers` to be a list of Explainer instances"),
        ({"explainers": [GradCAM]}, "Expected `explainers` to be a list of Explainer instances"),
        ({"explainers": "gradcam"}, "Expected `explainers` to be a list of Explainer instances"),
        ({"explainers": [GradCAM("0"), GradCAM("2")]}, "different names, but got 'gradcam' twice"),
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
        Auditor(tiny_probes(), explainers=[GradCAM("net.2")]).prepare(Rounding())


def test_something_that_cannot_be_called_is_no_model():
    with pytest.raises(ConfigurationError, match="or a function from images to outputs, but got dict"):
        Auditor(tiny_probes()).audit({"weights": 1})


# ---- out of memory


def short_of_memory(error, at=math.inf):
    """A net that finds no room from a forward pass on, counted from 0, and the passes so far."""
    net, passes = tiny_net(), []

    def begin(_module, given):
        passes.append(len(given[0]))
        if len(passes) > at:
            raise error

    net.register_forward_pre_hook(begin)
    return net, passes


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=["CUDA", "CPU"])
def test_out_of_memory_in_the_check_before_training_names_chunk_size_wherever_it_happens(error):
    net, passes = short_of_memory(error)
    Auditor(tiny_probes()).prepare(net)
    assert len(passes) > 1
    for at in range(len(passes)):
        with pytest.raises((ConfigurationError, AuditError), match="Lower `chunk_size`"):
            Auditor(tiny_probes()).prepare(short_of_memory(error, at)[0])


@pytest.mark.parametrize("error", MEMORY, ids=["CUDA", "CPU"])
def test_out_of_memory_of_an_explainer_in_the_check_names_chunk_size(error):
    class Greedy(GradCAM):
        name = "greedy"

        def explain(self, observation, plan):
            raise error

    with pytest.raises((ConfigurationError, AuditError), match="Lower `chunk_size`"):
        Auditor(tiny_probes(), explainers=[GradCAM(), Greedy()]).prepare(tiny_net())


@pytest.mark.parametrize("error", MEMORY, ids=["CUDA", "CPU"])
def test_out_of_memory_at_an_audit_names_chunk_size(error):
    auditor = Auditor(tiny_probes(), chunk_size=4)
    auditor.prepare(tiny_net())
    net, _ = short_of_memory(error, at=0)
    with pytest.raises(AuditError, match=r"4 images .* Lower `chunk_size`, now 4"):
        auditor.audit(net)
