"""One short training, with or without a callback attached, and how it ended."""

from __future__ import annotations

import copy
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xai_callbacks._lightning import Callback, LightningDataModule, LightningModule, Trainer, package_of
from xai_callbacks.doctor.comparing import Disturbance
from xai_callbacks.doctor.digits import DigitsModule, load_digits
from xai_callbacks.doctor.snapshot import Snapshot, layers_in_eval, switches_restored, take_snapshot
from xai_callbacks.doctor.watching import Watch, first_line
from xai_callbacks.errors import ConfigurationError, in_words

Hook = Literal["on_validation_end", "on_train_epoch_end"]


@dataclass(frozen=True)
class Scenario:
    """One way of training, and the hook from which a plain callback calls its explainer."""

    name: str
    title: str
    hook: Hook
    epochs: int = 4
    accumulate: int = 1
    validate: bool = True
    validate_every: int | None = None
    frozen: bool = False
    batches: int | None = None


SCENARIOS = (
    Scenario("plain", "validation each epoch; called at on_validation_end", "on_validation_end"),
    Scenario(
        "accumulation",
        "4 batches a step, validation every 3 batches (gradients pending); called at on_validation_end",
        "on_validation_end",
        accumulate=4,
        validate_every=3,
    ),
    Scenario(
        "train-epoch-end", "no validation loader; called at on_train_epoch_end", "on_train_epoch_end", validate=False
    ),
    Scenario(
        "frozen",
        "only the head is trained, backbone in eval mode; called at on_train_epoch_end",
        "on_train_epoch_end",
        validate=False,
        frozen=True,
    ),
)


@dataclass(frozen=True)
class Patient:
    """A module and its data, copied for each training; without them a small residual net learns digits."""

    module: LightningModule | None = None
    data: LightningDataModule | None = None

    def admit(self, frozen: bool) -> tuple[LightningModule, dict[str, Any]]:
        """A fresh module, and its data as arguments of `Trainer.fit`."""
        if self.data is not None:
            data: dict[str, Any] = {"datamodule": copied("datamodule", self.data)}
        else:
            data = dict(zip(("train_dataloaders", "val_dataloaders"), load_digits().loaders(), strict=True))
        return DigitsModule(frozen) if self.module is None else copied("module", self.module), data


def copied(name: str, value: Any) -> Any:
    """A copy of an argument, or a `ConfigurationError`."""
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise ConfigurationError(
            f"Expected `{name}` to be something that can be copied for each training, but it raised {in_words(error)} "
            "Keep open files, locks and trainers out of it, or, of a callback, give a function that makes it."
        ) from error


@dataclass(frozen=True)
class Run:
    """How one training ended, and what the callback did.

    Attributes:
        snapshot: The state after training, or at the moment it crashed.
        crash: The error that ended the training, if one did.
        errors: What the call of an `ExplainerCallback` raised, which catches that and lets training go on.
        logged: Keys of what was logged.
        calls: How often that call returned something; None for other callbacks.
        found: What hooks of the callback changed, where they were watched.
        seconds: Wall time.
    """

    snapshot: Snapshot
    crash: str | None = None
    errors: tuple[str, ...] = ()
    calls: int | None = None
    logged: frozenset[str] = frozenset()
    found: tuple[Disturbance, ...] = ()
    seconds: float = field(default=0.0, compare=False)


class ExplainerCallback(Callback):
    """The plain callback that users write: at one hook, explain a few images, by default the first eight of training.

    Three kindnesses, so that what remains is seen when an author has found the first errors out: gradients are on
    (Lightning validates without), nothing is called during the sanity check, and what the call raises is caught.
    """

    def __init__(self, call: Callable[..., object], hook: Hook, images: Tensor | None, labels: Tensor | None) -> None:
        self.call, self.hook, self.images, self.labels = call, hook, images, labels
        self.calls = 0
        self.errors: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the first images seen, where none were given."""
        pair = list(batch[:2]) if isinstance(batch, Sequence) else []
        if self.images is None and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair):
            self.images, self.labels = (part[:8].clone() for part in pair)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain, if this is the hook."""
        if self.hook == "on_validation_end" and not trainer.sanity_checking:
            self._explain(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain, if this is the hook."""
        if self.hook == "on_train_epoch_end":
            self._explain(pl_module)

    def _explain(self, module: LightningModule) -> None:
        if self.images is None or self.labels is None:
            return
        try:
            with torch.enable_grad():
                self.call(module, self.images.clone(), self.labels.clone())
            self.calls += 1
        except Exception as error:
            self.errors.append(first_line(error))


class Recorder(Callback):
    """The loss of each training step, and which modules were in eval mode. Only reads."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.eval_layers: list[frozenset[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the modes."""
        self.eval_layers.append(layers_in_eval(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(loss.item())


def train(
    scenario: Scenario,
    attach: Callable[[], Callback] | None = None,
    seed: int = 0,
    patient: Patient = Patient(),
    watch: Watch | None = None,
) -> Run:
    """Train once on the CPU with, or without, one callback attached, and leave global switches as they are.

    An error that escapes the callback, or that the callback's traces cause later, ends the training as it would for a
    user; the state at that moment is what gets compared.
    """
    started = time.perf_counter()
    callback, trainer, crash = None, None, None
    series: dict[str, list[tuple[int, float]]] = {}
    recorder = Recorder()
    with switches_restored(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        module, data = patient.admit(scenario.frozen)
        try:
            if attach is not None:
                callback = attach() if watch is None else watch.construct(attach, module)
        except Exception as error:
            crash = first_line(error)
        else:
            parts = [part for part in (callback, module, patient.data) if part is not None]
            trainer = make_trainer(package_of(*parts), scenario, folder, series)
            # Not by its constructor, which knows better where some callbacks belong.
            trainer.callbacks = [each for each in (callback, recorder) if each is not None]
            crash = fit(trainer, module, data, folder)
        snapshot = take_snapshot(
            module,
            [] if trainer is None else trainer.optimizers,
            {key: torch.tensor(points, dtype=torch.float64) for key, points in series.items()},
            recorder.losses,
            tuple(recorder.eval_layers),
        )
    called = callback if isinstance(callback, ExplainerCallback) else None
    return Run(
        snapshot,
        crash,
        errors=() if called is None else tuple(called.errors),
        calls=None if called is None else called.calls,
        logged=frozenset(series) | (frozenset() if trainer is None else frozenset(trainer.callback_metrics)),
        found=() if watch is None else watch.found,
        seconds=time.perf_counter() - started,
    )


def fit(trainer: Trainer, module: LightningModule, data: dict[str, Any], folder: str) -> str | None:
    """Train and save a checkpoint; the error that ended it, if one did."""
    try:
        trainer.fit(module, **data)
        trainer.save_checkpoint(f"{folder}/last.ckpt")
    except Exception as error:
        return first_line(error)
    return None


def make_trainer(lightning: Any, scenario: Scenario, folder: str, series: dict[str, list[tuple[int, float]]]) -> Any:
    """A trainer without bars and checkpoints; what it logs goes to `series` as `(step, value)` by key."""

    class RecordingLogger(lightning.loggers.TensorBoardLogger):  # type: ignore[misc]
        """TensorBoard's, as callbacks that draw expect it."""

        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            for key, value in metrics.items():
                if key != "epoch" and not isinstance(value, Mapping):
                    series.setdefault(key, []).append((-1 if step is None else step, float(value)))
            super().log_metrics(metrics, step)

    return lightning.Trainer(
        max_epochs=scenario.epochs,
        accumulate_grad_batches=scenario.accumulate,
        val_check_interval=scenario.validate_every,
        limit_train_batches=scenario.batches,
        limit_val_batches=scenario.batches if scenario.validate else 0,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=RecordingLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
