"""Cues that are painted on images: a patch, a frame, a tint, or one of the user's own."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import Parameter, signature

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.cues.base import Cue, PointsTo, Rows, Twins, require_rows, require_share
from xai_callbacks.interventions.fills import ROUNDING, apply_fill, dilate, named_generator
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet


class PaintedCue(Cue):
    """A cue that can be painted on any image; subclasses say how.

    It is painted on images without any variant of it. A labelled image is shown with the variant of another class, and
    with that of its own class or, if there is none, without the cue; see `paired_variants`.
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
        """The images with one variant, and with another or none; of the probes' own class and another's if labelled."""
        classes = self.classes(shown.probes)
        labels = shown.probes.labels if shown.probes.task.kind == "single-label" else None
        with_, without = paired_variants(classes, len(shown.probes), shown.seed, labels)
        neutral = self.neutral(shown)
        present, absent = (self.variants(shown, neutral, each[shown.rows]) for each in (with_, without))
        points_to = torch.tensor(classes)[with_[shown.rows]]
        return Twins(present, absent, neutral, points_to, self.region(shown))

    def variants(self, shown: Shown, neutral: Tensor, variants: Tensor) -> Tensor:
        """Images with a variant each, -1 for none; the very `neutral` if none has any."""
        if bool((variants < 0).all()):
            return neutral
        painted = self.paint(replace(shown, images=neutral), variants.clamp_min(0))
        return torch.where((variants >= 0)[:, None, None, None], painted, neutral)


def paired_variants(classes: Sequence[int], count: int, seed: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The variant of each of `count` images, and that of its twin: two `(count,)` int64, -1 for none.

    With labels `(count,)` int64, an image gets the variant of another class, each equally often to one image, and its
    twin that of its own, or none if there is none; where all variants point to its own class, it gets one of these and
    its twin none. Without, or where the label is unknown (-1), every variant is equally frequent, to one image, and a
    twin points to another class. `classes` are those that the variants point to.
    """
    generator = named_generator("variants", seed, str(count))
    points_to = torch.tensor(classes)
    weights = 1 / (points_to[:, None] == points_to).sum(dim=1)
    balanced = torch.arange(count)[torch.randperm(count, generator=generator)] % len(classes)
    others = (points_to[balanced, None] != points_to) * weights
    first, second = balanced, _drawn(others, generator)
    if labels is not None:
        own = (labels[:, None] == points_to) * weights
        other, mine = _drawn((labels[:, None] != points_to) * weights, generator), _drawn(own, generator)
        known = labels >= 0
        first = torch.where(known, torch.where(other >= 0, other, mine), first)
        second = torch.where(known, mine.where(other >= 0, torch.tensor(-1)), second)
    return first, second


def _drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """A column of each row, by weight and as evenly as can be among rows of equal weights; -1 where all are 0."""
    drawn = torch.full((len(weights),), -1)
    for kind in torch.unique(weights[(weights > 0).any(dim=1)], dim=0):
        rows = (weights == kind).all(dim=1).nonzero()[:, 0]
        ends = (kind.cumsum(dim=0) / kind.sum())[:-1].contiguous()
        points = (torch.arange(len(rows)) + torch.rand((), generator=generator)) / len(rows)
        drawn[rows[torch.randperm(len(rows), generator=generator)]] = torch.bucketize(points, ends, right=True)
    return drawn


class CoveringCue(PaintedCue):
    """A cue that covers its region, or the whole image, by its opacity."""

    def __init__(self, name: str, points_to: PointsTo, opacity: float) -> None:
        super().__init__(name, points_to)
        require_share("opacity", opacity, name)
        self.opacity = opacity

    @abstractmethod
    def covering(self, shown: Shown, variants: Tensor) -> Tensor:
        """What covers each image, `(n, C or 1, H or 1, W or 1)` in [0, 1]."""

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        painted = shown.images.lerp(self.covering(shown, variants).to(shown.images), self.opacity)
        region = self.region(shown)
        return painted if region is None else torch.where(region[:, None], painted, shown.images)


class _ColourCue(CoveringCue):
    def __init__(self, name: str, points_to: PointsTo, colours: Rows, opacity: float) -> None:
        super().__init__(name, points_to, opacity)
        self.colours = require_rows("colours", colours, self)
        self.needs_channels["colours"] = self.colours.shape[1]

    def covering(self, shown: Shown, variants: Tensor) -> Tensor:
        return self.colours[variants][:, :, None, None]

    def coloured(self, probes: ProbeSet) -> str:
        covers = "" if self.opacity == 1 else f", opacity {self.opacity:g}"
        return f"of colour {self.described(probes, numbers_of(self.colours))}{covers}"


class PatchCue(_ColourCue):
    """A square of one colour in a corner, or a region of the probes filled with it.

    A model may know a patch by its colour, size, edges and place, and find nothing in one that looks otherwise. Where
    the probes show the real one, take `at` their region, or `PasteCue`; in a corner, their own cue stays beside it.

    Args:
        colours: Colour of each variant, one value a channel in [0, 1], or a single colour. Variants of one class are
            colours of one cue, as in `points_to=[0, 0]`.
        size: Side as a share of the shorter side of the image, in (0, 1].
        at: `corner`: the corner that shares least with `core`, drawn among equals; a gap of a sixth of the side
            remains where there is room. Else the name of a region, where the probes themselves carry the cue: with a
            rim of one pixel it is filled by the mean of the rest first, so that nothing of their own cue is left.
        opacity: How much of the image the colour covers, in (0, 1].
        points_to, name: See `Cue`.
    """

    def __init__(
        self,
        colours: Rows,
        points_to: PointsTo,
        *,
        size: float = 0.16,
        at: str = "corner",
        opacity: float = 1.0,
        name: str = "patch",
    ) -> None:
        super().__init__(name, points_to, colours, opacity)
        require_share("size", size, name)
        self.size, self.at = size, at
        if at != "corner":
            self.require_region("at", at)
            self.carried_in = at

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        if self.at == "corner":
            return f"a square of {_pixels(self.size, probes.images)} px in a corner, {self.coloured(probes)}"
        return f"{region_in_words(self.at, probes)} filled, {self.coloured(probes)}"

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
        side = _pixels(self.size, shown.images)
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


class FrameCue(_ColourCue):
    """A frame of one colour along all four edges.

    Args:
        colours: Colour of each variant, one value a channel in [0, 1], or a single colour.
        width: As a share of the shorter side, in (0, 1]; one pixel or more. From one half on, nothing is left within.
        opacity: How much of the image the colour covers, in (0, 1].
        points_to, name: See `Cue`.
    """

    def __init__(
        self, colours: Rows, points_to: PointsTo, *, width: float = 0.06, opacity: float = 1.0, name: str = "frame"
    ) -> None:
        super().__init__(name, points_to, colours, opacity)
        require_share("width", width, name)
        self.width = width

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        return f"a frame {_pixels(self.width, probes.images)} px wide, {self.coloured(probes)}"

    def region(self, shown: Shown) -> Tensor:
        """See `PaintedCue.region`."""
        height, width = shown.images.shape[-2:]
        side = _pixels(self.width, shown.images)
        frame = torch.ones(len(shown.images), height, width, dtype=torch.bool)
        frame[:, side : height - side, side : width - side] = False
        return frame


class TintCue(PaintedCue):
    """A tint of the whole image: each channel times a factor.

    Args:
        gains: Factors of each variant, one a channel, 0 or more; or those of a single one.
        points_to, name: See `Cue`.
    """

    def __init__(self, gains: Rows, points_to: PointsTo, *, name: str = "tint") -> None:
        super().__init__(name, points_to)
        self.gains = require_rows("gains", gains, self, most=torch.inf)
        self.needs_channels["gains"] = self.gains.shape[1]

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        return f"the whole image times {self.described(probes, numbers_of(self.gains))}"

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        return (shown.images * self.gains.to(shown.images.dtype)[variants][:, :, None, None]).clamp(0, 1)


class FunctionCue(PaintedCue):
    """A cue of the user's own.

    Args:
        function: `function(images, variants)` or `function(images, variants, masks)`: images `(n, C, H, W)` in [0, 1],
            the variant of each, `(n,)` int64, and, where a third parameter is called `masks` or has no default, the
            regions of these probes by name, `(n, H, W)` bool each. Returns the images with the cue, of the same shape.
            It must do the same to an image at every call.
        points_to, name: See `Cue`.
        region: `region(images)` or `region(images, masks)`: its place, `(n, H, W)` bool; None for all, or unknown.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        points_to: PointsTo,
        *,
        name: str = "own",
        region: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(name, points_to)
        for argument, given in (("function", function), ("region", region)):
            if not callable(given) and (argument == "function" or given is not None):
                raise ConfigurationError(
                    f"Expected `{argument}` of the cue {name!r} to be callable, but got {type(given).__name__}. Pass a "
                    "function of images."
                )
        self.function, self._region = function, region

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        return f"whatever {getattr(self.function, '__name__', type(self.function).__name__)!r} paints"

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        painted, got = _called(self.function, shown, variants.clone()), ""
        if isinstance(painted, Tensor) and painted.shape == shown.images.shape and painted.is_floating_point():
            low, high = painted.aminmax()
            if low >= -ROUNDING and high <= 1 + ROUNDING:  # false for NaN, too
                return painted.detach().to(shown.images).clamp(0, 1)
            got = f"values from {float(low):.3g} to {float(high):.3g}. Clamp what it returns"
        raise ConfigurationError(
            f"Expected `function` of the cue {self.name!r} to return images {tuple(shown.images.shape)} in [0, 1], but "
            f"got {got or _described(painted)}."
        )

    def region(self, shown: Shown) -> Tensor | None:
        """See `PaintedCue.region`."""
        if self._region is None:
            return None
        found = _called(self._region, shown)
        size = (len(shown.images), *shown.images.shape[-2:])
        if isinstance(found, Tensor) and found.shape == size and found.dtype == torch.bool:
            return found.cpu()
        raise ConfigurationError(
            f"Expected `region` of the cue {self.name!r} to return booleans {size}, but got {_described(found)}. "
            "Compare a map with a threshold."
        )


def _pixels(share: float, images: Tensor) -> int:
    return max(1, round(share * min(images.shape[-2:])))


def numbers_of(rows: Tensor) -> list[str]:
    """Each row in words, such as `(0.9, 0.1, 0.1)`."""
    return [f"({', '.join(f'{number:.3g}' for number in row)})" for row in rows.tolist()]


def region_in_words(region: str, probes: ProbeSet) -> str:
    """Name and size of a region, where it is not empty."""
    sizes = probes.masks[region].flatten(1).sum(dim=1)
    return f"the region {region!r} ({float(sizes[sizes > 0].double().mean()):.0f} px on average)"


def _called(function: Callable[..., object], shown: Shown, *arguments: Tensor) -> object:
    """Call a function of images, with copies it may edit; with masks if it has a parameter more for them."""
    try:
        more = [*signature(function).parameters.values()][1 + len(arguments) :]
    except ValueError:  # of builtins, the signature may be unknown
        more = []
    if more and more[0].kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):  # noqa: SIM102
        if more[0].name == "masks" or more[0].default is Parameter.empty:  # two questions
            masks = {name: mask[shown.rows] for name, mask in shown.probes.masks.items()}
            return function(shown.images.clone(), *arguments, masks)
    return function(shown.images.clone(), *arguments)


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
