"""What an audit needs of the trainer: a whole model on each process, and clarity about which weights."""

from __future__ import annotations

import warnings

from torch import nn

from xai_callbacks._lightning import Callback, Trainer
from xai_callbacks.errors import ConfigurationError

__all__ = ["check_strategy", "has_lazy_parameters"]

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "XLAStrategy", "XLAFSDPStrategy")


def check_strategy(trainer: Trainer, callback: Callback) -> None:
    """Refuse strategies that shard parameters; warn if averaged weights are swapped out before our audit.

    Classes are told by name, since either Lightning package may have brought them.

    Raises:
        ConfigurationError: No process holds the whole model.
    """
    names = {base.__name__ for base in type(trainer.strategy).__mro__}
    sharded = names & set(_SHARDING) or (
        "DeepSpeedStrategy" in names and getattr(trainer.strategy, "zero_stage_3", False)
    )
    if sharded:
        raise ConfigurationError(
            "Expected a strategy under which each process holds the whole model, but got "
            f"{type(trainer.strategy).__name__}. "
            f"Train without AuditCallback and audit the saved checkpoints with Auditor instead."
        )
    for other in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning outside the class
        if other is callback:
            return
        if any(base.__name__ == "WeightAveraging" for base in type(other).__mro__):
            warnings.warn(
                "AuditCallback stands after WeightAveraging in `callbacks`, so it audits the raw weights while "
                "validation uses the averaged "
                "ones. Put AuditCallback first to audit the averaged weights.",
                stacklevel=2,
            )


def has_lazy_parameters(module: nn.Module) -> bool:
    """Whether some parameters wait for the first forward pass, which is for training to make."""
    return any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in module.parameters())
