"""`MapClusters`: kinds of heatmaps within each class (SpRAy)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import first_of
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure
from xai_callbacks.metrics.clusters import error_association, large_classes, map_clusters, worst_cluster
from xai_callbacks.questions import Why
from xai_callbacks.record import AuditRecord, Estimate, Key, Measured, PerProbe

_ABOUT_LABEL = Why("label").key


class MapClusters(Measure):
    """Clusters the heatmaps of each class, for cues that nobody named: see `metrics.clusters`.

    The maps are those of the first explainer about questions, of `Why("label")` if it is asked, else of the first
    question. Sixty probes a class or more are wanted; classes with fewer than 10 are left out. Probes are grouped by
    their label, or without labels by the class that was explained. If another class than the label was explained for
    any probe, as with `Why()`, clusters are counted, but not held against errors.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `cluster/worst_acc` | lowest accuracy of a cluster of 10 probes or more | [0, 1] | that of random clusters |
    | `cluster/count` | mean number of clusters in a class | >= 0 | - |
    | `cluster/error_association` | p-value of errors going with a cluster, by permutation within classes | [0, 1] | - |
    | `cluster/number` | number of each probe's cluster within its class, largest first; NaN for none | >= 0 | - |

    The first is the worst group, without group labels; the lowest of many is too low on average: see its chance.
    `valid` is the number of probes, of classes, and of tests; `degenerate` that of heatmaps in no cluster.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """All, or without labels the count and the numbers; raises unless classes exclude each other."""
        context.task.require_classes("MapClusters()", single=True)
        found = [
            Key("cluster/count", "mean number of kinds of heatmaps in a class", 0.0, of="nothing"),
            Key("cluster/number", "number of the kind of heatmap within its class", 0.0, unit="label"),
            Key("cluster/worst_acc", "accuracy of the worst kind of heatmaps", 0.0, 1.0, "that of random kinds"),
            Key("cluster/error_association", "p-value of errors going with a kind", 0.0, 1.0, of="nothing"),
        ]
        return found[: 0 if not context.asked else 2 if context.probes.truth is None else 4]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Cluster heatmaps, if the explainer answered."""
        name, _, question = clustered(record, context).partition("/")
        if name not in record.maps or record.facts is None or record.predictions is None:
            return {}
        row = record.questions.index(question)
        facts = record.facts[row]
        # The class of a map is its label, else that it is about, else the answer.
        classes = torch.where(facts < 0, record.predictions, facts) if record.truth is None else record.truth
        numbers, large = map_clusters(record.maps[name].heatmaps[row], classes), large_classes(classes)
        lost = int((torch.isin(classes, classes.new_tensor(large)) & (numbers < 0)).sum())
        count = torch.unique(torch.stack([classes, numbers])[:, numbers >= 0], dim=1).shape[1]
        found: dict[str, PerProbe | Estimate] = {
            "cluster/count": Estimate(count / len(large) if large else torch.nan, valid=len(large), degenerate=lost),
            "cluster/number": PerProbe(numbers.double().where(numbers >= 0, torch.nan)),
        }
        mixed = record.truth is not None and not torch.equal(facts, record.truth)
        if record.truth is not None:
            correct = record.predictions == record.truth
            worst = worst_cluster(numbers, record.truth, correct)
            # Maps that do not all explain the label cannot be held against errors.
            errors = Estimate(torch.nan, valid=0) if mixed else error_association(numbers, record.truth, correct)
            found["cluster/worst_acc"] = worst._replace(degenerate=lost, chance=None if mixed else worst.chance)
            found["cluster/error_association"] = errors._replace(degenerate=lost)
        context.notes.extend(_notes(context, classes, large, lost, mixed))
        return found


def clustered(record: AuditRecord, context: Context) -> str:
    """What keys of the heatmaps begin with that are clustered, such as `gradcam/why_label`; empty if there are none."""
    if not context.asked or not record.questions:
        return ""
    question = _ABOUT_LABEL if _ABOUT_LABEL in record.questions else record.questions[0]
    return f"{context.asked[0].partition('/')[0]}/{question}"


def _notes(context: Context, classes: Tensor, large: Sequence[int], lost: int, mixed: bool) -> Iterator[str]:
    small = [label for label in torch.unique(classes[classes >= 0]).tolist() if label not in large]
    if small:
        names = first_of([repr(context.probes.class_name(label)) for label in small], 5)
        yield f"Heatmaps were not clustered for the classes {names}: they have fewer than 10 probes each."
    if lost:
        yield f"{lost} heatmaps are empty or not finite, and in no cluster."
    if mixed:
        yield (
            "Clusters were not held against errors: some heatmaps explain another class than the label, and look "
            'different for that alone. Ask `Why("label")` for that.'
        )
