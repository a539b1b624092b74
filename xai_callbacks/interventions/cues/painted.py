"""Cues that are painted on images: a patch, or a tint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.interventions.cues.base import Cue, Twins
from xai_callbacks.interventions.cues.checks import require_channels, require_region, require_rows, require_share
from xai_callbacks.interventions.fills import apply_fill, dilate, named_generator
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

__all__ = ["PaintedCue", "PatchCue", "TintCue", "balanced_variants"]


class PaintedCue(Cue):
    """A cue that can be painted on any image; subclasses say how.

    It is painted on images without any variant of it. With one variant, the twin of an image with the cue is the image
    without. With more, it is the image with another variant that points to another class. Which variants an image gets
    is balanced over the probes and independent of their labels.
    """

    @abstractmethod
    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """Images with the variants `(n,)` int64 of the cue, `(n, C, H, W)` in [0, 1]."""

    def region(self, shown: Shown) -> Tensor | None:
        """Where the cue is painted, `(n, H, W)` bool; None if everywhere."""
        return None

    def neutral(self, shown: Shown) -> Tensor:
        """Images without any variant: the very `shown.images`, unless they bring a cue along."""
        return shown.images

    def twins(self, shown: Shown) -> Twins:
        """The images with one variant, and with another or none."""
        targets, others = balanced_variants(self.classes(shown.probes), len(shown.probes), shown.seed)
        targets, others = targets[shown.rows], others[shown.rows]
        classes = torch.tensor(self.classes(shown.probes))
        neutral = self.neutral(shown)
        bare = replace(shown, images=neutral)
        absent = neutral if len(classes) == 1 else self.paint(bare, others)
        return Twins(self.paint(bare, targets), absent, neutral, classes[targets], self.region(shown))

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`; several variants must not all point to one class."""
        super().check(probes)
        classes = self.classes(probes)
        if len(classes) > 1 and len(set(classes)) == 1:
            raise ConfigurationError(
                f"Expected the variants of the cue {self.name!r} to point to different classes, but all point to "
                f"{self.points_to[0]!r}. Give one variant, which is then compared with images without the cue."
            )


def balanced_variants(classes: Sequence[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which variant each of `count` images gets, and which one its twin: two `(count,)` int64.

    Every variant is equally frequent, to one image, and a twin points to another class, each equally likely.

    Args:
        classes: Class that each variant points to.
        count: Number of images.
        seed: Seed of the draw.
    """
    generator = named_generator("variants", seed, str(count))
    variants = torch.arange(count)[torch.randperm(count, generator=generator)] % len(classes)
    weights = (torch.tensor(classes)[:, None] != torch.tensor(classes)).float()
    if len(classes) == 1:
        return variants, variants
    return variants, torch.multinomial(weights[variants], 1, generator=generator)[:, 0]


class PatchCue(PaintedCue):
    """A square of one colour in a corner, or a region of the probes filled with it.

    A model that leans on a patch may know it by its colour, size, edges and place: one that looks otherwise than in
    training may find nothing. Where the probes show the real one, take `at` their region, or `PasteCue`; in a corner,
    their own cue stays beside it.

    Args:
        colours: Colour of each variant, one value a channel in [0, 1], or a single colour.
        points_to: See `Cue`.
        size: Side as a share of the shorter side of the image, in (0, 1].
        at: `corner`: the corner that shares least with `core`, drawn among equals; a gap of a sixth of the side
            remains where there is room. Else the name of a region, where the probes themselves carry the cue: with a
            rim of one pixel it is filled by the mean of the rest first, so that nothing of their own cue is left.
        opacity: How much of the image the colour covers, in (0, 1].
        name: See `Cue`.

    Raises:
        ConfigurationError: An argument is out of range, or colours and variants differ in number.
    """

    def __init__(
        self,
        colours: Sequence[Sequence[float]] | Sequence[float],
        points_to: int | str | Sequence[int | str],
        *,
        size: float = 0.16,
        at: str = "corner",
        opacity: float = 1.0,
        name: str = "patch",
    ) -> None:
        super().__init__(name, points_to)
        self.colours = require_rows("colours", colours, len(self.points_to), self.name)
        require_share("size", size, name)
        require_share("opacity", opacity, name)
        require_instance("at", at, str, "'corner' or the name of a region")
        self.size, self.at, self.opacity = size, at, opacity

    @property
    def carried_in(self) -> str | None:
        """See `Cue.carried_in`."""
        return None if self.at == "corner" else self.at

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`; colours must have one value, or one a channel, and the region must exist."""
        super().check(probes)
        require_channels("colours", self.colours, probes, self.name)
        if self.at != "corner":
            require_region(self.at, probes, "at", self.name)

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        colours = self.colours.to(shown.images.dtype)[variants][:, :, None, None]
        painted = shown.images.lerp(colours, self.opacity)
        return torch.where(self.region(shown)[:, None], painted, shown.images)

    def region(self, shown: Shown) -> Tensor:
        """See `PaintedCue.region`."""
        if self.at == "corner":
            return self._corners(shown)
        return shown.probes.masks[self.at][shown.rows]

    def neutral(self, shown: Shown) -> Tensor:
        """Probes that carry the cue in a region of theirs are shown with that region filled."""
        if self.at == "corner":
            return shown.images
        return apply_fill(shown.images, dilate(self.region(shown), 1), "local_mean", names=shown.names)

    def _corners(self, shown: Shown) -> Tensor:
        height, width = shown.images.shape[-2:]
        side = max(1, round(self.size * min(height, width)))
        gap = min(side // 6, min(height, width) - side)
        marks = torch.zeros(4, height, width, dtype=torch.bool)
        spans = [(slice(gap, gap + side), slice(length - gap - side, length - gap)) for length in (height, width)]
        for corner in range(4):
            marks[corner, spans[0][corner // 2], spans[1][corner % 2]] = True
        core = shown.region("core")
        empty = torch.zeros(len(shown.images), height, width, dtype=torch.bool)
        shared = torch.einsum("chw,nhw->nc", marks.float(), (empty if core is None else core).float())
        chosen = [_least(row, self.name, shown, name) for row, name in zip(shared, shown.names, strict=True)]
        return marks[torch.stack(chosen)]


class TintCue(PaintedCue):
    """A tint of the whole image: each channel times a factor.

    Args:
        gains: Factors of each variant, one a channel, 0 or more; or those of a single one.
        points_to: See `Cue`.
        name: See `Cue`.

    Raises:
        ConfigurationError: A factor is negative, or gains and variants differ in number.
    """

    def __init__(
        self,
        gains: Sequence[Sequence[float]] | Sequence[float],
        points_to: int | str | Sequence[int | str],
        *,
        name: str = "tint",
    ) -> None:
        super().__init__(name, points_to)
        self.gains = require_rows("gains", gains, len(self.points_to), self.name, most=None)

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`; there must be a factor for each channel."""
        super().check(probes)
        require_channels("gains", self.gains, probes, self.name)

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        return (shown.images * self.gains.to(shown.images.dtype)[variants][:, :, None, None]).clamp(0, 1)


def _least(shared: Tensor, cue: str, shown: Shown, name: str) -> Tensor:
    """One of the corners that share least with the object."""
    best = (shared == shared.min()).nonzero()[:, 0]
    generator = named_generator(f"corner of {cue}", shown.seed, name)
    return best[torch.randint(len(best), (), generator=generator)]
