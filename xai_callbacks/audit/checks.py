"""What auditors check of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.probes import ProbeSet

__all__ = ["require_instances", "require_probe_set", "require_same_shape"]


def require_probe_set(name: str, value: object) -> None:
    """Raise unless an argument is a probe set.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(value, ProbeSet):
        raise ConfigurationError(
            f"Expected `{name}` to be a ProbeSet, but got {type(value).__name__}. See ProbeSet.from_dataset."
        )


def require_same_shape(name: str, probes: ProbeSet, reference: ProbeSet) -> None:
    """Raise unless images that an argument brings have the shape of the probes, so that one model takes both.

    Args:
        name: The argument, such as `novel`.
        probes: What it brings.
        reference: The probes.

    Raises:
        ConfigurationError: Channels, height or width differ.
    """
    got, wanted = tuple(probes.images.shape[1:]), tuple(reference.images.shape[1:])
    if got != wanted:
        raise ConfigurationError(
            f"Expected the images of `{name}` to have the shape of the probes, {wanted} (C, H, W), but got {got}. Give "
            "them the transform of the probes."
        )


def require_instances(name: str, values: object, kind: type, hint: str) -> None:
    """Raise unless an argument is a list or tuple of instances of one class.

    Raises:
        ConfigurationError: It is something else.
    """
    fits = isinstance(values, Sequence) and not isinstance(values, str)
    if not fits or not all(isinstance(value, kind) for value in values):  # type: ignore[attr-defined]  # `fits` says so
        raise ConfigurationError(
            f"Expected `{name}` to be a list of {kind.__name__} instances, but got {values!r}. {hint}"
        )
