"""What tells of a cue that nobody named and that has no mask? Three signals on the nets of the study of the alarm.

Each net is shown 600 test images. Nets that saw a cue in training, taught or useless, are shown it in places where it
contradicts the class, too: a variant is that of the class with probability one half, a single variant is on half of all
images. The signals know neither cue nor mask:

`clusters`: the shipped measure. Do errors go with a kind of heatmaps within a class (`cluster/error_association`
< .05), and do the kinds tell images whose cue contradicts the class from the others (adjusted Rand index)?
`depth`: prediction depth (Baldock et al. 2021; for shortcuts Murali et al. 2023), the first layer from which on 29
nearest neighbours among 1,000 training images give the answer of the net; as a share of all layers.
`loss`: cross-entropy, after the last epoch and after the first, as in group inference (Liu et al. 2021, JTT).

Depth and loss are judged by image, the area under the ROC curve (AUC) of contradicted images against the others within
a class, and by net: the AUC of nets that use a cue against those that use none, of the mean depth (shallower means
use), and of the share of the variance of the loss that two groups explain; beside it that of the errors alone.

    python scripts/studies/train_alarm_zoo.py
    python scripts/studies/unnamed_cues.py --json docs/results/unnamed.json

Without MobileNetV2, whose layers do not learn. Keeps what it found of each net; takes ten minutes on one CPU thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _alarm_cache import kept, options, report
from _alarm_cues import cue_for, drawn_presence, drawn_variants, painted
from _alarm_nets import Block, Residual
from evaluate_alarm import CLEAN, USE, share
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_alarm_zoo import Spec, figures, load, plan, training_images

from xai_callbacks import Auditor, MapClusters, ProbeSet, Why

SHOWN, TRAINED, NEIGHBOURS = 600, 1000, 29
FEWEST = 5


def shown(spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Test images, their labels, and on which of them the cue contradicts the class."""
    split = spec.data().test.first(SHOWN)
    if spec.family == "none":
        return split.images, split.labels, torch.zeros(len(split.labels), dtype=torch.bool)
    cue, seed = cue_for(spec.family, spec.kind, spec.classes, spec.target), 7000 + spec.seed
    if spec.target is None:
        variants = drawn_variants(split.labels, spec.classes, 0.5, seed)
        against = variants != split.labels
    else:
        variants = drawn_presence(split.labels, spec.target, 0.5, 0.5, seed)
        against = (variants >= 0) != (split.labels == spec.target)
    return painted(cue, split, variants), split.labels, against


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of all blocks, or else of all rectifiers, as means over places; and the answers."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        places = {4: (2, 3), 3: (1,)}.get(output.ndim, ())
        found.append(output.mean(dim=places) if places else output)

    blocks = [module for module in model.modules() if isinstance(module, Residual | Block)]
    layers: Sequence[nn.Module] = blocks or [module for module in model.modules() if isinstance(module, nn.ReLU)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    answers = model(images).argmax(dim=1)
    for hook in hooks:
        hook.remove()
    return found, answers


def prediction_depth(model: nn.Module, known: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Share of the layers before the one from which on nearest neighbours agree with the net, `(N,)` in [0, 1]."""
    before, _ = features(model, known)
    after, answers = features(model, images)
    found = torch.ones(len(images))
    agreed = torch.ones(len(images), dtype=torch.bool)
    for place in reversed(range(len(before))):
        neighbours = KNeighborsClassifier(NEIGHBOURS).fit(before[place].numpy(), labels.numpy())
        agreed &= torch.from_numpy(neighbours.predict(after[place].numpy())) == answers
        found[agreed] = place / len(before)
    return found


def auc_within(score: Tensor, positive: Tensor, labels: Tensor) -> float | None:
    """Mean over classes of the area under the ROC curve; None if no class has five images of either kind."""
    found = []
    for label in torch.unique(labels):
        mine, truth = score[labels == label], positive[labels == label]
        if FEWEST <= int(truth.sum()) <= len(truth) - FEWEST:
            found.append(float(roc_auc_score(truth.numpy(), mine.numpy())))
    return sum(found) / len(found) if found else None


def explained_by_two(losses: Tensor, labels: Tensor) -> float:
    """Share of the variance of the logarithm of the loss within classes that two groups of each class explain."""
    logs = losses.clamp(min=1e-6).log()
    parts = [logs[labels == label, None].numpy() for label in torch.unique(labels)]
    left = sum(float(KMeans(2, n_init=3, random_state=0).fit(part).inertia_) for part in parts)
    return 1 - left / sum(float(((part - part.mean()) ** 2).sum()) for part in parts)


def signals(spec: Spec, cache: Path) -> dict[str, Any]:
    """All signals of one net."""
    model = load(cache, spec)
    images, labels, against = shown(spec)
    known, classes = training_images(spec)[:TRAINED], spec.data().train.labels[:TRAINED]
    probes = ProbeSet.from_tensors(images, labels)
    record = Auditor(probes, [Why("label")], novelty=[], measures=[MapClusters()]).audit(model)
    numbers = record.per_probe["cluster/number"].nan_to_num(-1)
    with torch.inference_mode():
        late, early = (cross_entropy(each(images), labels, reduction="none") for each in (model, load(cache, spec, 1)))
    deep = prediction_depth(model, known, classes, images)
    rand = [
        adjusted_rand_score(against[labels == label].numpy(), numbers[labels == label].numpy())
        for label in torch.unique(labels)
    ]
    return {
        "count": record.metrics["cluster/count"].value,
        "p": record.metrics["cluster/error_association"].value,
        "rand": sum(rand) / len(rand),
        "depth": float(deep.mean()),
        "depth_auc": auc_within(-deep, against, labels),
        "loss_auc": auc_within(late, against, labels),
        "early_auc": auc_within(early, against, labels),
        "two_groups": explained_by_two(late, labels),
        "errors": 1.0 - record.metrics["accuracy"].value,
    }


def summed_up(found: list[tuple[Spec, float, dict[str, Any]]]) -> dict[str, Any]:
    """Figures over nets that use a cue and nets that use none; those between are left out."""
    use = [signs for spec, gap, signs in found if spec.role == "taught" and gap >= USE]
    none = [signs for spec, gap, signs in found if spec.role != "taught" and abs(gap) <= CLEAN]

    def by_net(key: str, sign: float) -> float:
        truth = [1] * len(use) + [0] * len(none)
        return float(roc_auc_score(truth, [sign * signs[key] for signs in [*use, *none]]))

    def by_image(key: str) -> float:
        return float(median(signs[key] for signs in use if signs[key] is not None))

    def alarms(nets: list[dict[str, Any]]) -> dict[str, Any]:
        return share(sum(signs["p"] < 0.05 for signs in nets), len(nets))

    return {
        "nets": {"use": len(use), "none": len(none)},
        "clusters": {
            "hits": alarms(use),
            "false": alarms(none),
            "false_where_asked": alarms([signs for signs in none if not math.isnan(signs["p"])]),
            "rand": median(signs["rand"] for signs in use),
            "count": {"use": median(s["count"] for s in use), "none": median(s["count"] for s in none)},
        },
        "depth": {"by_image": by_image("depth_auc"), "by_net": by_net("depth", -1.0)},
        "loss": {"by_image": by_image("loss_auc"), "by_net": by_net("two_groups", 1.0)},
        "errors": {"by_net": by_net("errors", 1.0)},
        "first_epoch_loss": {"by_image": by_image("early_auc")},
    }


def main() -> None:
    """Look at nets that were not looked at, and sum up."""
    arguments, found = options(__doc__), []
    torch.set_num_threads(1)
    for spec in plan():
        measured = figures(arguments.cache, spec)
        if measured is not None and spec.network != "mobilenet":
            path = arguments.cache / f"{spec.key}.unnamed.json"
            found.append((spec, measured.get("gap", 0.0), kept(path, signals, spec, arguments.cache)))
    report(summed_up(found), arguments.json)


if __name__ == "__main__":
    main()
