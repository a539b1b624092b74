"""`Evidence`: everything that is judged of predictions, heatmaps and trials at one audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from xai_callbacks.audit.records import Findings, summarized
from xai_callbacks.audit.references import References
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.metrics.cluster_judge import Clustered, ClusterJudge
from xai_callbacks.metrics.judge import Judge, KeyedMaps
from xai_callbacks.metrics.null_judge import NullJudge
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question, Why
from xai_callbacks.record import Estimate, MapSet
from xai_callbacks.tasks import Task
from xai_callbacks.trials import Trial

__all__ = ["Evidence", "Judged"]


class Judged(NamedTuple):
    """What an audit found.

    Attributes:
        findings: Metrics by key.
        clusters: Kinds of heatmaps; None if they were not asked for, or there are no heatmaps.
    """

    findings: Findings
    clusters: Clustered | None


class Evidence:
    """Judges the audits of one probe set.

    Args:
        probes: The probe set.
        questions: The questions, in the order of the heatmaps.
        trials: Edits of the probes.
        nulls: Whether heatmaps are judged by nulls, too.
        clusters: Whether the heatmaps of the first explainer are clustered.
    """

    def __init__(
        self, probes: ProbeSet, questions: tuple[Question, ...], trials: Sequence[Trial], *, nulls: bool, clusters: bool
    ) -> None:
        self._probes = probes
        self._questions = tuple(question.key for question in questions)
        self.trials = TrialRunner(probes, trials)
        self.references = References(probes, questions) if nulls and probes.masks else None
        self._judge = Judge(probes)
        self._nulls = NullJudge(probes, PixelScale.of(probes).displayed(probes.images)) if nulls else None
        about_label = Why("label").key
        self._clusters = (
            ClusterJudge(probes, self._questions.index(about_label) if about_label in self._questions else 0)
            if clusters
            else None
        )

    def judge(
        self,
        task: Task,
        outputs: Tensor,
        maps: Mapping[str, MapSet],
        facts: Tensor,
        others: Mapping[str, PerProbe | Estimate],
        *,
        clustered: str | None,
        chunk_size: int,
    ) -> Judged:
        """Judge one audit; remembers it for the next.

        Args:
            task: How outputs are read.
            outputs: What the model said, `(N, K)`.
            maps: Heatmaps by explainer.
            facts: Outputs asked about, `(Q, N)`.
            others: Metrics from elsewhere, such as what trials found.
            clustered: The explainer whose heatmaps are clustered, the same at every audit; None for none.
            chunk_size: Heatmaps enlarged to the size of the images at a time.
        """
        truth = self._probes.truth
        keyed = {name: self._keyed(name, given) for name, given in maps.items()}
        metrics: dict[str, PerProbe | Estimate] = dict(self._judge.judge(task, outputs, truth, keyed, chunk_size))
        if self._nulls is not None:
            metrics |= self._nulls.judge(keyed.values(), chunk_size)
        clusters = None
        if self._clusters is not None and clustered is not None and clustered in maps:
            clusters = self._clusters.judge(outputs, truth, maps[clustered].heatmaps, facts)
            metrics |= clusters.metrics
        return Judged(summarized({**others, **metrics}), clusters)

    def state_dict(self) -> dict[str, Any]:
        """What the next audit compares itself with, as tensors and plain values."""
        parts = {"judge": self._judge, "clusters": self._clusters, "references": self.references}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes or questions is ignored."""
        parts = {"judge": self._judge, "clusters": self._clusters, "references": self.references}
        for name, part in parts.items():
            if part is not None and name in state:
                part.load_state_dict(state[name])

    def forget(self) -> None:
        """Begin anew, as if nothing had been judged."""
        for part in (self._judge, self._clusters, self.references):
            if part is not None:
                part.forget()

    def _keyed(self, name: str, given: MapSet) -> KeyedMaps:
        """Heatmaps under the keys of their explainer and questions."""
        asked = self._questions if given.about == "question" else ()
        return KeyedMaps(given.heatmaps, tuple(f"{name}/{key}" for key in asked) or (name,), given.kind)
