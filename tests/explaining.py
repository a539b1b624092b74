"""One model explained as an auditor does it: traced, planned, observed once and answered."""

from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.access import Subject, trace_model, undisturbed
from xai_callbacks.audit.observer import observe
from xai_callbacks.explainers import Explainer, Observation, Plan
from xai_callbacks.tasks import SingleLabel


class Brightness(Explainer):
    """One map an image, whatever is asked."""

    name = "brightness"
    about = "image"
    units = "relative"

    def prepare(self, trace, reference):
        return Plan(reason="the pixels")

    def explain(self, observation, plan):
        return observation.images.mean(dim=1)[None]


class Explained(NamedTuple):
    heatmaps: Tensor
    outputs: Tensor
    scores: Tensor
    plan: Plan

    @property
    def layer(self):
        return self.plan.layers[0]


def subject_of(model, images, task=None, output=None):
    """The model with its outputs known, and its trace."""
    subject = Subject(model, task or SingleLabel(), output=output)
    trace = trace_model(subject, images[:2])
    subject.learn_outputs(trace.outputs.detach(), trace.ending())
    return subject, trace


def observed(subject, plan: Plan, images, questions, truth=None, trace=None, **settings) -> Observation:
    head = None if trace is None or trace.head() is None else trace.head().name
    return observe(subject, images, truth, questions, plan.layers, head=head, **settings)


def explain(explainer, model, images, questions, truth=None, task=None, output=None, **settings) -> Explained:
    """Answer questions about images by one explainer."""
    with undisturbed(model):
        subject, trace = subject_of(model, images, task, output)
        plan = explainer.prepare(trace, None)
        observation = observed(subject, plan, images, questions, truth, trace, **settings)
        heatmaps = explainer.explain(observation, plan).detach()
        scores = torch.stack([posed.score(observation.outputs).detach() for posed in observation.posed])
        return Explained(heatmaps, observation.outputs.detach(), scores, plan)
