"""`Cue`: the same image with a cue and without it, so that all a model changes its mind for is the cue."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance, require_name, require_number, texts_of
from xai_callbacks.interventions.regions import require_region
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

PointsTo = int | str | Sequence[int | str]
Rows = Sequence[Sequence[float]] | Sequence[float]  # numbers of each variant, or of a single one
_LISTED = 4  # variants that `described` lists


class Twins(NamedTuple):
    """Pairs of images that differ in the cue and in nothing else.

    Attributes:
        present: Images with the cue `(n, C, H, W)` in [0, 1].
        absent: The same without it, or with a variant that points to another class.
        neutral: The same without any variant. Images as they were shown, or as in another view, are not run again.
        points_to: The class that the cue in `present` points to, `(n,)` int64; -1 where there is no pair.
        region: Place of the cue in `present`, `(n, H, W)` bool; None for a cue of the image as a whole.
        added: Whether the cue was put into a probe, or taken out of one; `(n,)` bool, None if always put.
    """

    present: Tensor
    absent: Tensor
    neutral: Tensor
    points_to: Tensor
    region: Tensor | None
    added: Tensor | None = None


class Cue(ABC):
    """A property of images that a class must not be recognised by.

    Subclasses make an image with the cue, and one without. Edits are of displayed images in [0, 1], on the CPU, never
    in place, and depend on the probe set and the seed only, not on which are shown together: epochs are paired.

    Args:
        name: Names the cue in keys, such as `cue/<name>/effect`.
        points_to: The class that each variant points to, as an index or a name; one alone for a single variant.

    Attributes:
        carried_in: Name of the region in which the probes themselves carry the cue; None if they do not.
        needs: Regions that probes must have, by the argument that names them.
        needs_channels: How many values, one for all channels or one for each, by the argument that gives them.

    Raises a `ConfigurationError` if an argument is out of range, or is not one a variant where each has its own.
    """

    carried_in: str | None = None

    def __init__(self, name: str, points_to: PointsTo) -> None:
        require_name("`name` of a cue", name)
        self.name, self.needs, self.needs_channels = name, dict[str, str](), dict[str, int]()
        many = isinstance(points_to, Sequence) and not isinstance(points_to, str | bytes)
        given: Any = points_to if many else [points_to]
        self.points_to: tuple[int | str, ...] = tuple(given)
        if not given or any(isinstance(each, bool) or not isinstance(each, int | str) for each in given):
            raise ConfigurationError(
                f"Expected `points_to` of the cue {name!r} to be an index or a name of a class for each variant, but "
                f"got {points_to!r}. Pass the class that the cue may give away, such as 3, 'wolf' or [0, 1]."
            )

    @abstractmethod
    def twins(self, shown: Shown) -> Twins:
        """The same images with the cue and without."""

    def check(self, probes: ProbeSet) -> None:
        """Raise a `ConfigurationError` if the cue does not suit a probe set, before anything is run."""
        probes.task.require_classes(f"the cue {self.name}")
        self.classes(probes)
        for argument, region in self.needs.items():
            require_region(region, probes, argument, self.name)
        wanted = probes.images.shape[1]
        for argument, given in self.needs_channels.items():
            if given not in (1, wanted):
                raise ConfigurationError(
                    f"Expected `{argument}` of the cue {self.name!r} to have one value, or one for each of {wanted} "
                    f"channels, but got {given}."
                )

    def require_region(self, argument: str, region: object, *, optional: bool = False) -> None:
        """Note that probes must have the region that an argument names."""
        if region is not None or not optional:
            require_instance(argument, region, str, "the name of a region")
            self.needs[argument] = str(region)

    def describe(self, probes: ProbeSet) -> str:
        """Say what is painted, where and how large in pixels, so that nobody takes a "no" for more than was tried."""
        return f"whatever {type(self).__name__} paints"

    def described(self, probes: ProbeSet, each: Sequence[str]) -> str:
        """What is said of each variant in one sentence, with the class it points to if there are several."""
        if len(each) == 1:
            return each[0]
        classes = [probes.task.name(index) for index in self.classes(probes)]
        texts = [f"{text} for {name!r}" for text, name in zip(each, classes, strict=True)]
        texts[_LISTED:] = [f"{len(texts) - _LISTED} others"] if len(texts) > _LISTED else []
        return f"{', '.join(texts[:-1])} and {texts[-1]}"

    def classes(self, probes: ProbeSet) -> tuple[int, ...]:
        """Index of the class that each variant points to; a `ConfigurationError` suggests the nearest name."""
        return tuple(probes.task.index(f"points_to` of the cue `{self.name}", value) for value in self.points_to)


def require_share(what: str, value: object, name: str) -> None:
    """Refuse a number of the cue `name` outside (0, 1]."""
    require_number(what, value, 0, 1, ends="(]", of=f"the cue {name!r}")


def require_texts(argument: str, values: object, cue: Cue, known: Sequence[str] = ()) -> tuple[str, ...]:
    """A text for each variant, all different; one of `known` if there are any."""
    texts, count = texts_of(argument, values), len(cue.points_to)
    if len(texts) != count or len(set(texts)) < count or (known and not set(texts) <= set(known)):
        wanted = f"of {', '.join(known)}" if known else "texts"
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {cue.name!r} to be {count} different {wanted}, one a variant, but got "
            f"{', '.join(map(repr, texts))}."
        )
    return texts


def require_rows(argument: str, values: object, cue: Cue, least: float = 0.0, most: float = 1.0) -> Tensor:
    """A row of numbers from `least` to `most` for each variant, `(V, numbers)` float64; numbers are a single row."""
    try:
        rows = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        rows = torch.empty(0)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or len(rows) != len(cue.points_to) or not rows.numel():
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {cue.name!r} to be {len(cue.points_to)} of equal length, one for each "
            f"class it points to, but got {values!r}."
        )
    if not bool(((rows >= least) & (rows <= most) & rows.isfinite()).all()):
        limit = f"in [{least:g}, {most:g}]" if most < torch.inf else "finite and 0 or more"
        raise ConfigurationError(f"Expected `{argument}` of the cue {cue.name!r} to be {limit}, but got {values!r}.")
    return rows
