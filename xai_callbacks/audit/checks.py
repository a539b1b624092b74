"""Checks of the arguments of auditors, and of what models return."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xai_callbacks.access.subject import OTHER_MODEL
from xai_callbacks.errors import AuditError, ConfigurationError, OutputError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.tasks import Task

__all__ = ["require_as_prepared", "require_finite", "require_instances", "require_same_shape"]


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


def require_as_prepared(outputs: Tensor, task: Task, *, probabilities: bool) -> None:
    """Raise unless outputs are those of a model like the one that was prepared.

    Args:
        outputs: Of all probes, as they were read.
        task: What was learnt of the outputs.
        probabilities: Whether they were learnt to be probabilities.

    Raises:
        OutputError: There are more or fewer, or they are probabilities that were read as logits.
    """
    if outputs.shape[1] != task.width:
        raise OutputError(
            f"Expected {task.width} outputs, as the model gave when it was prepared, but got {outputs.shape[1]}. "
            f"{OTHER_MODEL}"
        )
    if not probabilities and task.are_distributions(outputs):
        raise OutputError(
            "Expected logits, as the model gave when it was prepared, but got probabilities, which add up to 1. "
            f"{OTHER_MODEL}"
        )
