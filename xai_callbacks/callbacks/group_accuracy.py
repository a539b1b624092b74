"""`GroupAccuracy`: accuracies by group over a whole validation set, from the logits that its steps compute anyway."""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.neighbours import has_lazy_parameters
from xai_callbacks.callbacks.steps import BatchReader, LogitTap, read_integers, read_labels
from xai_callbacks.callbacks.watch import Seen, Watch, reduced
from xai_callbacks.errors import AuditError, ConfigurationError, require_bool, require_integer, texts_of
from xai_callbacks.metrics.group_metrics import GroupMetrics, integer_table
from xai_callbacks.record import Estimate, Key
from xai_callbacks.tasks import binary_logits, in_key

_MOST_LEARNT = 256  # a cue of which more values are seen than this is probably no cue but, say, a number of each image
_MOST_LISTED = 16  # with more groups than this, the values of single groups would bury the rest
# Logits that wait to be read together, 4 MB: reading each small batch by itself would cost more than all the rest.
_WAITING = 2**20

_REPEATED = (
    "judges groups by the first call of the classifier in each validation step; some steps call it repeatedly. To have "
    "them judged by other logits, return {'logits': logits} from `validation_step`."
)


_OTHERS_FAILED = "Expected all processes to read their validation batches, but another one could not."
_EMPTY = "Expected validation images with labels and cues, but got none. Look at `dataloader=` of the group."


@dataclass
class _Pass:
    """What one pass over the validation set brought so far in this process."""

    current: tuple[Tensor, Tensor] | None = None  # labels and cues of the batch
    waiting: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # logits, labels, cues
    metric: GroupMetrics | None = None
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
    `metrics.GroupMetrics`.

    Args:
        cue: Where the cue of each image is, an integer from 0, or -1 where it is unknown: a key or index of the batch;
            a path such as `1.background` or `metadata.place`; or a function of the batch.
        label: Where the label is, likewise; None for entry 1 of a tuple or list, or the key `label`, `labels`,
            `target`, `targets`, `y` or `class`.
        num_cues: Number of values of the cue; None to learn it from the validation images, as far as nothing else
            tells it.
        aligned: For each label, the cue that goes with it in training; None leaves out what compares the two sides.
        train_counts: Number of training images by label and cue; None leaves out what weighs by them.
        cue_names: Names of the cues, for the keys of single groups.
        min_count: Fewest images of a group that may be the worst.
        dataloader: Index of the one validation dataloader to look at; None for all of them together.
        each: Whether to log the accuracy, size and calibration error of each group; None for up to 16 groups.

    Raises a `ConfigurationError` if a value is not of this form, or two contradict each other.
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
        for name, where in (("cue", cue), ("label", 1 if label is None else label)):
            if isinstance(where, bool) or not (callable(where) or isinstance(where, str | int)):
                raise ConfigurationError(
                    f"Expected `{name}` to be a key, an index or a function of the batch, but got {where!r}."
                )
        for name, count, fewest in (("num_cues", num_cues, 1), ("dataloader", dataloader, 0)):
            if count is not None:
                require_integer(name, count, minimum=fewest)
        if each is not None:
            require_bool("each", each)
        train = None if train_counts is None else integer_table("train_counts", train_counts)
        self.cue_names = None if cue_names is None else texts_of("cue_names", cue_names)
        self.cue, self.label, self.dataloader, self.each = cue, label, dataloader, each
        self._settings: dict[str, Any] = {"aligned": aligned, "train_counts": train_counts, "min_count": min_count}
        columns = None if train is None else range(train.shape[1])
        known: dict[str, Any] = {"num_cues": num_cues, "cue_names": self.cue_names, "train_counts": columns}
        told = {name: each if isinstance(each, int) else len(each) for name, each in known.items() if each is not None}
        if len(set(told.values())) > 1:
            sizes = ", ".join(f"`{name}` {count}" for name, count in told.items())
            raise ConfigurationError(f"Expected one number of values of the cue, but got {sizes}. Make them agree.")
        self.num_cues = next(iter(told.values()), None)
        # The fewest classes and cues that agree with all that is given.
        rows = train if train is not None else aligned
        listed: Sequence[object] = aligned if isinstance(aligned, Sequence) else ()
        cues = [cue for cue in listed if isinstance(cue, int)]
        self._classes = max(2, len(rows) if isinstance(rows, Sized) else 0)
        self._fewest = max([0, *cues]) + 1 if self.num_cues is None else self.num_cues
        self._metric(self._classes, self._fewest)  # says now what is wrong with the arguments
        self._class_names: Sequence[str] | None = None
        self._tap: LogitTap | None = None
        self._pass = _Pass()
        self._learnt = self._fewest

    def keys(self, auditor: Auditor) -> Sequence[Key]:
        """See `Watch.keys`."""
        auditor.probes.task.require_classes("GroupAccuracy", single=True)
        return GroupMetrics(self._classes, self._fewest, **self._settings).keys()

    def begin(self, model: nn.Module, auditor: Auditor) -> None:
        """See `Watch.begin`."""
        self.stop()
        self._pass = _Pass()
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
        if self.dataloader not in (None, dataloader) or self._pass.error is not None:
            return
        try:
            labels, cues = read_labels(batch, self.label), read_integers(batch, self.cue, "cue")
            if len(labels) != len(cues):
                raise ConfigurationError(
                    f"Expected as many cues as labels, but got {len(cues)} and {len(labels)}. Let `cue=` and `label=` "
                    "lead to one integer an image each."
                )
        except Exception as error:  # reported at the end
            self._pass.error = error
            return
        if len(labels):
            self._pass.current = labels.clone(), cues.clone()
            if self._tap is not None:
                self._tap.expect(len(labels))

    def after(self, outputs: object) -> None:
        """Keep the logits of the batch for a while."""
        if self._pass.current is None or self._tap is None:
            return
        labels, cues = self._pass.current
        self._pass.current = None
        try:
            logits = self._logits(self._tap, outputs, len(labels))
            self._pass.waiting.append((logits, labels.to(logits.device), cues.to(logits.device)))
            if sum(given.numel() for given, *_ in self._pass.waiting) > _WAITING:
                self._count()
        except Exception as error:  # reported at the end
            self._pass.error = error

    def stop(self) -> None:
        """Stop listening."""
        if self._tap is not None:
            self._tap.close()
        self._tap = None

    def check(self) -> None:
        """See `Watch.check`."""
        error = self._finish()
        self.forget()
        if isinstance(error, ConfigurationError):
            raise error

    def end(self, trainer: Trainer) -> Seen:
        """Stop listening and judge; two collective operations where there are several processes."""
        error, done = self._finish(), self._pass
        mine = [done.classes, self._learnt, error is not None]
        classes, self._learnt, failed = reduced(trainer, torch.tensor(mine, dtype=torch.float64), "max").long().tolist()
        self._pass = _Pass()
        if failed or not classes:
            blank = self._metric(self._classes, self._fewest, each=False).estimates()
            # What cannot be answered is NaN, and no count of 0.
            nothing = dict.fromkeys(blank, Estimate(math.nan, valid=0))
            return Seen(nothing, error=error or AuditError(_OTHERS_FAILED if failed else _EMPTY))
        metric = self._metric(classes, self._learnt, done.metric)
        whole = reduced(trainer, torch.cat([metric.sums.flatten(), metric.left_out]), "sum")
        metric.sums, metric.left_out = whole[:-2].view_as(metric.sums), whole[-2:]
        names = self._names(classes, self._learnt)
        return Seen(metric.estimates(names), notes=(_REPEATED,) if done.repeated else ())

    def forget(self) -> None:
        """Begin anew."""
        self.stop()
        self._pass = _Pass()
        self._learnt = self._fewest

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens."""
        return {**self.__dict__, "_tap": None, "_pass": _Pass()}

    def _logits(self, tap: LogitTap, outputs: object, images: int) -> Tensor:
        """The logits of the step just done, `(images, K)`."""
        logits, calls = tap.take()
        # Several calls may be several views, of which only the user knows what becomes.
        returned = None if calls == 1 else _returned(outputs, images)
        self._pass.repeated |= calls > 1 and returned is None
        logits = logits if returned is None else returned
        if logits is None:
            raise AuditError(
                f"Expected each validation step to call the classifier, but {tap.why_nothing()}. Say with `model=` "
                "which part classifies images, or return {'logits': logits} from `validation_step`."
            )
        before, self._pass.classes = self._pass.classes, logits.shape[1]
        if before not in (0, logits.shape[1]):
            raise AuditError(
                f"Expected as many logits for all validation images, but got {before} and {logits.shape[1]}. Choose "
                "one validation dataloader with `dataloader=`."
            )
        return logits

    def _finish(self) -> Exception | None:
        """Stop listening and count what waits; gives what went wrong."""
        self.stop()
        if self._pass.error is None:
            try:
                self._count()
            except Exception as error:  # such as of a device; other processes must not wait
                self._pass.error = error
        return self._pass.error

    def _count(self) -> None:
        """Add what waits to the metric, which grows with the number of cues."""
        waiting, self._pass.waiting = self._pass.waiting, []
        if not waiting:
            return
        logits, labels, cues = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        if self.num_cues is None:
            self._learnt = max(self._learnt, min(int(cues.max()) + 1, _MOST_LEARNT))
        self._pass.metric = metric = self._metric(logits.shape[1], self._learnt, self._pass.metric)
        metric.update(logits, labels, cues)

    def _metric(
        self, classes: int, cues: int, counted: GroupMetrics | None = None, *, each: bool | None = None
    ) -> GroupMetrics:
        """A metric for so many classes and cues, with what was counted for fewer cues."""
        listed = classes * cues <= _MOST_LISTED if self.each is None else self.each
        metric = GroupMetrics(classes, cues, **self._settings, per_group=listed if each is None else each)
        if counted is not None:
            metric.sums[:, : counted.num_cues] = counted.sums
            metric.left_out = counted.left_out
        return metric

    def _names(self, classes: int, cues: int) -> list[str] | None:
        """Names of the groups for keys, label by label, such as `duck_land`; None if numbers must do."""
        given = self._class_names or ()
        labels: Sequence[object] = given if len(given) == classes else range(classes)
        names = [in_key(f"{label}_{cue}") for label, cue in product(labels, self.cue_names or range(cues))]
        return names if len(set(names)) == len(names) else None


def _returned(outputs: object, images: int) -> Tensor | None:
    """Logits `(images, K)` that a step returned as such: the way out where it is not clear which ones they are."""
    given = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(given, Tensor) or given.shape[:1] != (images,) or given.ndim > 2:
        return None
    given = given.detach().view(images, -1)
    return binary_logits(given) if given.shape[1] == 1 else given
