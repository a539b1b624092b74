"""`NoveltyCallback`: scores how novel probes are to a model while Lightning trains it."""

from __future__ import annotations

from xai_callbacks.access import ModelSelector, OutputSelector
from xai_callbacks.audit import NoveltyAuditor
from xai_callbacks.callbacks.base import OnError, ScheduledCallback, loaded
from xai_callbacks.callbacks.schedule import Schedule
from xai_callbacks.errors import require_bool
from xai_callbacks.novelty import NoveltyScore
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import NoveltyRecord

__all__ = ["NoveltyCallback"]


class NoveltyCallback(ScheduledCallback):
    """Scores how novel a fixed set of probe images is to a model while it trains; any model, also an autoencoder.

    Like `AuditCallback`, without questions and heatmaps: audits take place at the same times, under the same keys, and
    training is bit-identical with and without it. For a classifier, `AuditCallback(probes, novelty=[...])` does both at
    once; two callbacks in one trainer need different names.

    **Logged metrics**, to every logger, and in `trainer.callback_metrics`:

    | key | meaning |
    |---|---|
    | `audit/novelty/<score>` | mean over the probes; larger = more novel |
    | `audit/novelty/<score>/rank_correlation` | whether the same probes are novel as at the last audit, -1 to 1 |
    | `audit/novelty/<score>/auroc` | how well the score tells `novel` images from the probes; .5 is chance |
    | `audit/novelty/<score>/aupr_novel`, `/aupr_known` | average precision with novel or known images as positives |
    | `audit/novelty/<score>/fpr_at_95tpr_id` | share of novel images accepted where 95 % of the probes are |
    | `audit/novelty/<score>/fpr_at_95tpr_ood` | share of probes flagged where 95 % of the novel images are |
    | `audit/novelty/<score>/<condition>_<level>/auroc` | how well it notices what is done to the probes |
    | `audit_detail/<key>/chance`, `/low`, `/high` | chance level and 95 % interval of each key above |

    **Pictures** to every logger with `add_image`: the most novel probes by each score with where they stood among the
    others in earlier audits, `audit_novelty/<score>/most_novel`; histograms where the logger has `add_histogram`.

    Args:
        probes: Familiar images, such as of the validation set; a probe set, or the path of a saved one.
        scores: The scores.
        inliers: Familiar images, or the path of a saved probe set, from which scores such as `FisherNovelty` learn.
        novel: Images known to be novel, or the path of a saved probe set; scores are judged by them.
        conditions: Names of conditions, such as `blur`, under which the probes are shown at five levels as well: see
            `interventions.CONDITIONS`; None for none.
        every_n_epochs: Audit at validations of every n-th epoch; None for never.
        every_n_train_steps: Audit also after every n-th optimizer step; None for never.
        at_start: Audit also before training starts, as step 0; a resumed run does not repeat it.
        model: Which part of the LightningModule takes the images, if its `forward` does not: a dotted name or a
            callable.
        output: Which part of what a classifier returns holds the logits: key, index or callable; None chooses.
        chunk_size: Images in one pass; bounds the memory.
        pictures: Whether to draw the most novel probes.
        on_error: What happens when an audit fails while training: `warn` once for each kind of error and go on, or
            `raise`.
        name: What all tags and keys begin with.

    Raises:
        ConfigurationError: An argument is wrong, or a score does not suit the model; at the start of `fit` at the
            latest.

    Example::

        scores = [ReconstructionError(), FisherNovelty()]
        trainer = Trainer(callbacks=[NoveltyCallback(probes, scores, inliers=inliers, novel=others)])
        trainer.fit(AutoencoderModule(), datamodule)
    """

    def __init__(
        self,
        probes: ProbeSet | str,
        scores: list[NoveltyScore],
        *,
        inliers: ProbeSet | str | None = None,
        novel: ProbeSet | str | None = None,
        conditions: list[str] | None = None,
        every_n_epochs: int | None = 1,
        every_n_train_steps: int | None = None,
        at_start: bool = True,
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
        pictures: bool = True,
        on_error: OnError = "warn",
        name: str = "audit",
    ) -> None:
        require_bool("pictures", pictures)
        familiar = None if inliers is None else loaded(inliers, "inliers")
        unfamiliar = None if novel is None else loaded(novel, "novel")
        self.auditor = NoveltyAuditor(
            loaded(probes),
            scores,
            inliers=familiar,
            novel=unfamiliar,
            conditions=() if conditions is None else conditions,
            model=model,
            output=output,
            chunk_size=chunk_size,
        )
        super().__init__(
            self.auditor,
            Schedule(every_n_epochs, every_n_train_steps, at_start),
            max_panels=int(pictures),
            on_error=on_error,
            name=name,
        )

    @property
    def last_record(self) -> NoveltyRecord | None:
        """The latest audit of this run."""
        return self._record
