"""`GroupAccuracy`: accuracies by group over a whole validation set, from the logits that its steps compute anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.answer_store import AnswerStore, Judgeable
from xai_callbacks.callbacks.batches import BatchReader, read_integers, read_labels
from xai_callbacks.callbacks.groups import Group
from xai_callbacks.callbacks.logit_tap import LogitTap
from xai_callbacks.callbacks.neighbours import has_lazy_parameters
from xai_callbacks.callbacks.watch import Seen, Watch, reduced
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.metrics.group_judge import GroupJudge
from xai_callbacks.metrics.group_sums import GroupSums, check_groups, sum_answers
from xai_callbacks.record import Estimate, Key
from xai_callbacks.tasks import binary_logits

__all__ = ["GroupAccuracy"]

# A cue of which more values are seen than this is probably no cue but, say, a number of each image.
_MOST_LEARNT = 256

_REPEATED = (
    "judges groups by the first call of the classifier in each validation step; some steps call it repeatedly. To have "
    "them judged by other logits, return {'logits': logits} from `validation_step`."
)


@dataclass
class _Pass:
    """What one pass over the validation set brought so far in this process."""

    current: tuple[Tensor, Tensor] | None = None
    classes: int = 0
    repeated: bool = False
    error: Exception | None = None


class GroupAccuracy(Watch):
    """Judges a classifier by group (label, cue) over the whole validation set, from the logits of its own steps.

    Every image of the validation set counts once, except those that a distributed sampler shows twice to give each
    process as many. Should a batch not say what it must, all judgements of that pass are NaN, since what is left would
    speak for another set of images. No forward pass of its own; where the logits cannot be overheard, as of a model
    compiled as a whole, or where several views of an image make one answer, return `{"logits": logits}` from the step.

    Keys: `group/wga` (worst group), `group/conflict_gap`, `group/accuracy/<label>_<cue>` and the others of
    `metrics.GroupJudge`.

    Args:
        cue: Where the cue of each image is, an integer from 0, or -1 where it is unknown: a key or index of the batch;
            a path such as `1.background` or `metadata.place`; or a function of the batch.
        label: Where the label is, likewise; None for entry 1 of a tuple or list, or the key `label`, `labels`,
            `target`, `targets` or `y`.
        num_cues: Number of values of the cue; None to learn it from the validation images, as far as nothing else
            tells it.
        aligned: For each label, the cue that goes with it in training; None leaves out what compares the two sides.
        train_counts: Number of training images by label and cue; None leaves out what weighs by them.
        cue_names: Names of the cues, for the keys of single groups.
        min_count: Fewest images of a group that may be the worst.
        dataloader: Index of the one validation dataloader to look at; None for all of them together.
        each: Whether to log the accuracy, size and calibration error of each group; None for up to 16 groups.

    Raises:
        ConfigurationError: A value is not of this form, or two contradict each other.

    Example:
        >>> GroupAccuracy("background", aligned=[0, 1], cue_names=["land", "water"]).group.cues
        2
    """

    def __init__(
        self,
        cue: BatchReader,
        label: BatchReader | None = None,
        *,
        num_cues: int | None = None,
        aligned: list[int] | None = None,
        train_counts: list[list[int]] | None = None,
        cue_names: list[str] | None = None,
        min_count: int = 20,
        dataloader: int | None = None,
        each: bool | None = None,
    ) -> None:
        self.group = self._group = Group(
            cue, label, num_cues, aligned, train_counts, cue_names, min_count, dataloader, each
        )
        self._class_names: Sequence[str] | None = None
        self._judge = GroupJudge(self.group.aligned, self.group.training, min_count=min_count)
        self._judge.judge(GroupSums.zeros(*self.group.smallest))  # says now what is wrong with the arguments
        self._tap: LogitTap | None = None
        self._store = AnswerStore()
        self._pass = _Pass()
        self._learnt = self.group.smallest[1]

    def keys(self, auditor: Auditor) -> Sequence[Key]:
        """See `Watch.keys`."""
        auditor.probes.task.require_classes("GroupAccuracy", single=True)
        self._class_names = auditor.probes.class_names
        return self._judge.keys()

    def begin(self, model: nn.Module, auditor: Auditor) -> None:
        """See `Watch.begin`."""
        self._begin_anew()
        self._class_names = auditor.probes.class_names
        if has_lazy_parameters(model):
            return  # the first forward pass would initialise them, which is for training to do
        try:
            self._tap = LogitTap(*auditor.classifier(model))
        except Exception as error:  # reported at the end
            self._pass.error = error

    def before(self, batch: object, dataloader: int) -> None:
        """Read labels and cues, before the step can change the batch."""
        self._pass.current = None
        if self._group.dataloader not in (None, dataloader) or self._pass.error is not None:
            return
        try:
            labels = read_labels(batch, self._group.label)
            cues = read_integers(batch, self._group.cue, "cue")
            if len(labels) != len(cues):
                raise ConfigurationError(
                    f"Expected as many cues as labels, but got {len(cues)} and {len(labels)}. Let `cue=` and `label=` "
                    "lead to one integer an image each."
                )
        except Exception as error:  # reported at the end
            self._pass.error = error
            return
        if len(labels):
            self._pass.current = labels, cues
            if self._tap is not None:
                self._tap.expect(len(labels))

    def after(self, outputs: object) -> None:
        """Keep what the logits say of each image."""
        if self._pass.current is None or self._tap is None:
            return
        labels, cues = self._pass.current
        self._pass.current = None
        try:
            logits = self._logits(outputs, len(labels))
            self._store.add(logits, labels, cues)
            self._pass.classes = logits.shape[1]
        except Exception as error:  # reported at the end
            self._pass.error = error

    def stop(self) -> None:
        """Stop listening."""
        if self._tap is not None:
            self._tap.close()
        self._tap = None

    def check(self) -> None:
        """Stop listening, and raise what is wrong with the configuration.

        Raises:
            ConfigurationError: The batches do not have what the group needs, or values are out of range.
        """
        self.stop()
        images = self._gathered()
        if isinstance(self._pass.error, ConfigurationError):
            raise self._pass.error
        if images is not None:
            self._judged(sum_answers(*images, self._pass.classes, self._group.cues or self._count_cues(images)))
        self.forget()

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and judge; two collective operations where there are several processes."""
        self.stop()
        images = self._gathered()
        mine = [self._pass.classes, self._count_cues(images), self._pass.error is not None]
        classes, self._learnt, failed = reduced(trainer, torch.tensor(mine, dtype=torch.float64), "max").long().tolist()
        done = self._pass
        self._begin_anew()
        if failed or not classes:
            return Seen(self._nothing(), error=_elsewhere(failed) if done.error is None else done.error)
        cues = self._group.cues or self._learnt
        sums = GroupSums.zeros(classes, cues) if images is None else sum_answers(*images, classes, cues)
        sums = _summed(trainer, sums)
        try:
            metrics = self._judged(sums)
        except ConfigurationError as wrong:
            return Seen(self._nothing(), error=wrong)
        return Seen(metrics, notes=(_REPEATED,) if done.repeated else ())

    def forget(self) -> None:
        """Begin anew."""
        self._begin_anew()
        self._store = AnswerStore()
        self._learnt = self._group.smallest[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens."""
        return {**self.__dict__, "_tap": None, "_store": AnswerStore(), "_pass": _Pass()}

    def _begin_anew(self) -> None:
        self.stop()
        self._store.clear()
        self._pass = _Pass()

    def _logits(self, outputs: object, images: int) -> Tensor:
        """The logits of the step just done, `(images, K)`."""
        assert self._tap is not None  # noqa: S101  # as there is a current batch; narrows the type
        logits, calls = self._tap.take()
        # Several calls may be several views, of which only the user knows what becomes.
        returned = None if calls == 1 else _returned(outputs, images)
        self._pass.repeated |= calls > 1 and returned is None
        logits = logits if returned is None else returned
        if logits is None:
            raise AuditError(
                f"Expected each validation step to call the classifier, but {self._tap.why_nothing()}. Say with "
                "`model=` which part classifies images, or return {'logits': logits} from `validation_step`."
            )
        before, now = self._pass.classes, logits.shape[1]
        if before not in (0, now):
            raise AuditError(
                f"Expected as many logits for all validation images, but got {before} and {now}. Choose one "
                "validation dataloader with `dataloader=`."
            )
        return logits

    def _gathered(self) -> Judgeable | None:
        """All images of this process, on the CPU; None if there are none, or something is wrong with them."""
        if self._pass.error is not None:
            return None
        try:
            images = self._store.all()
            if images is None:
                return None
            check_groups(images.labels, images.cues, self._pass.classes, self._group.cues or _MOST_LEARNT)
        except ConfigurationError as error:
            self._pass.error = ConfigurationError(f"{error} Let `label=` and `cue=` lead to such, or say `num_cues=`.")
            return None
        except Exception as error:  # such as of a device; other processes must not wait
            self._pass.error = error
            return None
        return images

    def _count_cues(self, images: Judgeable | None) -> int:
        return max(self._learnt, 0 if images is None else int(images.cues.max()) + 1)

    def _judged(self, sums: GroupSums) -> dict[str, Estimate]:
        metrics = self._judge.judge(sums)
        classes, cues = sums.losses.shape
        if self._group.lists_each(classes * cues):
            metrics |= self._judge.judge_each(sums, self._group.names(classes, cues, self._class_names))
        return metrics

    def _nothing(self) -> dict[str, Estimate]:
        """What cannot be answered is NaN, and no count of 0."""
        blank = self._judge.judge(GroupSums.zeros(*self._group.smallest))
        return dict.fromkeys(blank, Estimate(math.nan, None, None, None, 0, 0))


def _returned(outputs: object, images: int) -> Tensor | None:
    """Logits `(images, K)` that a step returned as such: the way out where it is not clear which ones they are."""
    given = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(given, Tensor) or given.shape[:1] != (images,) or given.ndim > 2:
        return None
    given = given.detach().view(images, -1)
    return binary_logits(given) if given.shape[1] == 1 else given


def _summed(trainer: Trainer, sums: GroupSums) -> GroupSums:
    """Over all processes; counts are exact up to 2**53."""
    whole = reduced(trainer, torch.cat([part.double().flatten() for part in sums]), "sum")
    parts = torch.split(whole, [part.numel() for part in sums])
    return GroupSums(*(new.view_as(old).to(old.dtype) for new, old in zip(parts, sums, strict=True)))


def _elsewhere(failed: int) -> AuditError:
    if failed:
        return AuditError("Expected all processes to read their validation batches, but another one could not.")
    return AuditError(
        "Expected validation images with labels and cues, but got none. Look at `dataloader=` of the group."
    )
