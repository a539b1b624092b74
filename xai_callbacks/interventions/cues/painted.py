"""Cues that are painted on images: a patch, a tint, or one of the user's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.interventions.cues.base import Cue, Twins, require_channels, require_rows, require_share
from xai_callbacks.interventions.fills import ROUNDING, apply_fill, dilate, named_generator
from xai_callbacks.interventions.regions import require_region
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

__all__ = ["FunctionCue", "PaintedCue", "PatchCue", "TintCue", "balanced_variants"]


class PaintedCue(Cue):
    """A cue that can be painted on any image; subclasses say how.

    It is painted on images without any variant of it. The twin of an image with the cue is the image with another
    variant, which points to another class; where all variants point to one class, the image without the cue. The
    variants are balanced over the probes and independent of their labels.
    """

    @abstractmethod
    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """Images with the variants `(n,)` int64 of the cue, `(n, C, H, W)` in [0, 1]."""

    def region(self, shown: Shown) -> Tensor | None:
        """Place of the cue, `(n, H, W)` bool; None if everywhere."""
        return None

    def neutral(self, shown: Shown) -> Tensor:
        """Images without any variant: the very `shown.images`, unless they bring a cue along."""
        return shown.images

    def twins(self, shown: Shown) -> Twins:
        """The images with one variant, and with another or none."""
        classes = self.classes(shown.probes)
        variants, others = balanced_variants(classes, len(shown.probes), shown.seed)
        variants = variants[shown.rows]
        neutral = self.neutral(shown)
        bare = replace(shown, images=neutral)
        absent = neutral if others is None else self.paint(bare, others[shown.rows])
        return Twins(self.paint(bare, variants), absent, neutral, torch.tensor(classes)[variants], self.region(shown))


def balanced_variants(classes: Sequence[int], count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """The variant of each of `count` images, and that of its twin: two `(count,)` int64.

    Every variant is equally frequent, to one image, and a twin points to another class, each equally likely. None for
    the twins where all variants point to one class.

    Args:
        classes: Class that each variant points to.
        count: Number of images.
        seed: Seed of the draw.
    """
    generator = named_generator("variants", seed, str(count))
    variants = torch.arange(count)[torch.randperm(count, generator=generator)] % len(classes)
    others = (torch.tensor(classes)[:, None] != torch.tensor(classes)).float()
    if not others.any():
        return variants, None
    return variants, torch.multinomial(others[variants], 1, generator=generator)[:, 0]


class PatchCue(PaintedCue):
    """A square of one colour in a corner, or a region of the probes filled with it.

    A model that leans on a patch may know it by its colour, size, edges and place, and find nothing in one that looks
    otherwise than in training. Where the probes show the real one, take `at` their region, or `PasteCue`; in a corner,
    their own cue stays beside it.

    Args:
        colours: Colour of each variant, one value a channel in [0, 1], or a single colour.
        points_to: See `Cue`. Variants of one class are colours of one cue, as in `points_to=[0, 0]`.
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
        self.colours = require_rows("colours", colours, self)
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
        return self._corners(shown) if self.at == "corner" else shown.probes.masks[self.at][shown.rows]

    def neutral(self, shown: Shown) -> Tensor:
        """Probes that carry the cue in a region of theirs are shown with that region filled."""
        if self.at == "corner":
            return shown.images
        return apply_fill(shown.images, dilate(self.region(shown), 1), "local_mean", names=shown.names)

    def _corners(self, shown: Shown) -> Tensor:
        """The square of each image, in one of the corners that share least with the object."""
        height, width = shown.images.shape[-2:]
        side = max(1, round(self.size * min(height, width)))
        gap = min(side // 6, min(height, width) - side)
        marks = torch.zeros(4, height, width, dtype=torch.bool)
        spans = [(slice(gap, gap + side), slice(length - gap - side, length - gap)) for length in (height, width)]
        for corner in range(4):
            marks[corner, spans[0][corner // 2], spans[1][corner % 2]] = True
        core = shown.region("core")
        chosen = []
        for index, name in enumerate(shown.names):
            shared = torch.zeros(4) if core is None else (marks & core[index]).flatten(1).sum(dim=1)
            best = (shared == shared.min()).nonzero()[:, 0]
            generator = named_generator(f"corner of {self.name}", shown.seed, name)
            chosen.append(best[torch.randint(len(best), (), generator=generator)])
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
        self.gains = require_rows("gains", gains, self, most=torch.inf)

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`; there must be a factor for each channel."""
        super().check(probes)
        require_channels("gains", self.gains, probes, self.name)

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        return (shown.images * self.gains.to(shown.images.dtype)[variants][:, :, None, None]).clamp(0, 1)


class FunctionCue(PaintedCue):
    """A cue of the user's own.

    Args:
        function: Gets images `(n, C, H, W)` in [0, 1] and the variant of each, `(n,)` int64; returns the images with
            the cue, of the same shape. It must do the same to an image at every call.
        points_to: See `Cue`.
        name: See `Cue`.
        region: Gets the images, returns the place of the cue, `(n, H, W)` bool; None if everywhere or unknown.

    Raises:
        ConfigurationError: A function is not callable; when it is used, if it returns something else.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        points_to: int | str | Sequence[int | str],
        *,
        name: str = "own",
        region: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(name, points_to)
        for argument, given in (("function", function), ("region", region)):
            if not callable(given) and (argument == "function" or given is not None):
                raise ConfigurationError(
                    f"Expected `{argument}` of the cue {name!r} to be callable, but got {type(given).__name__}. Pass a "
                    "function of images."
                )
        self.function = function
        self._region = region

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        painted: object = self.function(shown.images.clone(), variants.clone())
        if isinstance(painted, Tensor) and painted.shape == shown.images.shape and painted.is_floating_point():
            if bool(((painted >= -ROUNDING) & (painted <= 1 + ROUNDING)).all()):
                return painted.detach().to(shown.images).clamp(0, 1)
            got = f"values from {float(painted.min()):.3g} to {float(painted.max()):.3g}. Clamp what it returns"
        else:
            got = _described(painted)
        raise ConfigurationError(
            f"Expected `function` of the cue {self.name!r} to return images {tuple(shown.images.shape)} in [0, 1], but "
            f"got {got}."
        )

    def region(self, shown: Shown) -> Tensor | None:
        """See `PaintedCue.region`."""
        if self._region is None:
            return None
        found: object = self._region(shown.images.clone())
        size = (len(shown.images), *shown.images.shape[-2:])
        if isinstance(found, Tensor) and found.shape == size and found.dtype == torch.bool:
            return found.cpu()
        raise ConfigurationError(
            f"Expected `region` of the cue {self.name!r} to return booleans {size}, but got {_described(found)}. "
            "Compare a map with a threshold."
        )


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
