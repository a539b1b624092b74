"""`Cue`: the same image with a cue and without it, so that all a model changes its mind for is the cue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_name
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

__all__ = ["Cue", "Twins", "class_index"]


class Twins(NamedTuple):
    """Pairs of images that differ in the cue and in nothing else.

    Attributes:
        present: Images with the cue `(n, C, H, W)` in [0, 1].
        absent: The same without it, or with a variant that points to another class; the very tensor that was shown
            where nothing is changed, which spares a forward pass.
        neutral: The same without any variant; likewise.
        points_to: The class that the cue in `present` points to, `(n,)` int64; -1 where there is no pair.
        region: Where the cue lies in `present`, `(n, H, W)` bool; None for a cue of the image as a whole.
        added: Where the cue was put into a probe, True, or taken out of one, False; `(n,)` bool, None if always put.
    """

    present: Tensor
    absent: Tensor
    neutral: Tensor
    points_to: Tensor
    region: Tensor | None
    added: Tensor | None = None


class Cue(ABC):
    """A property of images that a class must not be recognised by.

    Subclasses say what an image with the cue looks like, and what without. All edits are those of displayed images in
    [0, 1], on the CPU, and depend on the probe set and the seed only, so that epochs are paired. They must not depend
    on which probes are shown together, nor change what they are shown in place.

    Args:
        name: Names the cue in keys, such as `cue/<name>/effect`.
        points_to: The class that each variant points to, as an index or a class name; one alone for a single variant.

    Raises:
        ConfigurationError: The name is not letters, digits, '_', '-' and '.', or there is no variant, or a class is
            neither an index nor a name.
    """

    def __init__(self, name: str, points_to: int | str | Sequence[int | str]) -> None:
        require_name("`name` of a cue", name)
        self.name = name
        self.points_to = _references(points_to, name)

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
        return tuple(class_index(value, probes, f"`points_to` of the cue {self.name!r}") for value in self.points_to)


def _references(points_to: object, name: str) -> tuple[int | str, ...]:
    """Class of each variant, as an index or a name."""
    given = points_to if isinstance(points_to, Sequence) and not isinstance(points_to, str | bytes) else [points_to]
    if not given or not all(isinstance(value, int | str) and not isinstance(value, bool) for value in given):
        raise ConfigurationError(
            f"Expected `points_to` of the cue {name!r} to be an index or a name of a class for each variant, but got "
            f"{points_to!r}. Pass the class that the cue may give away, such as 3, 'wolf' or [0, 1]."
        )
    return tuple(given)


def class_index(value: int | str, probes: ProbeSet, what: str) -> int:
    """Index of a class given by index or name.

    Args:
        value: The index or the name.
        probes: Probes that know names.
        what: What the value is, for the message.

    Raises:
        ConfigurationError: There is no such class.
    """
    names = probes.class_names
    if isinstance(value, str):
        if names is not None and value in names:
            return names.index(value)
        near = get_close_matches(value, names or (), n=1, cutoff=0.5)
        known = ", ".join((names or ())[:10]) or "none"
        hint = f"Did you mean {near[0]!r}?" if near else f"The probes know {known}."
        raise ConfigurationError(f"Expected {what} to be the name of a class, but got {value!r}. {hint}")
    if value < 0 or (names is not None and value >= len(names)):
        most = "" if names is None else f" below {len(names)}"
        raise ConfigurationError(f"Expected {what} to be a class index from 0{most}, but got {value!r}.")
    return value
