"""`Schedule`: times of audits, and their place on the x-axis."""

from dataclasses import dataclass

from xai_callbacks._lightning import Trainer
from xai_callbacks.errors import require_bool, require_integer


@dataclass(frozen=True)
class Schedule:
    """Times of audits.

    Attributes:
        every_n_epochs: Audit at validations of every n-th epoch, or at its end where there is no validation; None for
            never.
        every_n_train_steps: Audit also after every n-th optimizer step; None for never.
        at_start: Audit also before the first step of a new run.
        in_validate: Audit also at the end of `trainer.validate`, which is a run of its own.

    Raises a `ConfigurationError` if an interval is not a positive integer, or a switch no bool.
    """

    every_n_epochs: int | None = 1
    every_n_train_steps: int | None = None
    at_start: bool = True
    in_validate: bool = False

    def __post_init__(self) -> None:
        for name in ("every_n_epochs", "every_n_train_steps"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), minimum=1, hint="None means never.")
        require_bool("at_start", self.at_start)
        require_bool("in_validate", self.in_validate)

    @property
    def rare(self) -> str:
        """When audits are taken, in words, if that is not at each validation; else empty."""
        if self.every_n_epochs is None:
            return "within epochs" if self.every_n_train_steps else "before training"
        return "" if self.every_n_epochs == 1 else f"every {self.every_n_epochs} epochs"

    def epoch_is_due(self, epoch: int) -> bool:
        """Whether `epoch`, counted from 0, is an n-th one."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

    def step_is_due(self, global_step: int) -> bool:
        """Whether the optimizer step just done, `global_step` in all, is an n-th one."""
        return self.every_n_train_steps is not None and global_step > 0 and global_step % self.every_n_train_steps == 0


def step_of(trainer: Trainer, *, epoch_is_over: bool = False) -> int:
    """The step that Lightning itself would log at now, so that audits share the x-axis of the user's metrics.

    Lightning logs at the number of batches that stepped, not at `trainer.global_step`, which is one ahead in validation
    and counts every optimizer. When an epoch is over, as in `on_train_epoch_end`, it logs at one step less.
    """
    # Private; no public name exists in Lightning 2.5 and 2.6.
    step = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
    return max(0, step - 1) if epoch_is_over else step
