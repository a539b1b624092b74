"""`ClusterJudge`: kinds of heatmaps at one audit, and the little it must remember to follow them to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import require_integer
from xai_callbacks.metrics.clusters import ClassClusters, WorstCluster, cluster_numbers, spray, worst_cluster
from xai_callbacks.metrics.spectral import match_clusters
from xai_callbacks.metrics.summary import Estimate
from xai_callbacks.probes import ProbeSet

__all__ = ["ClusterJudge", "Clustered"]

# Classes with fewer probes are left out, and clusters with fewer have no accuracy to speak of.
_LEAST = 10


class Clustered(NamedTuple):
    """What the clusters of one audit say.

    Attributes:
        metrics: Estimates by key.
        classes: The clusters of each class with enough probes; clusters by number, which they keep from audit to audit.
        worst: The cluster with the lowest accuracy; None for unlabelled probes.
        notes: What was left out or cannot be asked, in sentences.
        question: Place of the question whose heatmaps these are.
    """

    metrics: dict[str, Estimate]
    classes: tuple[ClassClusters, ...]
    worst: WorstCluster | None
    notes: tuple[str, ...]
    question: int


class ClusterJudge:
    """Clusters the heatmaps of one question, class by class, audit after audit.

    Probes are grouped by their label, or without labels by the class that was explained. The question should be about
    the label (`Why("label")`): if another class was explained for any probe, the clusters are drawn and counted, but
    not held against errors, see `clusters`.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `cluster/worst_acc` | lowest accuracy of a cluster of 10 probes or more | [0, 1] | that of random clusters |
    | `cluster/count` | mean number of clusters in a class | [0, 8] | - |
    | `cluster/error_association` | smallest p-value of errors going with a cluster, Holm-corrected | [0, 1] | - |

    The first and the last need labels. The first is the worst group, without group labels; the lowest of many is too
    low on average, and its chance is what clusters of the same sizes drawn at random give. `valid` is the number of
    probes, of classes, and of tested clusters; `degenerate` that of heatmaps in no cluster, because they are empty or
    not finite.

    Args:
        probes: The probe set, with classes.
        question_index: Place of the question among those of the heatmaps.

    Raises:
        ConfigurationError: The probes have target values instead of classes.
    """

    def __init__(self, probes: ProbeSet, question_index: int = 0) -> None:
        require_integer("question_index", question_index, minimum=0)
        probes.task.require_classes("clusters", single=True)
        self.probes = probes
        self.question_index = question_index
        self._numbers = torch.full((len(probes),), -1)
        self._groups = torch.full((len(probes),), -1)
        self._fresh: dict[int, int] = {}

    def judge(self, outputs: Tensor, truth: Tensor | None, heatmaps: Tensor, explained_classes: Tensor) -> Clustered:
        """Cluster the heatmaps of one audit; remembers the clusters for the next.

        Args:
            outputs: Logits `(N, K)`.
            truth: Labels `(N,)`, or None.
            heatmaps: Signed `(Q, N, h, w)`.
            explained_classes: Class that each heatmap is about, `(Q, N)`; -1 where a question is about none.
        """
        answers = outputs.argmax(dim=1)
        explained = explained_classes[self.question_index]
        groups = torch.where(explained < 0, answers, explained) if truth is None else truth
        correct = None if truth is None else answers == truth
        testable = truth is not None and torch.equal(explained, truth)
        found = spray(
            heatmaps[self.question_index],
            groups,
            correct,
            test_errors=testable,
            regions=self.probes.masks,
            min_count=_LEAST,
        )
        found = tuple(self._renumbered(kind, groups) for kind in found)
        self._remember(found, groups)
        worst = None if correct is None else worst_cluster(found, correct, min_count=_LEAST)
        if worst is not None and not testable:
            worst = worst._replace(estimate=worst.estimate._replace(chance=None), p=math.nan)
        notes = tuple(self._notes(found, groups, truth is not None and not testable))
        return Clustered(_metrics(found, worst), found, worst, notes, self.question_index)

    def forget(self) -> None:
        """Begin anew, as if nothing had been judged."""
        self._numbers, self._groups = torch.full_like(self._numbers, -1), torch.full_like(self._groups, -1)
        self._fresh = {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "fingerprint": self.probes.fingerprint,
            "question_index": self.question_index,
            "numbers": self._numbers,
            "groups": self._groups,
            "fresh": dict(self._fresh),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes or of another question is ignored."""
        if state.get("fingerprint") != self.probes.fingerprint or state.get("question_index") != self.question_index:
            return
        self._numbers, self._groups, self._fresh = state["numbers"], state["groups"], dict(state["fresh"])

    def _renumbered(self, kind: ClassClusters, groups: Tensor) -> ClassClusters:
        """The same clusters with the numbers of those at the previous audit that they grew out of, by number."""
        before = torch.where(self._groups == kind.label, self._numbers, -1)
        after = cluster_numbers([kind], len(groups))
        numbers = match_clusters(before, after, fresh=self._fresh.get(kind.label, 0))
        renamed = [replace(cluster, number=int(numbers[cluster.members[0]])) for cluster in kind.clusters]
        return replace(kind, clusters=tuple(sorted(renamed, key=lambda cluster: cluster.number)))

    def _remember(self, found: Sequence[ClassClusters], groups: Tensor) -> None:
        self._numbers, self._groups = cluster_numbers(found, len(groups)), groups.clone()
        for kind in found:
            # A number is never given to another cluster: two curves under one number would look like one.
            used = [cluster.number + 1 for cluster in kind.clusters]
            self._fresh[kind.label] = max([self._fresh.get(kind.label, 0), *used])

    def _notes(self, found: Sequence[ClassClusters], groups: Tensor, mixed: bool) -> Iterator[str]:
        clustered = {kind.label for kind in found}
        sizes = groups[groups >= 0].bincount().tolist()
        small = [label for label, size in enumerate(sizes) if size and label not in clustered]
        if small:
            names = ", ".join(repr(self.probes.class_name(label)) for label in small[:5])
            more = f" and {len(small) - 5} more" if len(small) > 5 else ""
            yield (
                f"Heatmaps were not clustered for the classes {names}{more}: they have fewer than {_LEAST} probes each."
            )
        lost = sum(kind.degenerate for kind in found)
        if lost:
            yield f"{lost} heatmaps are empty or not finite, and in no cluster."
        if mixed:
            yield (
                "Clusters were not held against errors: some heatmaps explain another class than the label, and look "
                'different for that alone. Ask `Why("label")` for that.'
            )


def _metrics(found: Sequence[ClassClusters], worst: WorstCluster | None) -> dict[str, Estimate]:
    lost = sum(kind.degenerate for kind in found)
    count = sum(len(kind.clusters) for kind in found) / len(found) if found else math.nan
    metrics = {"cluster/count": Estimate(count, None, None, None, len(found), lost)}
    if worst is not None:
        p_values = [cluster.p for kind in found for cluster in kind.clusters if not math.isnan(cluster.p)]
        smallest = min(p_values, default=math.nan)
        metrics["cluster/worst_acc"] = worst.estimate
        metrics["cluster/error_association"] = Estimate(smallest, None, None, None, len(p_values), lost)
    return metrics
