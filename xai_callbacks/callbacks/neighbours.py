"""What an audit needs of the trainer and of the callbacks beside it."""

import warnings
from collections.abc import Sequence

from torch import nn

from xai_callbacks._lightning import Callback, Trainer
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.record import Key

_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "XLAStrategy", "XLAFSDPStrategy"}


def check_trainer(trainer: Trainer, callback: Callback, kind: type[Callback]) -> None:
    """Raise a `ConfigurationError` for a strategy that shards the model, and for callbacks of a kind and of one name.

    Strategies are told by class name, as either Lightning package may bring them.
    """
    names, strategy = _ancestry(trainer.strategy), type(trainer.strategy).__name__
    if names & _SHARDING or ("DeepSpeedStrategy" in names and getattr(trainer.strategy, "zero_stage_3", False)):
        raise ConfigurationError(
            f"Expected a strategy under which each process holds the whole model, but got {strategy}. Train without "
            "AuditCallback and audit the saved checkpoints with Auditor instead."
        )
    name = getattr(callback, "name", None)
    if sum(isinstance(other, kind) and getattr(other, "name", None) == name for other in _callbacks(trainer)) > 1:
        raise ConfigurationError(
            f"Expected audits in one trainer to have different names, but got several called {name!r}. Pass "
            f"{type(callback).__name__}(..., name='background') or the like."
        )


def warn_of_neighbours(trainer: Trainer, callback: Callback, name: str, rare: str, watched: Sequence[Key]) -> None:
    """Warn of monitors that would misread an audit called `name`, and of averaged weights that it would not see.

    `rare` says when it takes place, if that is less often than each validation; `watched` is known there all the same.
    """
    for other in _callbacks(trainer):
        monitor = str(getattr(other, "monitor", ""))
        key = monitor.removeprefix(f"{name}/")
        if key == monitor:
            continue
        if "EarlyStopping" in _ancestry(other) and getattr(other, "check_finite", False):
            warnings.warn(
                f"EarlyStopping monitors {monitor!r} and ends the run when that has no value, as after an audit that "
                "failed or of an explainer that is not due. Pass EarlyStopping(..., check_finite=False) to go on.",
                stacklevel=2,
            )
        if rare and not any(each.matches(key) for each in watched):
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
    callbacks = _callbacks(trainer)
    earlier = callbacks if before is None else callbacks[: callbacks.index(before)]
    return any("WeightAveraging" in _ancestry(other) for other in earlier)


def has_lazy_parameters(module: nn.Module) -> bool:
    """Whether some parameters wait for the first forward pass, which is for training to make."""
    return any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in module.parameters())


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]  # set by Lightning outside the class


def _ancestry(instance: object) -> set[str]:
    return {base.__name__ for base in type(instance).__mro__}
