"""`ScheduledCallback`: when to audit while Lightning trains, and what happens to the record."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai_callbacks._lightning import Callback, LightningModule, Trainer
from xai_callbacks.callbacks.audits import Audits
from xai_callbacks.callbacks.followers import Follower
from xai_callbacks.callbacks.neighbours import averages_weights, check_neighbours, check_strategy, has_lazy_parameters
from xai_callbacks.callbacks.notices import Notices, OnError
from xai_callbacks.callbacks.outlets import Outlets
from xai_callbacks.callbacks.quiet import progress, without_logging
from xai_callbacks.callbacks.schedule import Schedule, step_of
from xai_callbacks.callbacks.watch import Seen, Watch
from xai_callbacks.errors import (
    AuditError,
    ConfigurationError,
    NoveltyError,
    require_instance,
    require_integer,
    require_name,
)
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate, NoveltyRecord
from xai_callbacks.sinks import main_scalars

__all__ = ["OnError", "ScheduledCallback", "loaded"]

_STATE_VERSION = 3
_LEFT_OUT = " failed and was left out"
_NOT_WATCHED = "The validation set could not be watched and training goes on."


class ScheduledCallback(Callback):
    """Audits a model as it trains, without a trace in the training; subclasses bring the auditor.

    Args:
        auditor: Looks at one model state.
        schedule: When to audit.
        max_panels: Most probes drawn.
        on_error: What happens when an audit fails while training.
        name: What all tags and keys begin with.
        watches: What looks on while Lightning validates.
        followers: What is concluded from the audits, in this order; each sees what those before it added.
    """

    def __init__(
        self,
        auditor: Audits,
        schedule: Schedule,
        *,
        max_panels: int,
        on_error: OnError,
        name: str,
        watches: Sequence[Watch] = (),
        followers: Sequence[Follower] = (),
    ) -> None:
        super().__init__()
        require_name("`name`", name)
        if on_error not in ("warn", "raise"):
            raise ConfigurationError(f"Expected `on_error` to be 'warn' or 'raise', but got {on_error!r}.")
        require_integer("max_panels", max_panels, minimum=0, hint="0 draws none.")
        self.schedule = schedule
        self.name = name
        self.on_error = on_error
        self.max_panels = max_panels
        self._auditor = auditor
        self._outlets = Outlets(auditor.probes, max_panels, name)
        self._watches = tuple(watches)
        self._followers = tuple(followers)
        self._record: NoveltyRecord | None = None
        self._audited_at: tuple[int, int] | None = None
        self._metrics: dict[str, float] = {}
        # What the validation showed at whose end an audit takes place, for its record to hold as well.
        self._seen: dict[str, Estimate] = {}
        self._validated: dict[str, float] = {}
        self._notices = Notices()

    @property
    def state_key(self) -> str:
        """Audits of several names, probes or questions keep their states apart."""
        return f"{type(self).__qualname__}[{self.name},{self._auditor.probes.fingerprint},{self._auditor.key}]"

    # Hooks, in the order in which Lightning calls them.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work with the trainer's strategy and other callbacks; warn of what may surprise."""
        if str(getattr(stage, "value", stage)) == "fit":
            check_strategy(trainer)
            check_neighbours(trainer, self, ScheduledCallback)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layer, so that mistakes come to light before training."""
        if has_lazy_parameters(pl_module):
            # The first forward pass would initialise them, which is for training to do.
            return
        with without_logging(pl_module):
            self._auditor.prepare(pl_module)
        self._notices.tell(trainer, f"{type(self).__name__} {self._auditor.describe()}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit the untrained model; a resumed run goes on with what it knew."""
        if trainer.global_step > 0:
            # Monitors may ask for a metric before the next audit is due.
            trainer.callback_metrics.update(_as_tensors(self._metrics | self._validated))
            self._audited_at = (trainer.global_step, -1)
            return
        self._begin_anew()
        if self.schedule.at_start:
            self._audit(trainer, pl_module, step_of(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Audit after every n-th optimizer step."""
        if self.schedule.step_is_due(trainer.global_step) and (self._audited_at or (-1, 0))[0] != trainer.global_step:
            self._audit(trainer, pl_module, step_of(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look on."""
        for watch in self._watches if _is_fitting(trainer) else ():
            with self._notices.forgiving(self.on_error), without_logging(pl_module):
                watch.begin(pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch."""
        for watch in self._watches if _is_fitting(trainer) else ():
            watch.before(batch, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take what the batch brought."""
        for watch in self._watches if _is_fitting(trainer) else ():
            watch.after(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit what validation has just measured."""
        if not _is_fitting(trainer):
            return
        if trainer.sanity_checking:
            for watch in self._watches:
                watch.check()
            return
        self._seen = self._look_back(trainer)
        if self.schedule.epoch_is_due(trainer.current_epoch):
            self._audit(trainer, pl_module, step_of(trainer))
        self._seen = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit here where there is no validation."""
        if not _validates(trainer) and self.schedule.epoch_is_due(trainer.current_epoch):
            self._audit(trainer, pl_module, step_of(trainer, epoch_is_over=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until every picture is written."""
        for follower in self._followers:
            self._notices.tell(trainer, follower.finish())
        with self._notices.forgiving(self.on_error):
            self._outlets.drain()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what was seen so far; nothing here may hide the exception."""
        for watch in self._watches:
            watch.stop()
        with self._notices.forgiving("warn", "Some pictures of audits are missing."):
            self._outlets.drain()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue drift and filmstrips; tensors and plain values only."""
        return {
            "version": _STATE_VERSION,
            "auditor": self._auditor.state_dict(),
            "pictures": self._outlets.state_dict(),
            "metrics": dict(self._metrics),
            "validated": dict(self._validated),
            "followers": [follower.state_dict() for follower in self._followers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue; a state of a newer version is left alone with a warning, since a resume must not fail for it."""
        if state_dict.get("version") != _STATE_VERSION:
            warnings.warn(
                f"{type(self).__name__} ignores a saved state of version {state_dict.get('version')!r}: drift and "
                "filmstrips begin anew.",
                stacklevel=2,
            )
            return
        self._auditor.load_state_dict(state_dict["auditor"])
        self._outlets.load_state_dict(state_dict["pictures"])
        self._metrics = dict(state_dict["metrics"])
        self._validated = dict(state_dict["validated"])
        for follower, state in zip(self._followers, state_dict["followers"], strict=False):
            follower.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        """Without what Lightning hangs on callbacks, which would drag the whole model along."""
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}

    def _begin_anew(self) -> None:
        """A new run, as when one callback serves several folds, has nothing to do with the one before."""
        self._auditor.forget()
        self._outlets.forget()
        self._record = self._audited_at = None
        self._seen = {}
        self._metrics = {}
        self._validated = {}
        for watch in self._watches:
            watch.forget()
        for follower in self._followers:
            follower.forget()
        self._notices.forget()

    def _audit(self, trainer: Trainer, model: nn.Module, step: int) -> None:
        here = (trainer.global_step, trainer.fit_loop.total_batch_idx)
        # Validation may be of averaged weights although the step is the same.
        if (self._audited_at == here and not averages_weights(trainer)) or has_lazy_parameters(model):
            return
        self._audited_at = here
        useless: tuple[str, ...] = ()
        failed: tuple[str, ...] = ()
        with self._notices.forgiving(self.on_error):
            # Should this audit fail, no monitor must go on reading the numbers of an earlier one.
            self._publish(trainer, dict.fromkeys(self._metrics, math.nan))
            with without_logging(model), progress(trainer, len(self._auditor.probes)) as on_progress:
                record = self._auditor.audit(model, step=step, epoch=trainer.current_epoch, on_progress=on_progress)
            for note in record.notes:
                self._notices.tell(trainer, f"{type(self).__name__}: {note}")
            useless, failed = record.useless, record.failed if isinstance(record, AuditRecord) else ()
            record, texts = self._conclude(trainer, replace(record, metrics={**record.metrics, **self._seen}))
            self._record = record
            # What the validation showed is published and written already.
            own = {key: estimate for key, estimate in record.metrics.items() if key not in self._seen}
            audited = replace(record, metrics=own)
            self._publish(trainer, main_scalars(audited, self.name))
            self._outlets.write(trainer, audited, beside=self._seen, texts=texts)
        for sentence in failed:
            # Each is told once, whatever else fails.
            what, _, _ = sentence.partition(_LEFT_OUT)
            with self._notices.forgiving(self.on_error, f"{what} failed, and audits go on without it."):
                raise AuditError(sentence)
        if useless:
            with self._notices.forgiving(self.on_error, "A novelty score says nothing, and audits go on without it."):
                raise NoveltyError(" ".join(useless))

    def _conclude(self, trainer: Trainer, record: NoveltyRecord) -> tuple[NoveltyRecord, dict[str, str]]:
        """The record with what is concluded from it, and that in words, by tag."""
        texts: dict[str, str] = {}
        for follower in self._followers:
            assert isinstance(record, AuditRecord)  # noqa: S101  # only such audits are followed; narrows the type
            followed = follower.follow(trainer, record)
            record = replace(record, metrics={**record.metrics, **followed.metrics})
            texts.update(followed.texts)
            for sentence in followed.news:
                self._notices.tell(trainer, f"{self.name}: {sentence}", loud=True)
        return record, texts

    def _look_back(self, trainer: Trainer) -> dict[str, Estimate]:
        """End the watches, log what they saw, and return it."""
        found = []
        for watch in self._watches:
            with self._notices.forgiving(self.on_error, _NOT_WATCHED):
                found.append(watch.end(trainer))
        metrics = {key: estimate for seen in found for key, estimate in seen.metrics.items()}
        scalars = {f"{self.name}/{key}": estimate.value for key, estimate in metrics.items()}
        # What is not known this time must not be read as of last time.
        self._validated = dict.fromkeys(self._validated, math.nan) | scalars
        trainer.callback_metrics.update(_as_tensors(self._validated))
        for seen in found:
            self._report(trainer, seen)
        return metrics

    def _report(self, trainer: Trainer, seen: Seen) -> None:
        for note in seen.notes:
            self._notices.tell(trainer, f"{type(self).__name__} {note}")
        with self._notices.forgiving(self.on_error):
            self._outlets.write_validation(trainer, seen.metrics, seen.scores, step_of(trainer))
        if seen.error is not None:
            with self._notices.forgiving(self.on_error, _NOT_WATCHED):
                raise seen.error

    def _publish(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._metrics = metrics
        trainer.callback_metrics.update(_as_tensors(metrics))


def loaded(probes: ProbeSet | str, argument: str = "probes") -> ProbeSet:
    """A probe set, read from its file if need be.

    Raises:
        ConfigurationError: It is neither a probe set nor a path.
    """
    if isinstance(probes, (str, Path)):
        return ProbeSet.load(probes)
    require_instance(argument, probes, ProbeSet, "a ProbeSet, or the path of a saved one")
    return probes


def _as_tensors(scalars: dict[str, float]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in scalars.items()}


def _validates(trainer: Trainer) -> bool:
    """Whether `fit` validates at all; a loader may turn out to have no batches when it is first asked for them."""
    batches = trainer.num_val_batches
    return trainer.enable_validation and (not batches or sum(batches) > 0)


def _is_fitting(trainer: Trainer) -> bool:
    return str(getattr(trainer.state.fn, "value", trainer.state.fn)) == "fit"
