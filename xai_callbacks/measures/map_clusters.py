"""`MapClusters`: kinds of heatmaps within each class (SpRAy), followed from audit to audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, Measured, earlier_row
from xai_callbacks.metrics.clusters import error_association, large_classes, map_clusters, match_clusters, worst_cluster
from xai_callbacks.metrics.spectral import MOST_CLUSTERS
from xai_callbacks.questions import Why
from xai_callbacks.record import AuditRecord, Estimate, Key, PerProbe

__all__ = ["MapClusters"]

# Classes with fewer probes are left out, and clusters with fewer have no accuracy to speak of.
_FEWEST = 10
_NUMBER, _SEEN = "cluster/number", "cluster/seen"
_ABOUT_LABEL = Why("label").key


class MapClusters(Measure):
    """Clusters the heatmaps of each class, for cues that nobody named: see `metrics.clusters`.

    The maps are those of the first explainer about questions, of `Why("label")` if it is asked, else of the first
    question. Sixty probes a class or more are wanted. Probes are grouped by their label, or without labels by the class
    that was explained. If another class than the label was explained for any probe, as with `Why()`, clusters are
    counted, but not held against errors.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `cluster/worst_acc` | lowest accuracy of a cluster of 10 probes or more | [0, 1] | that of random clusters |
    | `cluster/count` | mean number of clusters in a class | [0, 8] | - |
    | `cluster/error_association` | smallest p-value of errors going with a cluster, Holm-corrected | [0, 1] | - |
    | `cluster/number` | number of each probe's cluster within its class; NaN for none | [0, inf) | - |
    | `cluster/seen` | numbers given so far, so that none is given to two clusters | [0, inf) | - |

    The first is the worst group, without group labels; the lowest of many is too low on average, and its chance is what
    clusters of the same sizes drawn at random give. `valid` is the number of probes, of classes, and of tests;
    `degenerate` that of heatmaps in no cluster, because they are empty or not finite.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """All, or without labels but the first and the third.

        Raises:
            ConfigurationError: The probes have no classes, or labels that do not exclude each other.
        """
        context.task.require_classes("MapClusters()", single=True)
        if not context.asked:
            return ()
        found = [
            Key("cluster/count", "mean number of kinds of heatmaps in a class", 0.0, MOST_CLUSTERS, of="nothing"),
            Key(_NUMBER, "number of the kind of heatmap within its class", 0.0, unit="label"),
            Key(_SEEN, "numbers given to kinds of heatmaps so far", 0.0, of="nothing"),
        ]
        if context.probes.truth is not None:
            found += [
                Key("cluster/worst_acc", "accuracy of the worst kind of heatmaps", 0.0, 1.0, "that of random kinds"),
                Key("cluster/error_association", "p-value of errors going with a kind", 0.0, 1.0, of="nothing"),
            ]
        return found

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Cluster heatmaps, if the explainer answered."""
        name = context.asked[0].partition("/")[0] if context.asked else ""
        if name not in record.maps or record.facts is None or record.predictions is None:
            return {}
        row = record.questions.index(_ABOUT_LABEL) if _ABOUT_LABEL in record.questions else 0
        classes = _classes(record, row)
        seen = max((int(estimate.value) for _, estimate in past.estimates(_SEEN)), default=0)
        numbers = map_clusters(record.maps[name].heatmaps[row], classes, min_count=_FEWEST)
        numbers = _followed(numbers, classes, record, row, past.latest_with(name), seen)
        large = large_classes(classes, _FEWEST)
        lost = int((torch.isin(classes, classes.new_tensor(large)) & (numbers < 0)).sum())
        pairs = torch.stack([classes, numbers])[:, numbers >= 0]
        count = torch.unique(pairs, dim=1).shape[1]
        found: dict[str, PerProbe | Estimate] = {
            "cluster/count": Estimate(count / len(large) if large else torch.nan, valid=len(large), degenerate=lost),
            _NUMBER: PerProbe(numbers.double().where(numbers >= 0, torch.nan)),
            _SEEN: Estimate(float(max([seen, *(numbers + 1).tolist()]))),
        }
        mixed = record.truth is not None and not torch.equal(record.facts[row], record.truth)
        if record.truth is not None:
            found |= _judged(numbers, record.truth, record.predictions == record.truth, lost, mixed)
        context.notes.extend(_notes(context, classes, large, lost, mixed))
        return found


def _classes(record: AuditRecord, row: int) -> Tensor:
    """The class with which each map is clustered: its label, else that it is about, else the answer."""
    facts, answers = cast(Tensor, record.facts)[row], cast(Tensor, record.predictions)
    return torch.where(facts < 0, answers, facts) if record.truth is None else record.truth


def _followed(
    numbers: Tensor, classes: Tensor, record: AuditRecord, row: int, earlier: AuditRecord | None, seen: int
) -> Tensor:
    """The numbers of the clusters of an earlier audit that these grew out of, and new ones from `seen` on."""
    before, groups = torch.full_like(numbers, -1), torch.full_like(classes, -1)
    place = None if earlier is None else earlier_row(record, row, earlier)
    if earlier is not None and place is not None and _NUMBER in earlier.per_probe:
        before, groups = earlier.per_probe[_NUMBER].nan_to_num(nan=-1.0).long(), _classes(earlier, place)
    followed = numbers.clone()
    for label in torch.unique(classes[numbers >= 0]).tolist():
        own = classes == label
        matched = match_clusters(before.where(groups == label, -1), numbers.where(own, -1), fresh=seen)
        followed[own] = matched[own]
    return followed


def _judged(numbers: Tensor, labels: Tensor, correct: Tensor, lost: int, mixed: bool) -> dict[str, Estimate]:
    """Accuracy and errors; maps that do not all explain the label cannot be held against errors."""
    worst = worst_cluster(numbers, labels, correct, min_count=_FEWEST)
    errors = error_association(numbers, labels, correct)
    if mixed:
        worst, errors = worst._replace(chance=None), Estimate(torch.nan, valid=0)
    return {
        "cluster/worst_acc": worst._replace(degenerate=lost),
        "cluster/error_association": errors._replace(degenerate=lost),
    }


def _notes(context: Context, classes: Tensor, large: Sequence[int], lost: int, mixed: bool) -> Iterator[str]:
    small = [label for label in torch.unique(classes[classes >= 0]).tolist() if label not in large]
    if small:
        names = ", ".join(repr(context.probes.class_name(label)) for label in small[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        yield f"Heatmaps were not clustered for the classes {names}{more}: they have fewer than {_FEWEST} probes each."
    if lost:
        yield f"{lost} heatmaps are empty or not finite, and in no cluster."
    if mixed:
        yield (
            "Clusters were not held against errors: some heatmaps explain another class than the label, and look "
            'different for that alone. Ask `Why("label")` for that.'
        )
