"""Settings of `mnist_shortcuts.py`: which data, which net, which recipe, how many seeds, and what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from _mnist_shortcuts import (
    CLASSES,
    SHADES,
    Cued,
    coloured,
    conflicting_colours,
    decoyed,
    irm_environment,
    irm_mlp,
    lenet,
    lff_mlp,
    palette,
    planned_colours,
    ross_mlp,
)
from torch import Tensor, nn

from xai_callbacks import ProbeSet
from xai_callbacks.interventions.cues import PatchCue, TintCue
from xai_callbacks.trials import CueTrial

__all__ = ["SETTINGS", "Digits", "Recipe", "Setting", "Task"]

PER_DIGIT = 20


@dataclass(frozen=True)
class Digits:
    """MNIST: pixels `(N, 28, 28)` uint8 and labels, of 60,000 training and 10,000 test images or of fewer."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def probes(self) -> Tensor:
        """Rows of the test images that are watched: the first of each digit."""
        labels = self.test[1]
        return torch.cat([(labels == digit).nonzero()[:PER_DIGIT, 0] for digit in range(CLASSES)])


@dataclass(frozen=True)
class Task:
    """What a net learns, and what it is asked.

    Attributes:
        train: Training images.
        tests: Test images by name, first the ones whose groups are judged.
        probes: Digits without a cue.
        trial: Shows them with the cue of one class and of another.
        held_out: Biased images by whose loss the epoch is chosen; None keeps the last.
        decoys: The same digits with a decoy of a class drawn at random, for heatmaps; None where there is no place.
    """

    train: Cued
    tests: Mapping[str, Cued]
    probes: ProbeSet
    trial: CueTrial
    held_out: Cued | None = None
    decoys: ProbeSet | None = None


@dataclass(frozen=True)
class Recipe:
    """How a net is trained: Adam on the cross-entropy and the squared norm of all parameters, weights and biases.

    Attributes:
        net: Makes the net.
        epochs: Passes over the training images.
        batch: Images in a step; the last, smaller one of an epoch is kept.
        rate: Learning rate.
        decay: Factor of the squared norm.
        summed: Whether the cross-entropy is summed over the batch, which is what `decay` is relative to.
        shuffled: Whether the order changes from epoch to epoch.
        explained: Whether heatmaps are asked for; they need a convolutional layer.
    """

    net: Callable[[], nn.Module]
    epochs: int
    batch: int
    rate: float
    decay: float = 0.0
    summed: bool = False
    shuffled: bool = True
    explained: bool = False


@dataclass(frozen=True)
class Setting:
    """One row of the tables.

    Attributes:
        title: What it is.
        task: Makes the data of a seed.
        recipe: How the net is trained.
        seeds: How many seeds are run.
        published: Accuracies in percent by name of the test, and where they are from under `source`.
    """

    title: str
    task: Callable[[Digits, torch.Generator], Task]
    recipe: Recipe
    seeds: int
    published: Mapping[str, float | str]


def ross(data: Digits, generator: torch.Generator) -> Task:
    """Squares of 4 px; at test the shade of any digit, Ross's way."""
    return _decoys(data, generator, side=4, held_out=0)


def cdep(data: Digits, generator: torch.Generator) -> Task:
    """Squares of 5 px; at test the scale of greys reversed, CDEP's way; a tenth of the training images held out."""
    return _decoys(data, generator, side=5, held_out=len(data.train[1]) // 10)


def _decoys(data: Digits, generator: torch.Generator, *, side: int, held_out: int) -> Task:
    shades = torch.tensor(SHADES)
    (pixels, labels), (test_pixels, test_labels) = data.train, data.test
    train = decoyed(pixels, labels, shades[labels], generator, side=side)
    order = torch.randperm(len(labels), generator=generator) if held_out else torch.arange(len(labels))
    anyone = torch.randint(CLASSES, test_labels.shape, generator=generator)
    drawn = decoyed(test_pixels, test_labels, shades[anyone], generator, side=side)
    tests = {
        "random": drawn,
        "reversed": decoyed(test_pixels, test_labels, 25 * test_labels, generator, side=side),
        "without": Cued(test_pixels[:, None], test_labels, drawn.cues),
    }
    shown = drawn.rows(data.probes)
    core = (test_pixels[data.probes] > 127) & ~_required(shown.region)
    decoys = ProbeSet.from_tensors(
        shown.images.float() / 255, shown.labels, masks={"core": core, "spurious": _required(shown.region)}
    )
    # With such a size the patch lies flush in a corner, as decoys do.
    size = side / test_pixels.shape[-1]
    cue = PatchCue([[shade / 255] for shade in SHADES], list(range(CLASSES)), size=size, name="decoy")
    return Task(
        train.rows(order[held_out:]),
        tests,
        _plain(test_pixels[data.probes], shown.labels, channels=1),
        CueTrial(cue),
        train.rows(order[:held_out]) if held_out else None,
        decoys,
    )


def lff(data: Digits, generator: torch.Generator, *, conflicting: float) -> Task:
    """Ten colours; at test independent of the digit."""
    colours = palette(generator)
    (pixels, labels), (test_pixels, test_labels) = data.train, data.test
    others = conflicting_colours(test_labels, generator)
    tests = {
        "independent": coloured(test_pixels, test_labels, planned_colours(test_labels, 0.9), colours, generator),
        "conflicting": coloured(test_pixels, test_labels, others, colours, generator),
    }
    train = coloured(pixels, labels, planned_colours(labels, conflicting), colours, generator)
    cue = TintCue(colours.tolist(), list(range(CLASSES)), name="colour")
    return Task(train, tests, _plain(*(part[data.probes] for part in data.test), channels=3), CueTrial(cue))


def irm(data: Digits, generator: torch.Generator) -> Task:
    """Two classes with a quarter of the labels wrong; the colour agrees with the label in 80, 90, and at test 10 %."""
    pixels, labels = data.train
    order = torch.randperm(len(labels) * 5 // 6, generator=generator)
    parts = [
        irm_environment(pixels[rows], labels[rows], flipped, generator)
        for rows, flipped in ((order[::2], 0.2), (order[1::2], 0.1))
    ]
    both = Cued(*(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "cues")))
    train = both.rows(torch.randperm(len(both), generator=generator))
    last = slice(len(order), None)
    tests = {
        "reversed": irm_environment(pixels[last], labels[last], 0.9, generator),
        "independent": irm_environment(pixels[last], labels[last], 0.5, generator),
    }
    cue = TintCue([[1.0, 0.0], [0.0, 1.0]], [0, 1], name="colour")
    watched, shown = (part[data.probes] for part in data.test)
    return Task(train, tests, _plain(watched[:, ::2, ::2], (shown < 5).long(), channels=2), CueTrial(cue))


def _plain(pixels: Tensor, labels: Tensor, *, channels: int) -> ProbeSet:
    """White digits; the core is what a cue may hide a fifth of."""
    images = pixels[:, None].expand(-1, channels, -1, -1).float() / 255
    return ProbeSet.from_tensors(images, labels, masks={"core": pixels > 127})


def _required(region: Tensor | None) -> Tensor:
    assert region is not None  # as decoys lie somewhere; narrows the type
    return region


_LFF = "LfF, repeated by DeNetDM, table 1"


def _lff_setting(percent: float, figure: float) -> Setting:
    return Setting(
        f"Coloured MNIST, {percent:g} % conflicting",
        lambda data, generator: lff(data, generator, conflicting=percent / 100),
        Recipe(lff_mlp, epochs=20, batch=256, rate=0.01),
        seeds=3,
        published={"independent": figure, "source": _LFF},
    )


SETTINGS = {
    "decoy_ross": Setting(
        "Decoy-MNIST, Ross's, MLP",
        ross,
        Recipe(ross_mlp, epochs=64, batch=256, rate=0.001, decay=1e-4, summed=True, shuffled=False),
        seeds=3,
        published={"train": 99.7, "random": 51.6, "source": "notebook of Ross et al."},
    ),
    "decoy_cdep": Setting(
        "Decoy-MNIST, CDEP's, LeNet",
        cdep,
        Recipe(lenet, epochs=5, batch=64, rate=0.001, decay=5e-5, explained=True),
        seeds=1,
        published={},
    ),
    "coloured_0.5": _lff_setting(0.5, 35.3),
    "coloured_1": _lff_setting(1, 50.3),
    "coloured_2": _lff_setting(2, 62.3),
    "coloured_5": _lff_setting(5, 77.6),
    "irm": Setting(
        "Coloured MNIST of IRM, two classes",
        irm,
        Recipe(irm_mlp, epochs=25, batch=2500, rate=0.001, decay=0.001),
        seeds=3,
        published={},
    ),
}
