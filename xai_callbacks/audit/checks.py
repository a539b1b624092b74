"""What auditors check of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.probes import ProbeSet

__all__ = ["require_finite", "require_instances", "require_labels_below", "require_probe_set", "require_same_shape"]


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


def require_labels_below(probes: ProbeSet, classes: int | None) -> None:
    """Raise unless a model has a class for each label.

    Raises:
        ConfigurationError: A label is too large.
    """
    labels = probes.labels
    if classes is not None and labels is not None and int(labels.max()) >= classes:
        index = int(labels.argmax())
        raise ConfigurationError(
            f"Expected the labels of the probes to be below {classes}, the number of classes of the model, but "
            f"probe {probes.names[index]!r} has label {int(labels[index])}. Build the probes from the data "
            "that the model is trained on."
        )


def require_finite(outputs: Tensor, probes: ProbeSet) -> None:
    """Raise unless a model returned finite numbers for all probes.

    Raises:
        AuditError: It returned NaN or inf for some.
    """
    broken = (~outputs.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
    if broken:
        raise AuditError(
            f"Expected finite model outputs, but got NaN or inf for {len(broken)} of {len(probes)} probes, "
            f"first for {probes.names[broken[0]]!r}. The training has probably diverged; look at the loss and "
            "the learning rate."
        )
