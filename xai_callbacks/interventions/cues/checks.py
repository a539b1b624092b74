"""What cues check of their arguments."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.probes import ProbeSet

__all__ = ["require_channels", "require_region", "require_rows", "require_share"]

_MOST = torch.finfo(torch.float32).max


def require_region(region: str, probes: ProbeSet, argument: str, name: str) -> None:
    """Refuse the name of a region that no probe has.

    Raises:
        ConfigurationError: There are no masks of that name, or all are empty.
    """
    if region not in probes.masks:
        raise ConfigurationError(
            f"Expected `{argument}` of {name!r} to be a region of the probes, but got {region!r}. They have "
            f"{', '.join(probes.masks) or 'none; pass `masks=` when you build them'}."
        )
    if not probes.masks[region].any():
        raise ConfigurationError(
            f"Expected some probes to have the region {region!r}, `{argument}` of {name!r}, but none has. Add probes "
            "that show it."
        )


def require_share(argument: str, value: object, name: str) -> None:
    """Refuse what is not a share above 0.

    Raises:
        ConfigurationError: It lies outside (0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {name!r} to be a share in (0, 1], but got {value!r}."
        )


def require_rows(argument: str, values: object, count: int, name: str, most: float | None = 1.0) -> Tensor:
    """Read numbers as one row a variant.

    Args:
        argument: Its name, for the message.
        values: Rows of numbers, or numbers for a single variant.
        count: Number of variants.
        name: Name of the cue, for the message.
        most: Largest number allowed; None for any that is finite.

    Returns:
        `(V, numbers)` float64.

    Raises:
        ConfigurationError: There is not one row a variant, rows differ in length, or a number is out of range.
    """
    nested = _nested(values)
    if len(nested) != count or len({len(row) for row in nested}) != 1:
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {name!r} to be {count} of equal length, one for each class it points "
            f"to, but got {values!r}."
        )
    rows = torch.tensor(nested, dtype=torch.float64)
    if not bool(((rows >= 0) & (rows <= (_MOST if most is None else most))).all()):
        limit = "finite and 0 or more" if most is None else f"in [0, {most:g}], as pixels are displayed"
        raise ConfigurationError(f"Expected `{argument}` of the cue {name!r} to be {limit}, but got {values!r}.")
    return rows


def require_channels(argument: str, rows: Tensor, probes: ProbeSet, name: str) -> None:
    """Refuse rows that fit neither all channels of the images, by one number, nor each, by one a channel.

    Raises:
        ConfigurationError: They do not.
    """
    channels = probes.images.shape[1]
    if rows.shape[1] not in (1, channels):
        raise ConfigurationError(
            f"Expected `{argument}` of the cue {name!r} to have one value, or one for each of {channels} channels, but "
            f"got {rows.shape[1]}."
        )


def _nested(values: object) -> list[list[float]]:
    """Rows of numbers; numbers alone are one row; nothing where there is something else."""
    tolist = getattr(values, "tolist", None)
    listed = values if tolist is None else tolist()
    rows = list(listed) if isinstance(listed, Iterable) and not isinstance(listed, str) else []
    if rows and all(isinstance(value, int | float) for value in rows):
        rows = [rows]
    try:
        return [[float(value) for value in row] for row in rows]
    except (TypeError, ValueError):
        return []
