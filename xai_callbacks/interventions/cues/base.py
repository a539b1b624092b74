"""`Cue`: the same image with a cue and without it, so that all a model changes its mind for is the cue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, is_number, require_name
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

__all__ = ["Cue", "Twins", "require_channels", "require_rows", "require_share"]


class Twins(NamedTuple):
    """Pairs of images that differ in the cue and in nothing else.

    Attributes:
        present: Images with the cue `(n, C, H, W)` in [0, 1].
        absent: The same without it, or with a variant that points to another class; the very tensor that was shown
            where nothing is changed, which spares a forward pass.
        neutral: The same without any variant; likewise.
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

    Subclasses make an image with the cue, and one without. All edits are those of displayed images in [0, 1], on the
    CPU, and depend on the probe set and the seed only, so that epochs are paired. They must not depend on which probes
    are shown together, nor change these in place.

    Args:
        name: Names the cue in keys, such as `cue/<name>/effect`.
        points_to: The class that each variant points to, as an index or a class name; one alone for a single variant.
            Several variants may point to the same class.

    Raises:
        ConfigurationError: The name is not letters, digits, '_', '-' and '.', or there is no variant, or a class is
            neither an index nor a name.
    """

    def __init__(self, name: str, points_to: int | str | Sequence[int | str]) -> None:
        require_name("`name` of a cue", name)
        self.name = name
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
        """Say whether the cue suits a probe set, before anything is run.

        Raises:
            ConfigurationError: It does not.
        """
        probes.task.require_classes(f"the cue {self.name}")
        self.classes(probes)

    @property
    def carried_in(self) -> str | None:
        """Name of the region in which the probes themselves carry the cue; None if they do not."""
        return None

    def classes(self, probes: ProbeSet) -> tuple[int, ...]:
        """Index of the class that each variant points to.

        Raises:
            ConfigurationError: There is no class of a name; the message suggests the nearest.
        """
        return tuple(probes.task.index(f"points_to` of the cue `{self.name}", value) for value in self.points_to)


def require_share(argument: str, value: object, name: str) -> None:
    """Refuse a number of the cue `name` outside (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {name!r} to be a share in (0, 1], but got {value!r}."
        )


def require_rows(argument: str, values: object, cue: Cue, most: float = 1.0) -> Tensor:
    """A row of numbers from 0 to `most` for each variant, `(V, numbers)` float64; plain numbers are a single row."""
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
    if not bool(((rows >= 0) & (rows <= most) & rows.isfinite()).all()):
        limit = f"in [0, {most:g}], as pixels are displayed" if most < torch.inf else "finite and 0 or more"
        raise ConfigurationError(f"Expected `{argument}` of the cue {cue.name!r} to be {limit}, but got {values!r}.")
    return rows


def require_channels(argument: str, rows: Tensor, probes: ProbeSet, name: str) -> None:
    """Refuse rows of neither one number for all channels nor one for each."""
    channels = probes.images.shape[1]
    if rows.shape[1] not in (1, channels):
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {name!r} to have one value, or one for each of {channels} channels, but "
            f"got {rows.shape[1]}."
        )
