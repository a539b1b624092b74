"""`AuditCallback`: audits a model while Lightning trains it."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from xai_callbacks._lightning import Callback, LightningModule, Trainer
from xai_callbacks.access import ModelSelector, OutputSelector
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.neighbours import averages_weights, check_neighbours, check_strategy, has_lazy_parameters
from xai_callbacks.callbacks.outlets import Outlets
from xai_callbacks.callbacks.schedule import Schedule, step_of
from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.explainers import Explainer
from xai_callbacks.novelty import NoveltyScore
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks import main_scalars

__all__ = ["AuditCallback"]

_STATE_VERSION = 1
# An audit shorter than this, in seconds, shows no progress bar.
_SHOW_PROGRESS_AFTER = 1.0


class AuditCallback(Callback):
    """Looks at a fixed set of probe images while the model trains and logs why it decides as it does.

    Training is bit-identical with and without this callback. An audit takes place before training (step 0) and at the
    end of each validation, or of each training epoch where there is no validation; never in the sanity check, and only
    in `fit`.

    **Logged pictures**, to every logger with `add_image` (TensorBoard): a panel a probe, `audit_panel/<number>_<name>`,
    and a filmstrip a probe, `audit_filmstrip/<number>_<name>`, which shows up to eight audits side by side.

    **Logged metrics**, to every logger, and in `trainer.callback_metrics` so that `ModelCheckpoint` and `EarlyStopping`
    can monitor them:

    | key | meaning |
    |---|---|
    | `audit/accuracy`, `audit/confidence` | predictions on the probes |
    | `audit/switched` | share of predictions that changed since the last audit |
    | `audit/novelty/<score>` | mean novelty; larger = more novel |
    | `audit/novelty/<score>/auroc` | how well the score tells `novel` images from the probes; .5 is chance |
    | `audit/novelty/<score>/aupr_novel`, `/aupr_known` | average precision with novel or known images as positives |
    | `audit/novelty/<score>/fpr_at_95tpr_id` | share of novel images accepted where 95 % of the probes are |
    | `audit/novelty/<score>/fpr_at_95tpr_ood` | share of probes flagged where 95 % of the novel images are |
    | `audit/<question>/relevance_mass/<region>` | share of positive relevance in a region, such as `why` and `core` |
    | `audit/<question>/relevance_lift/<region>` | the same over the area of the region: 1 is chance |
    | `audit/<question>/relevance_rank/<region>`, `audit/<question>/soft_iou/<region>` | two further views of the same |
    | `audit/<question>/drift` | change of the heatmaps since the last audit, 0 none, 1 unrelated, 2 reversed |
    | `audit_detail/<key>/chance`, `/low`, `/high` | chance level and 95 % interval over probes of each key above |
    | `audit_detail/<key>/degenerate` | probes left out because their map is empty or not finite; absent when none |
    | `audit_detail/seconds` | time the audit took |

    A metric without a single valid probe is NaN in `callback_metrics` and left out of the loggers. Under several
    processes each audits the same probes, without collectives, and rank zero writes.

    Args:
        probes: The probe set, or the path of a saved one.
        questions: Questions to ask; None for "Why P?", "Why P, rather than the runner-up?" and "Why not P with 100 %?".
        explainer: How to answer; None for Grad-CAM at an automatic layer.
        novelty: Novelty scores; None for `GradNorm`.
        inliers: Familiar images, or the path of a saved probe set, from which scores such as `Mahalanobis` learn.
        novel: Images known to be novel, or the path of a saved probe set; scores are judged by them.
        every_n_epochs: Audit at validations of every n-th epoch; None for never.
        every_n_train_steps: Audit also after every n-th optimizer step; None for never.
        at_start: Audit also before training starts, as step 0; a resumed run does not repeat it.
        model: Where the classifier is if the LightningModule's `forward` is not it: a dotted name, or a callable that
            receives the LightningModule and returns a module or another callable from images to outputs.
        output: Which part of what the model returns holds the logits: key, index or callable; None chooses.
        chunk_size: Images in one forward pass; bounds the memory.
        max_panels: Most probes drawn; metrics always cover all.
        on_error: What happens when an audit fails while training: `warn` once for each kind of error and go on, or
            `raise`.

    Raises:
        ConfigurationError: An argument is wrong. What only the model can show (a layer that does not exist, too few
            classes, an unsuitable strategy) is raised at the start of `fit`, before the first training step, whatever
            `on_error` says.

    Example::

        probes = ProbeSet.from_dataset(val_set, per_class=4)
        trainer = Trainer(callbacks=[AuditCallback(probes)])
    """

    def __init__(
        self,
        probes: ProbeSet | str,
        questions: list[Question] | None = None,
        *,
        explainer: Explainer | None = None,
        novelty: list[NoveltyScore] | None = None,
        inliers: ProbeSet | str | None = None,
        novel: ProbeSet | str | None = None,
        every_n_epochs: int | None = 1,
        every_n_train_steps: int | None = None,
        at_start: bool = True,
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
        max_panels: int = 16,
        on_error: Literal["warn", "raise"] = "warn",
        name: str = "audit",
    ) -> None:
        super().__init__()
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigurationError(f"Expected `name` to be letters, digits, '_', '-' and '.', but got {name!r}.")
        if on_error not in ("warn", "raise"):
            raise ConfigurationError(f"Expected `on_error` to be 'warn' or 'raise', but got {on_error!r}.")
        require_integer("max_panels", max_panels, least=0, hint="0 draws none.")
        self.schedule = Schedule(every_n_epochs, every_n_train_steps, at_start)
        self.auditor = Auditor(
            _loaded(probes),
            questions,
            explainer=explainer,
            novelty=novelty,
            inliers=None if inliers is None else _loaded(inliers),
            novel=None if novel is None else _loaded(novel),
            model=model,
            output=output,
            chunk_size=chunk_size,
        )
        self.name = name
        self.on_error = on_error
        self.max_panels = max_panels
        self.last_record: AuditRecord | None = None
        self._outlets = Outlets(self.auditor.probes, max_panels, name)
        self._audited_at: tuple[int, int] | None = None
        self._metrics: dict[str, float] = {}
        self._told: set[str] = set()

    @property
    def state_key(self) -> str:
        """Audits of several names, probes or questions keep their states apart."""
        keys = ",".join(question.key for question in self.auditor.questions)
        return f"{type(self).__qualname__}[{self.name},{self.auditor.probes.fingerprint},{keys}]"

    # Hooks, in the order in which Lightning calls them.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work with the trainer's strategy and other callbacks; warn of what may surprise."""
        if str(getattr(stage, "value", stage)) == "fit":
            check_strategy(trainer)
            check_neighbours(trainer, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layer, so that mistakes come to light before training."""
        if has_lazy_parameters(pl_module):
            # The first forward pass would initialise them, which is for training to do.
            return
        with _without_logging(pl_module):
            layer = self.auditor.prepare(pl_module)
        self._tell(trainer, f"AuditCallback explains at {layer.reason}.")

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

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit what validation has just measured."""
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
        with self._forgiving("warn", "Some pictures of audits are missing."):
            self._outlets.drain()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue drift and filmstrips; tensors and plain values only."""
        return {
            "version": _STATE_VERSION,
            "auditor": self.auditor.state_dict(),
            "film": self._outlets.state_dict(),
            "metrics": dict(self._metrics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue; a state of a newer version is left alone with a warning, since a resume must not fail for it."""
        if state_dict.get("version") != _STATE_VERSION:
            warnings.warn(
                f"AuditCallback ignores a saved state of version {state_dict.get('version')!r}: drift and filmstrips "
                "begin anew.",
                stacklevel=2,
            )
            return
        self.auditor.load_state_dict(state_dict["auditor"])
        self._outlets.load_state_dict(state_dict["film"])
        self._metrics = dict(state_dict["metrics"])

    def __getstate__(self) -> dict[str, Any]:
        """Without what Lightning hangs on callbacks, which would drag the whole model along."""
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}

    def _begin_anew(self) -> None:
        """A new run, as when one callback serves several folds, has nothing to do with the one before."""
        self.auditor.forget()
        self._outlets.forget()
        self.last_record = self._audited_at = None
        self._metrics = {}
        self._told.clear()

    def _audit(self, trainer: Trainer, model: nn.Module, step: int) -> None:
        here = (trainer.global_step, trainer.fit_loop.total_batch_idx)
        # Validation may be of averaged weights although the step is the same.
        if (self._audited_at == here and not averages_weights(trainer)) or has_lazy_parameters(model):
            return
        self._audited_at = here
        with self._forgiving(self.on_error):
            # Should this audit fail, no monitor must go on reading the numbers of an earlier one.
            self._publish(trainer, dict.fromkeys(self._metrics, math.nan))
            with _without_logging(model), _progress(trainer, len(self.auditor.probes)) as on_progress:
                record = self.auditor.audit(model, step=step, epoch=trainer.current_epoch, on_progress=on_progress)
            for note in record.notes:
                self._tell(trainer, f"AuditCallback: {note}")
            self.last_record = record
            self._publish(trainer, main_scalars(record, self.name))
            self._outlets.write(trainer, record)

    @contextmanager
    def _forgiving(
        self, on_error: Literal["warn", "raise"], happened: str = "An audit failed and training goes on."
    ) -> Iterator[None]:
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


def _loaded(probes: ProbeSet | str) -> ProbeSet:
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
