"""`audit_checkpoints`: an offline audit of many models, as a validation whose data are checkpoints."""

import gc
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from xai_callbacks._lightning import LightningModule, Trainer, new_trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.audit.results import weights_hash
from xai_callbacks.callbacks.notices import without_logging
from xai_callbacks.checkpoints import Checkpoint
from xai_callbacks.errors import AuditError, ConfigurationError, in_words, require_instance, require_name
from xai_callbacks.history import History
from xai_callbacks.probes.files import FILE_NAME
from xai_callbacks.record import AuditRecord
from xai_callbacks.record.audit_record import to_text
from xai_callbacks.rules import Rule, as_rules, conclude

_QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
_LIMITED = "The trainer left it out, see its `limit_val_batches` and `fast_dev_run`."


def audit_checkpoints(
    checkpoints: Mapping[str, Checkpoint],
    auditor: Auditor,
    folder: str | os.PathLike[str],
    *,
    rules: Sequence[Rule | str | dict[str, str]] | None = None,
    trainer: Trainer | None = None,
) -> dict[str, History]:
    """Audit checkpoints, each into a history of its own, `<folder>/<name>/history`; probes are saved beside them.

    This is one `trainer.validate`, whose batches are the checkpoints: device, precision and processes are the
    trainer's, and each of several processes, also on several machines that share the folder, takes its share. One model
    is in memory at a time in each. Models of different structures may be mixed; where models of one structure are
    explained is chosen once. Cost: of each checkpoint one load and one audit.

    What was audited before, with the same weights, probes and settings, is not audited again, so that a run that was
    killed goes on where it was; what was audited in another way is replaced, unless it is of another source.

    Args:
        checkpoints: What to audit, by names that folders may have.
        auditor: How to audit.
        folder: Where the histories are written.
        rules: What is concluded from each audit, see `AuditCallback`; None for nothing.
        trainer: The trainer that runs it; None for one on one device of whatever kind there is.

    Returns the histories by name. Raises a `ConfigurationError` if an argument is wrong, an audit of another source
    would be replaced, or the folder holds audits of other probes; and when all others are audited an `AuditError` that
    says which checkpoints could not be, and why.

    Example:
        >>> found = {name: Checkpoint(f"{name}.ckpt", model="my_project.Classifier") for name in "ab"}
        >>> histories = audit_checkpoints(found, Auditor(probes), "audits")  # doctest: +SKIP
    """
    require_instance("checkpoints", checkpoints, Mapping, "checkpoints by name, such as {'a': Checkpoint(...)}")
    for name, each in checkpoints.items():
        require_name("the name of a checkpoint", name)
        require_instance(f"checkpoints[{name!r}]", each, Checkpoint, "a Checkpoint")
    require_instance("auditor", auditor, Auditor, "an Auditor, such as Auditor(probes)")
    if not checkpoints:
        raise ConfigurationError("Expected `checkpoints` to audit, but got none.")
    audits = _Audits(checkpoints, auditor, Path(folder), as_rules(rules or ()))
    for name, each in checkpoints.items():
        _require_own(audits.place(name), each)
    _require_same_probes(Path(folder), checkpoints.keys(), auditor)
    trainer = new_trainer(devices=1, **_QUIET) if trainer is None else trainer
    trainer.validate(audits, verbose=False)
    return {name: History(audits.place(name)) for name in checkpoints}


class _Audits(LightningModule):
    """Holds no model: a batch is the place of a checkpoint, which is loaded, audited and let go."""

    def __init__(
        self, checkpoints: Mapping[str, Checkpoint], auditor: Auditor, folder: Path, rules: Sequence[Rule]
    ) -> None:
        super().__init__()
        self._checkpoints, self._names = checkpoints, tuple(checkpoints)
        self._auditor, self._folder, self._rules = auditor, folder, rules
        self._latest: Callable[[], nn.Module | None] = NoneType
        self._new: list[Path] = []  # the file of probes and its folder, as far as they were not there before
        self._outcome: dict[str, str] = {}  # why a checkpoint failed, by name; empty if it did not

    def place(self, name: str) -> Path:
        """Folder of a history."""
        return self._folder / name / "history"

    def val_dataloader(self) -> range:
        """The share of this process; a sampler of Lightning would repeat some for shares of one size.

        Where nothing is left there is one place beyond the end, as Lightning runs no hook without a batch.
        """
        first = self.trainer.global_rank
        return range(first, max(first + 1, len(self._names)), self.trainer.world_size)

    def on_validation_start(self) -> None:
        """Save the probes; let all processes choose by the first model where to explain."""
        if self.trainer.is_global_zero:
            self._new = [each for each in (self._folder / FILE_NAME, self._folder) if not each.exists()]
            self._auditor.probes.save(self._folder / FILE_NAME)
        else:
            with suppress(Exception), torch.inference_mode(False):  # told by the process whose share it is
                self._auditor.prepare(self._loaded(self._names[0]))

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Do nothing: under `bf16-true` the step itself would make half precision the default of all arithmetic."""

    def on_validation_batch_start(self, batch: int, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Audit one checkpoint; one that fails costs itself alone."""
        if batch >= len(self._names):
            return
        name = self._names[batch]
        self._outcome[name] = ""
        try:
            with torch.inference_mode(False):
                self._audit(name)
        except (Exception, SystemExit) as error:  # of models and files of a user
            self._outcome[name] = in_words(error)
        if self._latest() is not None:  # it refers to itself in a circle, and must go before the next one comes
            gc.collect()

    def on_validation_epoch_end(self) -> None:
        """Tell of what failed, in every process; a collective operation."""
        own = dict(self._outcome)
        for rank in range(self.trainer.world_size):
            self._outcome |= self.trainer.strategy.broadcast(own, src=rank)
        failed = {name: why for name in self._names if (why := self._outcome.get(name, _LIMITED))}
        if failed:
            if len(failed) == len(self._names):
                self._leave_nothing()
            told = " ".join(f"{name!r}: {why}" for name, why in failed.items())
            count, done = len(self._names), len(self._names) - len(failed)
            which = "it could not" if count == 1 else f"{len(failed)} could not" if done else "none could"
            kept = f" The {'other is' if done == 1 else 'others are'} in {str(self._folder)!r}." if done else ""
            raise AuditError(
                f"Expected {count} checkpoint{'s' * (count > 1)} to be audited, but {which} be. {told}{kept}"
            )

    def _leave_nothing(self) -> None:
        """Delete the probes where no audit is beside them, and they were not there before."""
        with suppress(OSError):  # such as of a folder in which something else is by now
            for each in self._new:
                each.rmdir() if each.is_dir() else each.unlink()

    def _loaded(self, name: str) -> nn.Module:
        model: nn.Module = self.trainer.precision_plugin.convert_module(self._checkpoints[name].load())
        self._latest = weakref.ref(model)
        return model.to(self.device)

    def _audit(self, name: str) -> None:
        checkpoint, history = self._checkpoints[name], History(self.place(name))
        model = self._loaded(name)
        with without_logging(model):
            self._auditor.classifier(model)  # prepares for the first one
            if history.last is not None and self._is_done(history.last, model):
                return
            notes = (*checkpoint.notes, *self._doubts())
            record = self._auditor.audit(model, step=checkpoint.step, epoch=checkpoint.epoch)
        record = replace(record, checkpoint=checkpoint.source, notes=(*notes, *record.notes))
        history.truncate(-1)
        history.append(conclude(self._rules, History(), record).record)

    def _doubts(self) -> list[str]:
        """What the rules can never conclude from these probes, in sentences."""
        keys = (*self._auditor.keys, *(key for rule in self._rules for key in rule.keys))
        probes, identity = self._auditor.probes, self._auditor.identity
        return [doubt for rule in self._rules for doubt in rule.check(keys, len(probes), identity)]

    def _is_done(self, record: AuditRecord, model: nn.Module) -> bool:
        """Whether an audit of the model would give this record, as far as can be told without it."""
        weights, identity = weights_hash(model), self._auditor.identity
        findings = conclude(self._rules, History(), record).record.findings
        return bool(weights) and _summed(record) == _summed(replace(identity, weights=weights, findings=findings))


def _require_own(place: Path, checkpoint: Checkpoint) -> None:
    """Refuse a history that holds an audit of another source, which would be replaced."""
    last = History(place).last
    if last is None or (last.checkpoint and os.path.abspath(last.checkpoint) == os.path.abspath(checkpoint.source)):
        return
    held = repr(last.checkpoint) if last.checkpoint else "a run of training"
    raise ConfigurationError(
        f"Expected {str(place.parent)!r} to hold an audit of {checkpoint.source!r} or nothing, but it holds one of "
        f"{held}. Choose another folder, or another name for the checkpoint."
    )


def _require_same_probes(folder: Path, names: Collection[str], auditor: Auditor) -> None:
    """Refuse a folder whose other audits are of other probes: the probes beside them would be replaced."""
    for place in sorted(folder.glob("*/history")):
        last = None if place.parent.name in names else History(place).last
        if last is not None and last.fingerprint != auditor.probes.fingerprint:
            raise ConfigurationError(
                f"Expected audits of one probe set in {str(folder)!r}, but {place.parent.name!r} is of the probes "
                f"{last.fingerprint}, not {auditor.probes.fingerprint}. Choose another folder, or audit it again too."
            )


def _summed(record: AuditRecord) -> str:
    """What tells one audit from another."""
    names = ("weights", "fingerprint", "asked", "explainers", "settings", "tried", "findings")
    return to_text(AuditRecord(**{name: getattr(record, name) for name in names}), {})
