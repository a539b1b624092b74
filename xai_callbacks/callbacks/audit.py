"""`AuditCallback`: audits a model while Lightning trains it."""

import math
import os
from collections.abc import Mapping
from typing import Any, get_args

from xai_callbacks._lightning import Callback, LightningModule, Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.audit.checks import require_instances
from xai_callbacks.callbacks.attaching import attached
from xai_callbacks.callbacks.delivery import MISSING, Delivery, as_tensors
from xai_callbacks.callbacks.neighbours import averages_weights, check_trainer, has_lazy_parameters, warn_of_neighbours
from xai_callbacks.callbacks.notices import Notices, OnError, progress, without_logging
from xai_callbacks.callbacks.run import Run, checkpoint_of, folder_of
from xai_callbacks.callbacks.schedule import Schedule, step_of
from xai_callbacks.callbacks.watch import Watch
from xai_callbacks.callbacks.watching import Watching
from xai_callbacks.errors import in_words, require_choice, require_instance, require_integer, require_name
from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.probes.files import FILE_NAME
from xai_callbacks.record import AuditRecord, Estimate, Key
from xai_callbacks.rules import AlarmRule, Rule, as_rules, summary
from xai_callbacks.sinks import Sink

_STATE_VERSION = 4


class AuditCallback(Callback):
    """Looks at a fixed set of probe images while the model trains and logs why it decides as it does.

    Training is bit-identical with and without this callback. An audit takes place before training (step 0) and at the
    end of each validation, or of each training epoch where there is no validation; never in the sanity check, and in
    `trainer.validate` only with `Schedule(in_validate=True)`. Every audit is kept in `history`, beside the logs under
    `<log_dir>/<name>/history`, and the probes in `<log_dir>/<name>/probes.safetensors`.

    `AuditCallback()` takes 64 probes from the trainer's own validation data, or else training data, and finds the part
    of the module that classifies images by itself. What it cannot audit it says, and training goes on.

    **Metrics**, to every logger, and in `trainer.callback_metrics` so that `ModelCheckpoint` and `EarlyStopping` can
    monitor them. `<map>` is `<explainer>/<question>`, such as `gradcam/why`:

    | key | meaning |
    |---|---|
    | `audit/accuracy`, `audit/confidence`, `audit/switched` | predictions on the probes; share that changed |
    | `audit/exact_match`, `audit/absolute_error[/<value>]` | with several labels; with values |
    | `audit/<map>/drift` | change of the heatmaps since the last audit, 0 none, 1 unrelated, 2 reversed |
    | `audit/<map>/relevance_mass/<region>`, `relevance_lift` | positive relevance in a region; over its area |
    | `audit/<map>/trust/randomised`, ... | tests of the heatmaps, with `measures=[Trust()]` |
    | `audit/novelty/<score>`, `/rank_correlation` | mean novelty, larger = more novel; the same probes as before? |
    | `audit/cue/<cue>/pull`, ... | findings of trials, see there |
    | `audit/alarm/cue/<cue>`, `audit/alarm/attribution/<region>` | 0 no evidence, 1 watch, 2 alarm, NaN untested |
    | `audit/expectation/passed`, `failed`, `undecided` | number of expectations |
    | `audit/group/wga`, ... | with `watches=[GroupAccuracy(...)]` |
    | `audit/validation/novelty/<score>` | with `watches=[ValidationNovelty()]` |
    | `audit_range/<key>/low`, `/high` | 95 % interval over probes |

    A metric without a single valid probe is NaN in `callback_metrics` and left out of the loggers. Under several
    processes each audits the same probes and rank zero writes; what is seen of the validation set is added up over
    them, and with rules they agree whether to stop.

    **Pictures**, to TensorBoard, Weights & Biases, MLflow, loggers with `log_image`, and a folder for others: an
    overview, a panel and a filmstrip for each of some probes, and more where there is more to show, see `Gallery`.

    Args:
        probes: The probe set, the path of a saved one, or an `Auditor`, which says more: questions, explainers, novelty
            scores, trials, measures. None for probes from the trainer's own data.
        watches: What looks on while Lightning validates, such as `GroupAccuracy("background")`.
        rules: What is concluded from the audits: rules such as `AlarmRule(stop=True)` and sentences such as
            `cue/patch/effect < 0.05`, or `{"name": ..., "expect": sentence}`. None for `AlarmRule()`, which raises
            alarms wherever a cue is tried. A summary is shown at the end.
        sinks: Where records and pictures go; None for one for each logger, or a folder without any.
        schedule: When to audit; None for `Schedule()`.
        max_panels: Most probes drawn, 0 for no pictures; metrics always cover all.
        on_error: What happens when an audit fails while training: `warn` once for each kind of error and go on, or
            `raise`.
        name: What all tags and keys begin with; audits in one trainer need different ones.

    Attributes:
        auditor: The auditor; None until it is attached to a trainer's own data.
        history: The audits of this run.

    Raises a `ConfigurationError` if an argument is wrong. What only the model can show (a layer that does not exist,
    too few classes, an unsuitable strategy) is raised before the first training step, whatever `on_error` says.

    Example::

        trainer = Trainer(callbacks=[AuditCallback(ProbeSet.from_dataset(val_set, per_class=4))])
    """

    def __init__(
        self,
        probes: Auditor | ProbeSet | str | os.PathLike[str] | None = None,
        *,
        watches: list[Watch] | None = None,
        rules: list[Rule | str | dict[str, str]] | None = None,
        sinks: list[Sink] | None = None,
        schedule: Schedule | None = None,
        max_panels: int = 16,
        on_error: OnError = "warn",
        name: str = "audit",
    ) -> None:
        super().__init__()
        require_name("`name`", name)
        require_choice("on_error", on_error, get_args(OnError))
        require_integer("max_panels", max_panels, minimum=0, hint="0 draws none.")
        for argument, given, kind in (("watches", watches, Watch), ("sinks", sinks, Sink)):
            require_instances(argument, () if given is None else given, kind, "Write [...] around a single one.")
        self.schedule = Schedule() if schedule is None else schedule
        require_instance("schedule", self.schedule, Schedule, "a Schedule, such as Schedule(every_n_epochs=2)")
        self.auditor = probes if probes is None or isinstance(probes, Auditor) else Auditor(probes)
        self.rules = as_rules([AlarmRule()] if rules is None else rules)
        self.name, self.on_error, self.max_panels = name, on_error, max_panels
        self._automatic, self._chosen, self._failed = probes is None, rules is not None, False
        self._run, self._notices = Run(), Notices(on_error)
        self._watching = Watching(watches or (), self._notices, name=name)
        self._watching.keys(self.auditor)  # says now what does not suit the probes
        self._delivery = Delivery(self._run, self._notices, self.rules, sinks, panels=max_panels, name=name)
        self._loaded: dict[str, Any] | None = None
        self._saved_at: tuple[int, int] | None = None  # epoch and step of a checkpoint that is validated
        self._audited_at: tuple[int, int] | None = None

    @property
    def state_key(self) -> str:
        """Audits of several names keep their states apart."""
        return f"{type(self).__qualname__}[{self.name}]"

    @property
    def watches(self) -> tuple[Watch, ...]:
        """What looks on while Lightning validates."""
        return self._watching.watches

    @property
    def history(self) -> History:
        """The audits of this run, also in a folder beside the logs."""
        return self._run.history

    @property
    def last_record(self) -> AuditRecord | None:
        """The latest audit of this run."""
        return self._run.history.last

    @property
    def keys(self) -> tuple[Key, ...]:
        """Declarations of all metrics that audits of this run may have."""
        if self.auditor is None:
            return ()
        watched = self._watching.keys(self.auditor)
        return (*self.auditor.keys, *watched, *(key for rule in self.rules for key in rule.keys))

    # Hooks, in the order in which Lightning calls them.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work with the trainer's strategy and other callbacks."""
        self._loaded, self._saved_at = None, None
        if self._takes_part(trainer):
            check_trainer(trainer, self, AuditCallback)
            if self._automatic:
                self.auditor, self._failed = None, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layer, so that mistakes come to light before training."""
        # The first forward pass would initialise lazy parameters, which is for training to do.
        if self.auditor is not None and not has_lazy_parameters(pl_module):
            with without_logging(pl_module):
                self.auditor.prepare(pl_module)
            self._introduce(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit the untrained model; a resumed run goes on with what it knew."""
        self._attach(trainer, pl_module)
        if self.auditor is not None:
            warn_of_neighbours(trainer, self, self.name, self.schedule.rare, self._watching.keys(self.auditor))
        state, self._loaded = self._loaded, None
        resumed = trainer.global_step > 0
        if resumed and state is not None:
            self._resume(trainer, state)
            with self._notices.forgiving("The checkpoint of the last audit was not noted.", "warn"):
                self._run.note_loaded(trainer, pl_module)
        elif not resumed or self.history.last is None or self._run.trainer != id(trainer):
            self._begin_anew(trainer)
        self._keep_probes(trainer)
        if resumed:
            # Monitors may ask for a metric before the next audit is due.
            trainer.callback_metrics.update(as_tensors(self._delivery.published | self._watching.values))
            self._audited_at = (trainer.global_step, -1)
        elif self.schedule.at_start:
            self._audit(trainer, pl_module, step_of(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Audit after every n-th optimizer step."""
        if self.schedule.step_is_due(trainer.global_step) and (self._audited_at or (-1, 0))[0] != trainer.global_step:
            self._audit(trainer, pl_module, step_of(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look on; in `trainer.validate` begin a run."""
        if trainer.state.fn == "validate" and self._takes_part(trainer):
            self.on_fit_start(trainer, pl_module)
            self._attach(trainer, pl_module)
            self._begin_anew(trainer)
            self._keep_probes(trainer)
        if self._takes_part(trainer) and self.watches:
            self._attach(trainer, pl_module)
            if (auditor := self.auditor) is not None:
                with without_logging(pl_module):
                    self._watching.each(lambda watch: watch.begin(pl_module, auditor))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch."""
        if self._takes_part(trainer):
            self._watching.each(lambda watch: watch.before(batch, dataloader_idx))

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
        if self._takes_part(trainer):
            self._watching.each(lambda watch: watch.after(outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit what validation has just measured."""
        if not self._takes_part(trainer):
            return
        if trainer.sanity_checking:
            for watch in self.watches:
                watch.check()
            return
        step = step_of(trainer) if self._saved_at is None else self._saved_at[1]
        seen = self._watching.end(trainer)
        self._delivery.log(trainer, AuditRecord(step=step, metrics=seen))
        self._watching.tell(trainer, type(self).__name__)
        if trainer.state.fn == "validate" or self.schedule.epoch_is_due(trainer.current_epoch):
            self._audit(trainer, pl_module, step, seen)
        elif self._audited_at is not None and self._audited_at[0] == trainer.global_step:
            self._delivery.complete(trainer, seen, step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run of `trainer.validate`."""
        if trainer.state.fn == "validate" and self._takes_part(trainer):
            self.on_train_end(trainer, pl_module)
            self._run.trainer = None  # training is another run

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit here where there is no validation."""
        # A loader may turn out to have no batches when it is first asked for them.
        validates = trainer.enable_validation and (not trainer.num_val_batches or sum(trainer.num_val_batches) > 0)
        if not validates and self.schedule.epoch_is_due(trainer.current_epoch):
            self._audit(trainer, pl_module, step_of(trainer, epoch_is_over=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until every picture is written."""
        self._notices.tell(trainer, summary(self.history))
        with self._notices.forgiving(MISSING):
            self._delivery.drain()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what was seen so far; nothing here may hide the exception."""
        self._watching.each(lambda watch: watch.stop(), on_error="warn")
        with self._notices.forgiving(MISSING, "warn"):
            self._delivery.drain()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what a resumed run needs to continue its history: plain values, less than 2 MB.

        Not by `state_dict`: Lightning would refuse two audits of one name before `setup` can say what to do.
        """
        checkpoint.setdefault("callbacks", {})[self.state_key] = {
            "version": _STATE_VERSION,
            "run": {"run": self._run.identity, "history": self.history.state()},
            "published": dict(self._delivery.published),
            "validated": dict(self._watching.values),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember of when the weights are that are validated, which Lightning forgets."""
        if trainer.state.fn == "validate":
            self._saved_at = checkpoint["epoch"], checkpoint["global_step"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue; a state of another version is left alone with a notice, since a resume must not fail for it."""
        self._loaded = state_dict

    def __getstate__(self) -> dict[str, Any]:
        """Without what Lightning hangs on callbacks, which would drag the whole model along."""
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}

    # One run and its audits.

    def _takes_part(self, trainer: Trainer) -> bool:
        return trainer.state.fn == "fit" or (trainer.state.fn == "validate" and self.schedule.in_validate)

    def _begin_anew(self, trainer: Trainer) -> None:
        """A new run, as when one callback serves several folds, has nothing to do with the one before."""
        self._audited_at, self._delivery.published = None, {}
        self._watching.forget()
        self._notices.told.clear()
        self._run.begin(trainer, self.name)

    def _resume(self, trainer: Trainer, state: dict[str, Any]) -> None:
        if state.get("version") == _STATE_VERSION:
            lost = self._run.resume(trainer, self.name, state["run"])
            self._delivery.published, self._watching.values = dict(state["published"]), dict(state["validated"])
        else:
            self._begin_anew(trainer)
            lost = f"The saved state of audits is of version {state.get('version')!r}: their history begins anew."
        self._notices.tell(trainer, f"{self.name}: {lost}" if lost else "", loud=True)

    def _attach(self, trainer: Trainer, module: LightningModule) -> None:
        """Find probes and a part of the module to audit, where nobody has said which; what cannot be is told."""
        if self.auditor is not None or not self._automatic or self._failed or has_lazy_parameters(module):
            return
        try:
            state = self._loaded or {}
            folder = folder_of(state["run"]) if state.get("version") == _STATE_VERSION else None
            self.auditor = attached(trainer, module, None if folder is None else folder / FILE_NAME)
        except Exception as error:  # nobody asked for anything in particular: training goes on without audits
            self._failed = True
            self._notices.tell(trainer, f"{self.name}: nothing is audited in this run. {in_words(error)}", loud=True)
            return
        self._introduce(trainer)

    def _keep_probes(self, trainer: Trainer) -> None:
        """Save the probes beside the history, for a resumed run, for comparisons and for reports."""
        folder = self._run.folder
        if self.auditor is not None and folder is not None and trainer.is_global_zero:
            with self._notices.forgiving("The probes could not be saved, training goes on."):
                if not (folder / FILE_NAME).exists():
                    self.auditor.probes.save(folder / FILE_NAME)

    def _introduce(self, trainer: Trainer) -> None:
        """Say what is audited, and what can never be concluded from it."""
        assert self.auditor is not None  # noqa: S101  # as it was prepared; narrows the type
        self._notices.tell(trainer, f"{type(self).__name__} {self.auditor.describe()}.")
        keys, identity = self.keys, self.auditor.identity
        for rule in self.rules:
            if self._chosen and isinstance(rule, AlarmRule):
                rule.require_cue(keys)
            for sentence in rule.check(keys, len(self.auditor.probes), identity):
                self._notices.tell(trainer, f"{self.name}: {sentence}", loud=True)

    def _audit(
        self, trainer: Trainer, module: LightningModule, step: int, seen: Mapping[str, Estimate] | None = None
    ) -> None:
        """Audit and deliver, with what was seen in the validation at whose end it takes place."""
        here = (trainer.global_step, trainer.fit_loop.total_batch_idx)
        if self.auditor is None or has_lazy_parameters(module):
            return
        # Validation may be of averaged weights although the step is the same.
        if self._audited_at == here and not averages_weights(trainer):
            self._delivery.complete(trainer, seen or {}, step_of(trainer))
            return
        before, self._audited_at = self._audited_at, here
        with self._notices.forgiving("The checkpoint of the last audit was not noted.", "warn"):
            self._run.note(checkpoint_of(trainer, None if before is None else before[0]))
        record, probes = None, self.auditor.probes
        untrained = trainer.state.fn == "fit" and here[1] < 0  # before the first batch
        epoch = trainer.current_epoch if self._saved_at is None else self._saved_at[0]
        with self._notices.forgiving(), without_logging(module), progress(trainer, len(probes)) as bar:
            # Should this audit fail, no monitor must go on reading the numbers of an earlier one.
            self._delivery.publish(trainer, dict.fromkeys(self._delivery.published, math.nan))
            record = self.auditor.audit(
                module, step=step, epoch=epoch, past=self.history, untrained=untrained, on_progress=bar
            )
        self._delivery.deliver(trainer, probes, record, seen or {})
