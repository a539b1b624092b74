"""Trials of a patch in place of the cue of `scenes`, and the keys that it is judged by."""

from __future__ import annotations

from tests.trials.exact import CLASSES, COLOURS, scenes, values
from xai_callbacks.interventions.cues import PatchCue
from xai_callbacks.trials import CueTrial

LABELLED = {"pull", "gap", "gain", "loss", "room", "control", "excess", "object_only_acc", "pair_acc"}


KEYS = LABELLED | {
    "effect",
    "effect_logit",
    "flip_rate",
    "tv",
    "consistency",
    "spurious_score",
    "only_acc",
}


def patch(**changes):
    return CueTrial(PatchCue(**{"colours": COLOURS, "points_to": CLASSES, "at": "spurious"} | changes))


def of_patch(model, probes=None, **changes):
    """Estimates by the last part of the key."""
    found = values(model, scenes() if probes is None else probes, patch(**changes))
    assert all(key.startswith("cue/patch/") for key in found)
    return {key.removeprefix("cue/patch/"): estimate for key, estimate in found.items()}
