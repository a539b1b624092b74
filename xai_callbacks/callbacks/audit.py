"""`AuditCallback`: audits a model while Lightning trains it."""

from __future__ import annotations

from xai_callbacks.access import ModelSelector, OutputSelector
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.base import OnError, ScheduledCallback, loaded
from xai_callbacks.callbacks.schedule import Schedule
from xai_callbacks.callbacks.validation import ValidationWatch
from xai_callbacks.explainers import Explainer
from xai_callbacks.novelty import NoveltyScore
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question
from xai_callbacks.record import AuditRecord

__all__ = ["AuditCallback"]


class AuditCallback(ScheduledCallback):
    """Looks at a fixed set of probe images while the model trains and logs why it decides as it does.

    Training is bit-identical with and without this callback. An audit takes place before training (step 0) and at the
    end of each validation, or of each training epoch where there is no validation; never in the sanity check, and only
    in `fit`.

    **Logged pictures**, to every logger with `add_image` (TensorBoard): a panel a probe, `audit_panel/<number>_<name>`,
    a filmstrip a probe, `audit_filmstrip/<number>_<name>`, which shows up to eight audits side by side, and the most
    novel probes by each score, `audit_novelty/<score>/most_novel`. Where the logger has `add_histogram`, also how the
    scores are distributed, `audit_novelty/<score>/probes`, `/novel` and `/validation`.

    **Logged metrics**, to every logger, and in `trainer.callback_metrics` so that `ModelCheckpoint` and `EarlyStopping`
    can monitor them:

    | key | meaning |
    |---|---|
    | `audit/accuracy`, `audit/confidence` | predictions on the probes |
    | `audit/switched` | share of predictions that changed since the last audit |
    | `audit/novelty/<score>` | mean novelty; larger = more novel |
    | `audit/novelty/<score>/rank_correlation` | whether the same probes are novel as at the last audit, -1 to 1 |
    | `audit/novelty/<score>/auroc` | how well the score tells `novel` images from the probes; .5 is chance |
    | `audit/novelty/<score>/aupr_novel`, `/aupr_known` | average precision with novel or known images as positives |
    | `audit/novelty/<score>/fpr_at_95tpr_id` | share of novel images accepted where 95 % of the probes are |
    | `audit/novelty/<score>/fpr_at_95tpr_ood` | share of probes flagged where 95 % of the novel images are |
    | `audit/<question>/relevance_mass/<region>` | share of positive relevance in a region, such as `why` and `core` |
    | `audit/<question>/relevance_lift/<region>` | the same over the area of the region: 1 is chance |
    | `audit/<question>/relevance_rank/<region>`, `audit/<question>/soft_iou/<region>` | two further views of the same |
    | `audit/<question>/drift` | change of the heatmaps since the last audit, 0 none, 1 unrelated, 2 reversed |
    | `audit/validation/novelty/<score>` | mean over the validation set, with `watch_validation` |
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
        locate_novelty: Whether panels also show where in the image, and in which layer, the novelty of a probe lies; it
            costs two more forward and backward passes over the probes.
        watch_validation: Whether to score all images of the validation set as well, by what the last layer sees while
            Lightning validates: no forward pass of its own. Only scores of the last layer that do not learn; not with a
            compiled model, whose layers cannot be watched.
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
        locate_novelty: bool = False,
        watch_validation: bool = False,
        every_n_epochs: int | None = 1,
        every_n_train_steps: int | None = None,
        at_start: bool = True,
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
        max_panels: int = 16,
        on_error: OnError = "warn",
        name: str = "audit",
    ) -> None:
        self.auditor = Auditor(
            loaded(probes),
            questions,
            explainer=explainer,
            novelty=novelty,
            inliers=None if inliers is None else loaded(inliers),
            novel=None if novel is None else loaded(novel),
            locate_novelty=locate_novelty,
            model=model,
            output=output,
            chunk_size=chunk_size,
        )
        super().__init__(
            self.auditor,
            Schedule(every_n_epochs, every_n_train_steps, at_start),
            max_panels=max_panels,
            on_error=on_error,
            name=name,
            watch=ValidationWatch(self.auditor) if watch_validation else None,
        )

    @property
    def last_record(self) -> AuditRecord | None:
        """The latest audit of this run."""
        return self._record if isinstance(self._record, AuditRecord) else None
