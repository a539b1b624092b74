"""Models whose answers can be computed by hand, and probes for them, for the tests of trials."""

from __future__ import annotations

import torch
from torch import nn

from xai_callbacks import ProbeSet
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.measuring import summarized
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.interventions.cues import (
    BackgroundCue,
    FrameCue,
    FunctionCue,
    PasteCue,
    PatchCue,
    QualityCue,
    ShiftCue,
    TextureCue,
    TintCue,
    WatermarkCue,
)
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.trials import BackgroundTrial, CueTrial, HalfTrial, RegionTrial

HEIGHT, WIDTH = 12, 10
CLASSES = ("red", "green", "blue")
COLOURS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
GAIN = 20.0


def box(top, left, height, width, size=(HEIGHT, WIDTH)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


CUE, OBJECT = box(0, 0, 3, 3), box(5, 4, 4, 4)


class Reads(nn.Module):
    """Answers by the colour that a region shows: the logit of class k is `GAIN` times its mean in channel k.

    All else in the image has no influence, to the last bit.
    """

    def __init__(self, region, classes=3, channels=3):
        super().__init__()
        self.features = nn.Conv2d(channels, channels, 1, bias=False)
        self.head = nn.Linear(channels, classes, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(channels)[:, :, None, None])
            self.head.weight.copy_(GAIN * torch.eye(classes, channels))
        self.register_buffer("region", region.float())

    def forward(self, images):
        shares = self.region / self.region.sum()
        return self.head((self.features(images) * shares).sum(dim=(2, 3)))


class Constant(nn.Module):
    """Gives every image the same logits."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


class Breaks(Reads):
    """NaN for images that show pure red in the first pixel."""

    def forward(self, images):
        red = (images[:, 0, 0, 0] > 0.99) & (images[:, 1, 0, 0] < 0.01)
        return torch.where(red[:, None], torch.nan, super().forward(images))


def scene(objects, cues, *, grey=0.25, cue=CUE, core=OBJECT):
    """Images `(N, 3, H, W)` of grey with an object and a cue, each of the colour of a class; -1 for none."""
    images = torch.full((len(objects), 3, *core.shape), grey)
    for image, thing, mark in zip(images, objects, cues, strict=True):
        for index, region in ((thing, core), (mark, cue)):
            if index >= 0:
                image[:, region] = torch.tensor(COLOURS[index])[:, None]
    return images


def scenes(count=12, *, masks=None, **fields):
    """Labelled probes: the object tells the class, the cue another one; `fields` overrides what `from_tensors` gets."""
    labels = torch.arange(count) % 3
    cues = (labels + 1) % 3
    regions = {"core": OBJECT.expand(count, -1, -1), "spurious": CUE.expand(count, -1, -1)}
    given = {"labels": labels, "class_names": CLASSES, "masks": regions if masks is None else masks, **fields}
    return ProbeSet.from_tensors(given.pop("images", scene(labels.tolist(), cues.tolist())), **given)


def shown_of(probes, rows=None, seed=0):
    """Probes as they are displayed, all of them or those of `rows`."""
    scale = PixelScale.of(probes)
    rows = torch.arange(len(probes)) if rows is None else torch.tensor(rows)
    return Shown(scale.displayed(probes.images[rows]), rows, probes, scale, seed)


def answers(model, probes):
    """What a model says of probes as they are."""
    subject = Subject(model, probes.task)
    with undisturbed(model), torch.no_grad():
        return subject(subject.images(probes.images))


def tried(model, probes, *trials, chunk_size=5):
    """Estimates by key, and what failed."""
    runner, given = TrialRunner(probes, trials), answers(model, probes)
    with undisturbed(model):
        return runner.run(Subject(model, probes.task), given, chunk_size=chunk_size)


def values(model, probes, *trials, chunk_size=5):
    """Estimates by key; nothing may fail."""
    found = tried(model, probes, *trials, chunk_size=chunk_size)
    assert found.failed == ()
    return summarized(found.judged, [key for trial in trials for key in trial.keys()])  # noqa: SIM118  # no mapping


def every_trial():
    """One of each, with each cue, for `scenes`."""
    return [
        CueTrial(PatchCue(COLOURS, CLASSES, at="spurious")),
        CueTrial(PatchCue([1.0, 1.0, 0.0], "green", opacity=0.7, name="corner")),
        CueTrial(TintCue([[1.3, 0.8, 0.8], [0.8, 0.8, 1.3]], ["red", "blue"])),
        CueTrial(TextureCue(["stripes", "dots"], ["red", "green"], keep="core")),
        CueTrial(WatermarkCue("ab", "blue")),
        CueTrial(FunctionCue(lambda images, variants: images * 0.5, "red")),
        CueTrial(PasteCue("red")),
        CueTrial(FrameCue(COLOURS, CLASSES)),
        CueTrial(QualityCue(["jpeg", "darkening"], ["red", "blue"])),
        CueTrial(BackgroundCue("probes", ["red", "green"])),
        CueTrial(ShiftCue([0.2, 0.0], "blue", region="core")),
        RegionTrial("spurious", ("local_mean", "gauss", "swap")),
        RegionTrial("core"),
        BackgroundTrial(),
        HalfTrial(),
    ]
