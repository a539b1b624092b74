"""What trials of regions check of their arguments and of the probes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.fills import FILLS
from xai_callbacks.probes import ProbeSet

__all__ = ["require_fills", "require_labels", "two_parts"]


def require_labels(probes: ProbeSet, name: str) -> None:
    """Refuse probes without labels.

    Raises:
        ConfigurationError: They have none.
    """
    if probes.labels is None:
        raise ConfigurationError(
            f"Expected labelled probes for the trial {name!r}, which counts right answers, but got none. Pass "
            "`labels=` when you build them."
        )
    probes.task.require_classes(name, single=True)


def require_fills(fills: Sequence[str], *, min_count: int = 1, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Read the names of fills.

    Args:
        fills: The names.
        min_count: How many there must be.
        without: Which ones do not suit, beside `mean`, which no trial knows.

    Raises:
        ConfigurationError: There are fewer, one is not known or does not suit, or one is named twice.
    """
    known = [fill for fill in FILLS if fill not in ("mean", *without)]
    if (
        not isinstance(fills, list | tuple)
        or len(fills) < min_count
        or any(not isinstance(fill, str) or fill not in known for fill in fills)
    ):
        raise ConfigurationError(
            f"Expected `fills` to be a list of {min_count} or more of {', '.join(known)}, but got {fills!r}."
        )
    if len(set(fills)) < len(fills):
        raise ConfigurationError(f"Expected `fills` to be different ones, but got {fills!r}. Name each once.")
    return tuple(fills)


def two_parts(masks: Tensor) -> Tensor:
    """Which images have something within the region and something around it, `(N,)`."""
    pixels = masks.flatten(1)
    return pixels.any(dim=1) & ~pixels.all(dim=1)
