"""What is of a wrong type is refused where it is given, by an error of ours that names the argument."""

import inspect

import pytest
import torch

import xai_callbacks
from tests.tiny import tiny_net
from xai_callbacks import (
    Checkpoint,
    Every,
    GradCAM,
    ProbeSet,
    XAICallbacksError,
    callbacks,
    explainers,
    measures,
    novelty,
    questions,
    rules,
    sinks,
    trials,
)
from xai_callbacks.interventions import cues

PROBES = ProbeSet.from_tensors(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)
RED = [1.0, 0.0, 0.0]


class Writer:
    """As good as a SummaryWriter, an image logger, a client of MLflow, and a run of Weights & Biases."""

    add_image = log_image = log = log_artifact = lambda *_: None


# What must be given; all else has a default.
NEEDED = {
    "Auditor": {"probes": PROBES},
    "BackgroundCue": {"images": "probes", "points_to": 0},
    "Checkpoint": {"source": "a.pt", "model": tiny_net},
    "CueTrial": {"cue": cues.PatchCue(RED, 0)},
    "Every": {"n": 2, "explainer": GradCAM()},
    "Expectation": {"sentence": "accuracy > 0.5"},
    "FolderSink": {"folder": "audits"},
    "FrameCue": {"colours": RED, "points_to": 0},
    "FunctionCue": {"function": lambda images, variants: images, "points_to": 0},
    "Gallery": {"probes": PROBES},
    "GradConScore": {"references": "constraint"},
    "GradientConstraint": {"module": tiny_net()},
    "GroupAccuracy": {"cue": 2},
    "ImageLoggerSink": {"logger": Writer()},
    "MLflowSink": {"client": Writer(), "run_id": "a"},
    "PasteCue": {"points_to": 0},
    "Patchwise": {"explainer": GradCAM(), "window": 4},
    "PatchCue": {"colours": RED, "points_to": 0},
    "PerSampleGradients": {"module": tiny_net(), "call": lambda images: images},
    "QualityCue": {"conditions": "blur", "points_to": 0},
    "RegionTrial": {"region": "core"},
    "Separation": {"novel": PROBES},
    "ShiftCue": {"shifts": [0.1, 0.0], "points_to": 0},
    "ShortcutMonitor": {"probes": PROBES, "cue": cues.PatchCue(RED, 0)},
    "TensorBoardSink": {"writer": Writer()},
    "TextureCue": {"textures": "stripes", "points_to": 0},
    "TintCue": {"gains": RED, "points_to": 0},
    "WandbSink": {"run": Writer()},
    "WatermarkCue": {"texts": "a", "points_to": 0},
    "from_tensors": {"images": torch.rand(4, 3, 8, 8), "labels": torch.arange(4) % 2},
}
ROOMS = {
    callbacks: callbacks.Watch,
    cues: cues.Cue,
    explainers: explainers.Explainer,
    measures: measures.Measure,
    novelty: novelty.NoveltyScore,
    questions: questions.Question,
    rules: rules.Rule,
    sinks: sinks.Sink,
    trials: trials.Trial,
}
# Plain data, which audits and builders make.
DATA = {"AuditRecord", "Comparison", "Estimate", "Finding", "Key", "MapSet", "PerProbe", "Picture", "ProbeSet"}

OF_NO_USE = {"object": object(), "list": [object()], "dict": {"a": object()}}
# A model of a user may take any object.
OF_USE = {(Checkpoint, "hparams", "dict")}


def classes():
    made = {getattr(xai_callbacks, name) for name in xai_callbacks.__all__ if name not in DATA} | {Every}
    made = {each for each in made if isinstance(each, type) and not issubclass(each, Exception)}
    for room, base in ROOMS.items():
        members = (getattr(room, name) for name in room.__all__)
        made |= {each for each in members if isinstance(each, type) and issubclass(each, base)}
    return sorted((each for each in made if not inspect.isabstract(each)), key=lambda each: each.__name__)


MAKERS = (*classes(), ProbeSet.from_tensors)
ARGUMENTS = [(make, name) for make in MAKERS for name in inspect.signature(make).parameters]
CASES = [(*each, kind) for kind in OF_NO_USE for each in ARGUMENTS if (*each, kind) not in OF_USE]


@pytest.mark.parametrize(("make", "name", "kind"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_an_object_of_no_use_is_refused_at_construction(make, name, kind):
    with pytest.raises(XAICallbacksError) as caught:
        make(**{**NEEDED.get(make.__name__, {}), name: OF_NO_USE[kind]})
    assert "Expected" in str(caught.value)
    assert name.removesuffix("s") in str(caught.value)


def test_enough_is_tried():
    assert len(ARGUMENTS) > 150
    assert set(NEEDED) <= {make.__name__ for make, _ in ARGUMENTS}
