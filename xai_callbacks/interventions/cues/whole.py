"""Cues of the image as a whole: its quality, what lies behind the object, where the object lies."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.interventions.conditions import apply_condition, condition_in_words
from xai_callbacks.interventions.cues.base import PointsTo, Rows, require_rows, require_texts
from xai_callbacks.interventions.cues.painted import CoveringCue, PaintedCue, region_in_words
from xai_callbacks.interventions.fills import apply_fill, check_images, dilate, named_generator
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

_QUALITIES = ("blur", "darkening", "jpeg")  # conditions in which nothing is drawn at random


class QualityCue(PaintedCue):
    """Worse quality: blurred, darkened or stored as JPEG, see `interventions.conditions`.

    Args:
        conditions: `blur`, `darkening` or `jpeg` for each variant, or a single one.
        level: 1 (just visible) to 5 (severe).
        points_to, name: See `Cue`.
    """

    def __init__(
        self, conditions: str | Sequence[str], points_to: PointsTo, *, level: int = 3, name: str = "quality"
    ) -> None:
        super().__init__(name, points_to)
        self.conditions, self.level = require_texts("conditions", conditions, self, _QUALITIES), level
        condition_in_words(self.conditions[0], level, 1)  # refuses an unknown level

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        shorter = min(probes.images.shape[-2:])
        return self.described(probes, [condition_in_words(each, self.level, shorter) for each in self.conditions])

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        # One by one, so that an image does not depend on those beside it.
        pairs = zip(shown.images[:, None], variants.tolist(), strict=True)
        return torch.cat([apply_condition(image, self.conditions[each], self.level) for image, each in pairs])


class BackgroundCue(CoveringCue):
    """What lies behind the object: a picture for each class, or the backgrounds of the probes of that class.

    Objects stay, within their mask; a probe without the region has no pair. Backgrounds of probes can show a shortcut
    only as far as those of a class have something in common. Objects should leave a good part of the image to the
    background, and be large enough to be known without it: of one that covers nearly everything a "no" says little.

    Args:
        images: The picture of each variant, `(V, C, H, W)` in [0, 1], resized to the probes. Or "probes": backgrounds
            of other probes of the class, drawn for each, the object there imputed (the fill `road`).
        region: Name of the region of the object.
        opacity: How much of the background is covered, in (0, 1].
        points_to, name: See `Cue`.
    """

    def __init__(
        self,
        images: Tensor | str,
        points_to: PointsTo,
        *,
        region: str = "core",
        opacity: float = 1.0,
        name: str = "background",
    ) -> None:
        super().__init__(name, points_to, opacity)
        require_instance("images", images, (Tensor, str), 'pictures (V, C, H, W), or "probes"')
        self.images = None if isinstance(images, str) else images.detach().float().cpu()
        if self.images is not None:
            check_images("images", self.images, "Divide pixels by 255.")
            self.needs_channels["images"] = self.images.shape[1]
        got, count = images if self.images is None else len(self.images), len(self.points_to)
        if got not in ("probes", count):
            raise ConfigurationError(
                f'Expected `images` of the cue {name!r} to be "probes" or {count} pictures, one a variant, but got '
                f"{got!r}."
            )
        self.require_region("region", region)
        self.object_region = region

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`; there must be probes to take backgrounds from if no pictures are given."""
        super().check(probes)
        if self.images is not None:
            return
        probes.task.require_classes(f"the cue {self.name}", single=True)
        missing = [each for each in self.classes(probes) if not len(self._lenders(probes, each))]
        if missing:
            raise ConfigurationError(
                f"Expected a labelled probe with the region {self.object_region!r} and a background, of each class "
                f"that the cue {self.name!r} points to, but got none of class {probes.task.name(missing[0])!r}. Add "
                "one, or pass pictures as `images`."
            )

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        what = "the user's picture" if self.images is not None else "the background of a probe of the class"
        return f"{what}, opacity {self.opacity:g}, behind {region_in_words(self.object_region, probes)}"

    def covering(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `CoveringCue.covering`."""
        if self.images is None:
            return self._borrowed(shown, variants)
        size = shown.images.shape[-2:]
        return interpolate(self.images, size, mode="bilinear", antialias=True).clamp(0, 1)[variants]

    def region(self, shown: Shown) -> Tensor:
        """See `PaintedCue.region`; nothing of a probe without an object."""
        core = shown.probes.masks[self.object_region][shown.rows]
        return ~core & core.flatten(1).any(dim=1)[:, None, None]

    def _borrowed(self, shown: Shown, variants: Tensor) -> Tensor:
        """For each image, the background of another probe of the class that its variant points to."""
        probes, classes = shown.probes, self.classes(shown.probes)
        lenders = {each: self._lenders(probes, each) for each in set(classes)}
        places = []
        for row, name, variant in zip(shown.rows.tolist(), shown.names, variants.tolist(), strict=True):
            all_of_class = lenders[classes[variant]]
            others = all_of_class[all_of_class != row]
            some = others if len(others) else all_of_class
            generator = named_generator(f"background of {self.name} {variant}", shown.seed, name)
            places.append(int(some[torch.randint(len(some), (), generator=generator)]))
        masks = dilate(probes.masks[self.object_region][places], 1)
        names = [probes.names[place] for place in places]
        return apply_fill(shown.scale.displayed(probes.images[places]), masks, "road", names=names)

    def _lenders(self, probes: ProbeSet, label: int) -> Tensor:
        """Probes of a class that have an object and a background, `(n,)` int64."""
        masks = probes.masks[self.object_region].flatten(1)
        labels = torch.full((len(probes),), -1) if probes.labels is None else probes.labels
        return (masks.any(dim=1) & ~masks.all(dim=1) & (labels == label)).nonzero()[:, 0]


class ShiftCue(PaintedCue):
    """Where things lie: the object, or the whole image, moved to one side.

    Args:
        shifts: How far each variant moves `(down, right)`, in shares of height and width, -1 to 1; or a single pair.
        region: Name of the region of the object, which is moved as far as the border allows, its old place imputed
            (the fill `road`); probes without it, or spanned by it, have no pair. None moves all, its edge repeated.
        points_to, name: See `Cue`.
    """

    def __init__(self, shifts: Rows, points_to: PointsTo, *, region: str | None = None, name: str = "shift") -> None:
        super().__init__(name, points_to)
        self.shifts = require_rows("shifts", shifts, self, least=-1.0)
        if self.shifts.shape[1] != 2:
            raise ConfigurationError(
                f"Expected `shifts` of the cue {name!r} to be pairs (down, right), but got {shifts!r}."
            )
        self.require_region("region", region, optional=True)
        self.object_region = region

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        what = "the image" if self.object_region is None else region_in_words(self.object_region, probes)
        steps = [f"{down} px down and {right} px right" for down, right in self._steps(probes.images)]
        return f"{what} moved {self.described(probes, steps)}"

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        steps = [self._steps(shown.images)[each] for each in variants.tolist()]
        if self.object_region is None:
            return torch.stack([_shifted(image, *step) for image, step in zip(shown.images, steps, strict=True)])
        masks = shown.probes.masks[self.object_region][shown.rows]
        emptied = apply_fill(shown.images, dilate(masks, 1), "road", names=shown.names)
        painted = []
        for image, mask, behind, (down, right) in zip(shown.images, masks, emptied, steps, strict=True):
            step = (_within(mask.any(dim=1), down), _within(mask.any(dim=0), right))
            moved = torch.where(mask.roll(step, (0, 1)), image.roll(step, (1, 2)), behind)
            painted.append(moved if any(step) else image)
        return torch.stack(painted)

    def _steps(self, images: Tensor) -> list[tuple[int, int]]:
        """Pixels down and right, of each variant."""
        height, width = images.shape[-2:]
        return [(round(down * height), round(right * width)) for down, right in self.shifts.tolist()]


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    """A whole image `(C, H, W)` moved, its edge repeated."""
    height, width = image.shape[-2:]
    rows, columns = torch.arange(height) - down, torch.arange(width) - right
    return image[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]


def _within(occupied: Tensor, step: int) -> int:
    """How far what is there can be moved without crossing the border."""
    places = occupied.nonzero()[:, 0].tolist()
    return max(-places[0], min(step, len(occupied) - 1 - places[-1])) if places else 0
