"""One class of each kind, as a stranger would write them in a file of their own."""

from __future__ import annotations

import torch

from xai_callbacks import Cue, Estimate, Explainer, Finding, Key, Measure, PerProbe, Question, Rule, Sink, Trial
from xai_callbacks.explainers import Plan
from xai_callbacks.interventions.cues import Twins
from xai_callbacks.questions import Posed
from xai_callbacks.trials import Views


class InputTimesGradient(Explainer):
    """Gradient of each score by the pixels, times the pixels."""

    name = "input_x_gradient"

    def prepare(self, trace, reference):
        return Plan(reason="the pixels", cost=2.0)

    def explain(self, observation, plan):
        maps = []
        for posed in observation.posed:
            images = observation.images.clone().requires_grad_()
            with torch.enable_grad():
                score = posed.score(observation.subject(images)).sum()
            (gradient,) = torch.autograd.grad(score, images)
            maps.append((gradient * images).sum(dim=1).detach())
        return torch.stack(maps)


class SumScore(Posed):
    def score(self, outputs):
        return outputs.sum(dim=1)


class WhyAnything(Question):
    """What raises all outputs?"""

    key = "why_anything"

    def pose(self, outputs, truth, task):
        return SumScore(fact=outputs.argmax(dim=1))

    def title(self, fact, foil):
        return "Why anything?"

    def check(self, task, *, labelled):
        pass


class Border(Cue):
    """A white frame of one pixel."""

    def __init__(self, points_to: int = 0) -> None:
        super().__init__("border", points_to)

    def twins(self, shown):
        region = torch.ones(len(shown.images), *shown.images.shape[-2:], dtype=torch.bool)
        region[:, 1:-1, 1:-1] = False
        present = torch.where(region[:, None], 1.0, shown.images)
        classes = torch.full((len(shown.images),), self.classes(shown.probes)[0])
        return Twins(present, shown.images, shown.images, classes, region)


class Brighter(Trial):
    """How many answers change when images get brighter."""

    name = "bright"

    def check(self, probes):
        pass

    def views(self, shown):
        return Views({"brighter": (1.2 * shown.images).clamp(0, 1)})

    def judge(self, probes, answers):
        return {"bright/moved": PerProbe((answers.views["brighter"].argmax(1) != answers.given.argmax(1)).double())}


class Sparsity(Measure):
    """Share of the cells of each map that hold half of its magnitude."""

    def keys(self, context):
        return [
            Key(f"{begins}/sparsity", "share of cells with half the relevance", 0.0, 1.0) for begins in context.asked
        ]

    def measure(self, record, past, context):
        found = {}
        for name, given in record.maps.items():
            for question, maps in zip(record.questions, given.heatmaps, strict=True):
                shares = maps.abs().flatten(1).sort(dim=1, descending=True).values.double()
                reached = shares.cumsum(dim=1) >= shares.sum(dim=1, keepdim=True) / 2
                found[f"{name}/{question}/sparsity"] = PerProbe(1 - reached.double().mean(dim=1))
        return {**found, "audits_before": Estimate(float(len(past)))}


class Improves(Rule):
    """Whether accuracy is higher than at the first audit."""

    keys = (Key("improves", "whether accuracy has risen since the first audit", of="nothing"),)

    def conclude(self, history):
        seen = [estimate.value for _, estimate in history.estimates("accuracy")]
        better = seen[-1] > seen[0]
        return [
            Finding("improves", "yes" if better else "no", float(better), f"accuracy {seen[0]:.2f} to {seen[-1]:.2f}")
        ]


class Notebook(Sink):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.pages = []
        self.closed = False

    def write(self, record, pictures):
        self.pages.append((record.step, record.metrics["accuracy"].value, [picture.tag for picture in pictures]))

    def close(self):
        self.closed = True


class Folded(Notebook):
    """The same, for YAML: the last one made can be asked what it was given."""

    made = []  # noqa: RUF012  # as a stranger would

    def __init__(self) -> None:
        super().__init__()
        Folded.made.append(self)
