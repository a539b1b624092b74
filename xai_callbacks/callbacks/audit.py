"""`AuditCallback`: audits a model while Lightning trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xai_callbacks._lightning import LightningModule, Trainer
from xai_callbacks.access import ModelSelector, OutputSelector
from xai_callbacks.alarms import AlarmRule
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.base import OnError, ScheduledCallback, loaded
from xai_callbacks.callbacks.batches import BatchReader
from xai_callbacks.callbacks.followers import AlarmFollower, ExpectationFollower, Follower
from xai_callbacks.callbacks.group_watch import GroupWatch
from xai_callbacks.callbacks.groups import Group
from xai_callbacks.callbacks.schedule import Schedule
from xai_callbacks.callbacks.validation import ValidationWatch
from xai_callbacks.callbacks.vocabulary import alarm_book, vocabulary_of
from xai_callbacks.callbacks.watch import Watch
from xai_callbacks.errors import ConfigurationError, require_bool, require_instance
from xai_callbacks.expectations import Expectation, parse_expectations
from xai_callbacks.explainers import Explainer
from xai_callbacks.novelty import NoveltyScore
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question
from xai_callbacks.record import AuditRecord
from xai_callbacks.trials import Trial

__all__ = ["AuditCallback"]


class AuditCallback(ScheduledCallback):
    """Looks at a fixed set of probe images while the model trains and logs why it decides as it does.

    Training is bit-identical with and without this callback. An audit takes place before training (step 0) and at the
    end of each validation, or of each training epoch where there is no validation; never in the sanity check, and only
    in `fit`.

    **Logged pictures**, to every logger with `add_image` (TensorBoard): a panel a probe, `audit_panel/<number>_<name>`,
    a filmstrip a probe, `audit_filmstrip/<number>_<name>`, which shows up to eight audits side by side, and the most
    novel probes by each score, `audit_novelty/<score>/most_novel`. Where the logger has `add_histogram`, also how the
    scores are distributed, `audit_novelty/<score>/probes`, `/novel` and `/validation`. With a cue that the probes carry
    in a region, where each of them lies between looked at and used, `audit_cue/<cue>`; with `clusters`, the kinds of
    heatmaps of a class, `audit_clusters/<class>`. Where it has `add_text`, alarms and expectations in words.

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
    | `audit/<map>/relevance_mass/<region>` | share of positive relevance in a region, such as `core` |
    | `audit/<map>/relevance_lift/<region>` | the same over the area of the region: 1 is chance |
    | `audit/<map>/relevance_rank/<region>`, `audit/<map>/soft_iou/<region>` | two further views of the same |
    | `audit/cue/<cue>/effect` | rise of the probability of the class that a cue points to; more in `CueTrial` |
    | `audit/region/<region>/drop_minus_placebo`, `audit/bg/gap`, ... | what other `trials` say, see there |
    | `audit/<map>/shift_p/<region>`, `permuted_mass`, `signed_share`, `audit/edges/...` | with `nulls` |
    | `audit/cluster/worst_acc`, `count`, `error_association` | with `clusters`, see `ClusterJudge` |
    | `audit/alarm/cue/<cue>`, `audit/alarm/attribution/<region>` | 0 no evidence, 1 watch, 2 alarm, NaN: see `alarms` |
    | `audit/alarm/threshold` | effect above which a cue is used |
    | `audit/expectation/passed`, `failed`, `undecided` | how many expectations |
    | `audit/exact_match` | share of probes of which all labels are right, with several labels |
    | `audit/absolute_error`, `audit/absolute_error/<value>` | mean over the probes, of values |
    | `audit/<map>/drift` | change of the heatmaps since the last audit, 0 none, 1 unrelated, 2 reversed |
    | `audit/validation/novelty/<score>` | mean over the validation set, with `watch_validation` |
    | `audit/group/wga`, `wga_label`, `wga_cue`, `average_worst_gap` | worst group (label, cue), with `group` |
    | `audit/group/conflict_gap`, `cond_mi`, `ece_gap`, ... | how answers go by the cue: see `metrics.GroupMetrics` |
    | `audit/group/accuracy/<label>_<cue>`, `count/...`, `ece/...` | of one group, where there are up to 16 |
    | `audit/group/not_finite`, `unknown_cue` | validation images left out |
    | `audit_detail/<key>/chance`, `/low`, `/high` | chance level and 95 % interval over probes of each key above |
    | `audit_detail/<key>/degenerate` | probes left out because their map is empty or not finite; absent when none |
    | `audit_detail/seconds` | time the audit took |

    `<map>` is `<explainer>/<question>`, such as `gradcam/why`. A metric without a single valid probe is NaN in
    `callback_metrics` and left out of the loggers. Under several
    processes each audits the same probes, without collectives, and rank zero writes; what is seen of the validation set
    is added up over them.

    Args:
        probes: The probe set, or the path of a saved one.
        questions: Questions to ask; None for "Why P?", "Why P, rather than the runner-up?" and "Why not P with 100 %?".
        explainers: How to answer, such as `[GradCAM(), Every(5, IntegratedGradients())]`, each under a name of its own.
            None for Grad-CAM at an automatic layer, where the model has a feature map; `[]` for no heatmaps.
        novelty: Novelty scores; None for `GradNorm`, or `JointEnergy` of several labels.
        inliers: Familiar images, or the path of a saved probe set, from which scores such as `Mahalanobis` learn.
        novel: Images known to be novel, or the path of a saved probe set; scores are judged by them.
        locate_novelty: Whether panels also show where in the image, and in which layer, the novelty of a probe lies; it
            costs two more forward and backward passes over the probes.
        watch_validation: Whether to score all images of the validation set as well, by what the last layer sees while
            Lightning validates: no forward pass of its own. Only scores of the last layer that do not learn; not with a
            compiled model, whose layers cannot be watched.
        group: Where a validation batch says which cue each of its images has, to judge the model by group (label, cue)
            over the whole validation set, at each validation: a key, an index or path, a function of the batch, or a
            `Group`, which says more. The logits are those of the validation step: no forward pass of its own. Where
            they cannot be overheard, as of a model compiled as a whole, or where several views of an image make one
            answer, return `{"logits": logits}` from the step.
        trials: Edits of the probes by which to find out what the model uses, such as `CueTrial(PatchCue(...))`.
        nulls: Whether heatmaps are also judged by baselines: shifted maps, regions of other probes, an edge
            filter, and copies of the model with random weights (at the first audit).
        clusters: Whether heatmaps of each class are clustered, for cues that nobody named; best with `Why("label")`
            among the questions and sixty probes a class.
        alarm: When evidence is enough for an alarm, and what it does; None for `AlarmRule()`. There are alarms wherever
            a cue is tried.
        expectations: Sentences that are held against each audit, such as `cue_effect[patch] < 0.05`, or
            `{"name": ..., "expect": sentence}`; see `expectations`. A summary is shown at the end.
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
        explainers: list[Explainer] | None = None,
        novelty: list[NoveltyScore] | None = None,
        inliers: ProbeSet | str | None = None,
        novel: ProbeSet | str | None = None,
        locate_novelty: bool = False,
        watch_validation: bool = False,
        group: Group | BatchReader | None = None,
        trials: list[Trial] | None = None,
        nulls: bool = False,
        clusters: bool = False,
        alarm: AlarmRule | None = None,
        expectations: list[str | dict[str, str]] | None = None,
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
        require_bool("watch_validation", watch_validation)
        _check_optional(alarm, trials, expectations)
        self.auditor = Auditor(
            loaded(probes),
            questions,
            explainers=explainers,
            novelty=novelty,
            inliers=None if inliers is None else loaded(inliers, "inliers"),
            novel=None if novel is None else loaded(novel, "novel"),
            locate_novelty=locate_novelty,
            trials=() if trials is None else trials,
            nulls=nulls,
            clusters=clusters,
            model=model,
            output=output,
            chunk_size=chunk_size,
        )
        watches: list[Watch] = [ValidationWatch(self.auditor)] if watch_validation else []
        if group is not None:
            watches.append(
                GroupWatch(self.auditor, _grouping(group, self.auditor.probes), self.auditor.probes.class_names)
            )
        super().__init__(
            self.auditor,
            Schedule(every_n_epochs, every_n_train_steps, at_start),
            max_panels=max_panels,
            on_error=on_error,
            name=name,
            watches=watches,
            followers=self._followers_of(group, alarm, expectations),
        )

    def _followers_of(
        self,
        group: Group | BatchReader | None,
        alarm: AlarmRule | None,
        expectations: Sequence[str | Mapping[str, str]] | None,
    ) -> list[Follower]:
        """Alarms where there is something to raise them, then expectations, which may be about alarms."""
        self.alarms = AlarmFollower(alarm_book(self.auditor, alarm))
        if alarm is not None and not self.alarms.book.cues:
            raise ConfigurationError(
                "Expected `trials` to hold a CueTrial for an alarm to be about, but got none. Pass "
                "trials=[CueTrial(PatchCue(...))], or a cue of your own; heat alone raises no alarm."
            )
        followers: list[Follower] = [self.alarms] if self.alarms.book.watches else []
        self._group = None if group is None else _grouping(group, self.auditor.probes)
        self.expectations = ExpectationFollower(self._understood(expectations or ()))
        return [*followers, self.expectations] if expectations else followers

    def _understood(self, expectations: Sequence[str | Mapping[str, str] | Expectation]) -> tuple[Expectation, ...]:
        vocabulary = vocabulary_of(self.auditor, self._group, alarms=self.alarms.book.watches)
        return parse_expectations(expectations, vocabulary)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layer; warn of too few probes for an alarm."""
        super().on_fit_start(trainer, pl_module)
        # Where the default explainer does not suit the model, another takes its place, and heatmaps have other keys.
        self.alarms.book.regions = alarm_book(self.auditor, None).regions
        self.expectations.tally.expectations = self._understood(self.expectations.tally.expectations)
        words = self.alarms.book.forewarning(len(self.auditor.probes))
        self._notices.tell(trainer, f"{self.name}: {words}" if words else "", loud=True)

    @property
    def last_record(self) -> AuditRecord | None:
        """The latest audit of this run."""
        return self._record if isinstance(self._record, AuditRecord) else None


def _check_optional(alarm: object, trials: object, expectations: object) -> None:
    """Refuse what nothing else looks at before it is used."""
    if alarm is not None:
        require_instance("alarm", alarm, AlarmRule, "an AlarmRule")
    for argument, given in (("trials", trials), ("expectations", expectations)):
        if given is not None:
            require_instance(argument, given, (list, tuple), "a list, even of one")


def _grouping(group: Group | BatchReader, probes: ProbeSet) -> Group:
    probes.task.require_classes("group", single=True)
    if not callable(group):
        wanted = "a Group, or a key, an index or a function of the validation batch that says which cue an image has"
        require_instance("group", group, (Group, str, int), wanted)
    return group if isinstance(group, Group) else Group(group)
