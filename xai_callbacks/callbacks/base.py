"""`ScheduledCallback`: when to audit while Lightning trains, and what happens to the record."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from tqdm import tqdm

from xai_callbacks._lightning import Callback, LightningModule, Trainer
from xai_callbacks.callbacks.neighbours import averages_weights, check_neighbours, check_strategy, has_lazy_parameters
from xai_callbacks.callbacks.outlets import Outlets
from xai_callbacks.callbacks.schedule import Schedule, step_of
from xai_callbacks.callbacks.validation import Seen, ValidationWatch
from xai_callbacks.errors import ConfigurationError, NoveltyError, require_integer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import NoveltyRecord
from xai_callbacks.sinks import main_scalars

__all__ = ["Audits", "OnError", "ScheduledCallback", "loaded"]

OnError = Literal["warn", "raise"]

_STATE_VERSION = 2
# An audit shorter than this, in seconds, shows no progress bar.
_SHOW_PROGRESS_AFTER = 1.0


class Audits(Protocol):
    """What a `ScheduledCallback` needs of an auditor."""

    probes: ProbeSet

    @property
    def key(self) -> str:
        """What is asked, in one word."""

    def prepare(self, model: nn.Module) -> object:
        """Look at a model once, so that mistakes come to light before training."""

    def describe(self) -> str:
        """What is done to a prepared model, in words."""

    def audit(
        self, model: nn.Module, *, step: int, epoch: int, on_progress: Callable[[int], None] | None
    ) -> NoveltyRecord:
        """Audit one model state."""

    def state_dict(self) -> dict[str, Any]:
        """What the next audit compares itself with."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""

    def forget(self) -> None:
        """Begin anew."""


class ScheduledCallback(Callback):
    """Audits a model as it trains, without a trace in the training; subclasses bring the auditor.

    Args:
        auditor: Looks at one model state.
        schedule: When to audit.
        max_panels: Most probes drawn.
        on_error: What happens when an audit fails while training.
        name: What all tags and keys begin with.
        watch: Scores the validation data as they pass; None for none.
    """

    def __init__(
        self,
        auditor: Audits,
        schedule: Schedule,
        *,
        max_panels: int,
        on_error: OnError,
        name: str,
        watch: ValidationWatch | None = None,
    ) -> None:
        super().__init__()
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigurationError(f"Expected `name` to be letters, digits, '_', '-' and '.', but got {name!r}.")
        if on_error not in ("warn", "raise"):
            raise ConfigurationError(f"Expected `on_error` to be 'warn' or 'raise', but got {on_error!r}.")
        require_integer("max_panels", max_panels, least=0, hint="0 draws none.")
        self.schedule = schedule
        self.name = name
        self.on_error = on_error
        self.max_panels = max_panels
        self._auditor = auditor
        self._outlets = Outlets(auditor.probes, max_panels, name)
        self._watch = watch
        self._record: NoveltyRecord | None = None
        self._audited_at: tuple[int, int] | None = None
        self._metrics: dict[str, float] = {}
        self._told: set[str] = set()

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
        with _without_logging(pl_module):
            self._auditor.prepare(pl_module)
        self._tell(trainer, f"{type(self).__name__} {self._auditor.describe()}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit the untrained model; a resumed run goes on with what it knew."""
        if trainer.global_step > 0:
            # Monitors may ask for a metric before the next audit is due.
            trainer.callback_metrics.update(_as_tensors(self._metrics))
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
        """Listen to the last layer, if the validation data are to be scored."""
        if self._watch is not None and not trainer.sanity_checking and _is_fitting(trainer):
            with self._forgiving(self.on_error):
                self._watch.begin(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score what the batch brought."""
        if self._watch is not None:
            with self._forgiving(self.on_error):
                self._watch.collect()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit what validation has just measured."""
        if self._watch is not None and not trainer.sanity_checking and _is_fitting(trainer):
            with self._forgiving(self.on_error):
                self._report(trainer, self._watch.end(trainer))
        if not trainer.sanity_checking and _is_fitting(trainer) and self.schedule.epoch_is_due(trainer.current_epoch):
            self._audit(trainer, pl_module, step_of(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit here where there is no validation."""
        if not _validates(trainer) and self.schedule.epoch_is_due(trainer.current_epoch):
            self._audit(trainer, pl_module, step_of(trainer, epoch_is_over=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until every picture is written."""
        with self._forgiving(self.on_error):
            self._outlets.drain()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what was seen so far; nothing here may hide the exception."""
        if self._watch is not None:
            self._watch.stop()
        with self._forgiving("warn", "Some pictures of audits are missing."):
            self._outlets.drain()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue drift and filmstrips; tensors and plain values only."""
        return {
            "version": _STATE_VERSION,
            "auditor": self._auditor.state_dict(),
            "pictures": self._outlets.state_dict(),
            "metrics": dict(self._metrics),
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

    def __getstate__(self) -> dict[str, Any]:
        """Without what Lightning hangs on callbacks, which would drag the whole model along."""
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}

    def _begin_anew(self) -> None:
        """A new run, as when one callback serves several folds, has nothing to do with the one before."""
        self._auditor.forget()
        self._outlets.forget()
        self._record = self._audited_at = None
        self._metrics = {}
        self._told.clear()

    def _audit(self, trainer: Trainer, model: nn.Module, step: int) -> None:
        here = (trainer.global_step, trainer.fit_loop.total_batch_idx)
        # Validation may be of averaged weights although the step is the same.
        if (self._audited_at == here and not averages_weights(trainer)) or has_lazy_parameters(model):
            return
        self._audited_at = here
        useless: tuple[str, ...] = ()
        with self._forgiving(self.on_error):
            # Should this audit fail, no monitor must go on reading the numbers of an earlier one.
            self._publish(trainer, dict.fromkeys(self._metrics, math.nan))
            with _without_logging(model), _progress(trainer, len(self._auditor.probes)) as on_progress:
                record = self._auditor.audit(model, step=step, epoch=trainer.current_epoch, on_progress=on_progress)
            for note in record.notes:
                self._tell(trainer, f"{type(self).__name__}: {note}")
            self._record = record
            self._publish(trainer, main_scalars(record, self.name))
            self._outlets.write(trainer, record)
            useless = record.useless
        if useless:
            with self._forgiving(self.on_error, "A novelty score says nothing, and audits go on without it."):
                raise NoveltyError(" ".join(useless))

    @contextmanager
    def _forgiving(self, on_error: OnError, happened: str = "An audit failed and training goes on.") -> Iterator[None]:
        """Report what fails inside, once for each kind of error, instead of ending the run."""
        try:
            yield
        except Exception as error:
            if on_error == "raise":
                raise
            kind = type(error).__name__
            if kind not in self._told:
                self._told.add(kind)
                warnings.warn(
                    f"{happened} {kind}: {error} (on_error='raise' would stop at the first failing audit.)",
                    stacklevel=2,
                )

    def _report(self, trainer: Trainer, seen: Seen) -> None:
        """Log the scores of the validation set."""
        with self._forgiving(self.on_error):
            if not seen.means:
                self._tell(
                    trainer,
                    f"{type(self).__name__} could not score the validation set: its steps call no last linear layer "
                    "that a hook can see. A compiled model hides it; or no score suits, see `watch_validation`.",
                )
            if seen.left_out:
                self._tell(
                    trainer,
                    f"{type(self).__name__}: {seen.left_out} novelty score(s) of validation images are NaN or inf.",
                )
            scalars = {f"{self.name}/validation/novelty/{score}": mean for score, mean in seen.means.items()}
            trainer.callback_metrics.update(_as_tensors(scalars))
            self._outlets.write_validation(trainer, scalars, seen.scores, step_of(trainer))

    def _publish(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._metrics = metrics
        trainer.callback_metrics.update(_as_tensors(metrics))

    def _tell(self, trainer: Trainer, message: str) -> None:
        """Say something once, where Lightning says its own."""
        if message not in self._told and trainer.is_global_zero:
            self._told.add(message)
            # A user's own Trainer class lives elsewhere; Lightning's is among its ancestors.
            homes = [cls.__module__ for cls in type(trainer).__mro__ if "lightning" in cls.__module__]
            logging.getLogger(next(iter(homes), __name__)).info(message)


def loaded(probes: ProbeSet | str) -> ProbeSet:
    """A probe set, read from its file if need be."""
    return ProbeSet.load(probes) if isinstance(probes, (str, Path)) else probes


@contextmanager
def _without_logging(module: nn.Module) -> Iterator[None]:
    """A `forward` that calls `self.log` must neither log probes as data nor fail where Lightning forbids it."""
    names = [name for name in ("log", "log_dict") if hasattr(module, name)]
    own = {name: module.__dict__[name] for name in names if name in module.__dict__}
    for name in names:
        module.__dict__[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
        module.__dict__.update(own)


@contextmanager
def _progress(trainer: Trainer, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that appears when an audit takes long."""
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    with tqdm(
        total=total, desc="Audit", unit=" probes", delay=_SHOW_PROGRESS_AFTER, leave=False, disable=not shown
    ) as bar:
        yield lambda done: bar.update(done - bar.n)


def _as_tensors(scalars: dict[str, float]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in scalars.items()}


def _validates(trainer: Trainer) -> bool:
    """Whether `fit` validates at all; a loader may turn out to have no batches when it is first asked for them."""
    batches = trainer.num_val_batches
    return trainer.enable_validation and (not batches or sum(batches) > 0)


def _is_fitting(trainer: Trainer) -> bool:
    return str(getattr(trainer.state.fn, "value", trainer.state.fn)) == "fit"
