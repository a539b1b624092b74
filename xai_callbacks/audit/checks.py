"""Checks of the arguments of auditors."""

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.probes import ProbeSet


def require_same_shape(name: str, probes: ProbeSet, reference: ProbeSet) -> None:
    """Raise a `ConfigurationError` unless images of an argument have the shape of the probes: one model takes both."""
    got, wanted = tuple(probes.images.shape[1:]), tuple(reference.images.shape[1:])
    if got != wanted:
        raise ConfigurationError(
            f"Expected the images of `{name}` to have the shape of the probes, {wanted} (C, H, W), but got {got}. Give "
            "them the transform of the probes."
        )


def require_instances(name: str, values: object, kind: type, hint: str) -> None:
    """Raise a `ConfigurationError` unless an argument is a list or tuple of instances of one class."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
        raise ConfigurationError(
            f"Expected `{name}` to be a list of {kind.__name__} instances, but got {values!r}. {hint}"
        )
