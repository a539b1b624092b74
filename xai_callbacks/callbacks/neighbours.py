"""What an audit needs of the trainer and of the callbacks beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from xai_callbacks._lightning import Callback, Trainer
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.record import Key

__all__ = ["averages_weights", "check_neighbours", "check_strategy", "has_lazy_parameters"]

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "XLAStrategy", "XLAFSDPStrategy")


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that shard parameters; they are told by name, as either Lightning package may bring them.

    Raises:
        ConfigurationError: No process holds the whole model.
    """
    names = _ancestry(trainer.strategy)
    if names & set(_SHARDING) or ("DeepSpeedStrategy" in names and getattr(trainer.strategy, "zero_stage_3", False)):
        raise ConfigurationError(
            "Expected a strategy under which each process holds the whole model, but got "
            f"{type(trainer.strategy).__name__}. Train without AuditCallback and audit the saved checkpoints with "
            "Auditor instead."
        )


def check_neighbours(
    trainer: Trainer, callback: Callback, kind: type[Callback], *, rare: str, watched: Sequence[Key] = ()
) -> None:
    """Look at the callbacks beside one that audits.

    Warns of an `EarlyStopping` that would end the run over an audit without a value, of monitors that act more often
    than there are audits, and of a `WeightAveraging` that swaps the averaged weights out before the audit sees them.

    Args:
        trainer: The trainer.
        callback: The callback that audits.
        kind: The class of all that do.
        rare: When it audits, in words, if that is less often than at each validation; else empty.
        watched: What it knows at each validation all the same.

    Raises:
        ConfigurationError: Another audit has the same name, so one would write over the other.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning outside the class
    name = getattr(callback, "name", None)
    if sum(isinstance(other, kind) and getattr(other, "name", None) == name for other in callbacks) > 1:
        raise ConfigurationError(
            f"Expected audits in one trainer to have different names, but got several called {name!r}. Pass "
            f"{type(callback).__name__}(..., name='background') or the like."
        )
    for other in callbacks:
        monitor = str(getattr(other, "monitor", ""))
        strict = "EarlyStopping" in _ancestry(other) and getattr(other, "check_finite", False)
        if strict and monitor.startswith(f"{name}/"):
            warnings.warn(
                f"EarlyStopping monitors {monitor!r} and ends the run when that has no value, as after an audit that "
                "failed or of an explainer that is not due. Pass EarlyStopping(..., check_finite=False) to go on.",
                stacklevel=2,
            )
        key = monitor.removeprefix(f"{name}/")
        if rare and key != monitor and not any(each.matches(key) for each in watched):
            warnings.warn(
                f"{type(other).__name__} monitors {monitor!r}, which is audited only {rare}: in between it sees the "
                "value of the last audit, of other weights. Audit at each validation, or let it act as rarely.",
                stacklevel=2,
            )
    if averages_weights(trainer, before=callback):
        warnings.warn(
            "AuditCallback stands after WeightAveraging in `callbacks`, so it audits the raw weights while "
            "validation uses the averaged ones. Put AuditCallback first to audit the averaged weights.",
            stacklevel=2,
        )


def averages_weights(trainer: Trainer, before: Callback | None = None) -> bool:
    """Whether a `WeightAveraging` is among the callbacks, or among those before one of them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning outside the class
    earlier = callbacks if before is None else callbacks[: callbacks.index(before)]
    return any("WeightAveraging" in _ancestry(other) for other in earlier)


def _ancestry(instance: object) -> set[str]:
    return {base.__name__ for base in type(instance).__mro__}


def has_lazy_parameters(module: nn.Module) -> bool:
    """Whether some parameters wait for the first forward pass, which is for training to make."""
    return any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in module.parameters())
