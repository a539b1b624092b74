"""What is of a wrong type is refused where it is given, by an error of ours that names the argument."""

import inspect

import pytest
import torch

import xai_callbacks
from xai_callbacks import Every, GradCAM, ProbeSet, XAICallbacksError, explainers, novelty, questions, trials
from xai_callbacks.callbacks import Group
from xai_callbacks.interventions import cues

PROBES = ProbeSet.from_tensors(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)
RED = [1.0, 0.0, 0.0]
# What must be given; all else has a default.
NEEDED = {
    "Every": {"n": 2, "explainer": GradCAM()},
    "FunctionCue": {"function": lambda images, variants: images, "points_to": 0},
    "PasteCue": {"points_to": 0},
    "PatchCue": {"colours": RED, "points_to": 0},
    "TextureCue": {"textures": "grass", "points_to": 0},
    "TintCue": {"gains": RED, "points_to": 0},
    "WatermarkCue": {"texts": "a", "points_to": 0},
    "CueTrial": {"cue": cues.PatchCue(RED, 0)},
    "RegionTrial": {"region": "core"},
    "GradConScore": {"references": "constraint"},
    "Group": {"cue": 2},
    "AlarmRule": {},
    **{key: {"probes": PROBES} for key in ("Auditor", "AuditCallback")},
    **{key: {"probes": PROBES, "scores": [novelty.MaxSoftmax()]} for key in ("NoveltyAuditor", "NoveltyCallback")},
}
ROOMS = {
    explainers: explainers.Explainer,
    questions: questions.Question,
    novelty: novelty.NoveltyScore,
    trials: trials.Trial,
    cues: cues.Cue,
}


def classes():
    made = {getattr(xai_callbacks, name) for name in NEEDED if hasattr(xai_callbacks, name)} | {Every, Group}
    for room, base in ROOMS.items():
        members = (getattr(room, name) for name in room.__all__)
        made |= {each for each in members if isinstance(each, type) and issubclass(each, base)}
    return sorted((each for each in made if not inspect.isabstract(each)), key=lambda each: each.__name__)


ARGUMENTS = [(cls, name) for cls in classes() for name in inspect.signature(cls).parameters]


@pytest.mark.parametrize(("cls", "name"), ARGUMENTS, ids=lambda each: getattr(each, "__name__", each))
@pytest.mark.parametrize("given", [object(), [object()], {"a": object()}], ids=["object", "list", "dict"])
def test_an_object_of_no_use_is_refused_at_construction(cls, name, given):
    with pytest.raises(XAICallbacksError) as caught:
        cls(**{**NEEDED.get(cls.__name__, {}), name: given})
    assert "Expected" in str(caught.value)


def test_enough_is_tried():
    assert len(ARGUMENTS) > 100
