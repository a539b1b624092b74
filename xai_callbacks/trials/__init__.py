"""Trials: edits of the probes, judged by what the model makes of them. Only what a model *uses* changes its answer."""

from xai_callbacks.trials.base import Answers, Trial, Views
from xai_callbacks.trials.cue import CueTrial
from xai_callbacks.trials.regions import BackgroundTrial, HalfTrial, RegionTrial

__all__ = ["Answers", "BackgroundTrial", "CueTrial", "HalfTrial", "RegionTrial", "Trial", "Views"]
