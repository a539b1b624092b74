"""Probes of noise, and cues painted on them, for the tests of cues."""

from __future__ import annotations

import torch

from tests.trials.exact import HEIGHT, WIDTH
from tests.trials.exact import shown_of as shown
from xai_callbacks import ProbeSet


def noise(count=4, height=HEIGHT, width=WIDTH, channels=3, **fields):
    """Probes of noise."""
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(2))
    return ProbeSet.from_tensors(images, **fields)


def painted(cue, probes, variant=0):
    """One variant on all probes."""
    return cue.paint(shown(probes), torch.full((len(probes),), variant))
