"""`GroupMetrics`: the judgements of groups as one `torchmetrics.Metric`, for a user's own validation loop."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics import groups
from xai_callbacks.record import Estimate, Key

_BINS = 15  # bins of equal width over the confidence [0, 1]; the last one holds 1 itself
_WITH_ENDS = ("group/wga", "group/conflict_gap")  # judgements whose interval has keys of its own


def _key(name: str, words: str, low: float = 0, high: float | None = 1, chance: str = "", unit: str = "") -> Key:
    return Key(f"group/{name}", words, low, high, chance, unit, "images")


_OF_ALL = (
    _key("accuracy_all", "accuracy over all images", unit="share"),
    _key("accuracy_balanced", "mean accuracy of the groups"),
    _key("wga", "accuracy of the worst group"),
    _key("wga_label", "label of the worst group", high=None),
    _key("wga_cue", "cue of the worst group", high=None),
    _key("n_min", "images in the smallest group that has any", high=None, unit="images"),
    _key("excluded", "groups too small to be the worst", high=None, unit="groups"),
    _key("cond_mi", "share of the cue that can be read off the answers, given the label", chance="0"),
    _key("ece_gap", "difference of the calibration errors of the groups"),
    _key("not_finite", "images left out for a logit that is NaN or infinite", high=None, unit="images"),
    _key("unknown_cue", "images left out for an unknown cue", high=None, unit="images"),
)
_ALIGNED = (
    _key("conflict_gap", "accuracy lost where the cue points to another class", -1.0, chance="0"),
    _key("accuracy_aligned", "accuracy with the label's own cue"),
    _key("accuracy_conflicting", "accuracy with any other cue"),
    _key("loss_aligned", "cross-entropy with the label's own cue", high=None, unit="nats"),
    _key("loss_conflicting", "cross-entropy with any other cue", high=None, unit="nats"),
)
_TRAINED = (
    _key("accuracy_reweighted", "mean accuracy of the groups in the proportions of training"),
    _key("bias_amplification", "how much more often than is true answers follow the cue of training", -1.0, chance="0"),
)
_OF_EACH = (
    _key("accuracy/*", "accuracy of one group", unit="share"),
    _key("count/*", "images of one group", high=None, unit="images"),
    _key("ece/*", "calibration error of one group"),
)


class GroupMetrics(Metric):
    """How right a classifier is by group (label, cue), from one state of fixed size; images are not kept.

    The state is `K * C * (K + 46)` floats, summed over processes. Images with a logit that is NaN or infinite count in
    `group/not_finite` alone, others with cue -1 in `group/unknown_cue`: log both, since the rest then speaks for fewer.
    A judgement that the images do not allow is NaN, never 0.

    `compute` gives the keys of `keys()`, with `<label>_<cue>` for the name of a group, and `group/wga_low`,
    `group/wga_high`, `group/conflict_gap_low` and `group/conflict_gap_high`, the ends of their intervals.

    Args:
        num_classes: K, 2 or more.
        num_cues: C, the number of values of the cue.
        aligned: For each label, the cue that goes with it in training; None leaves out what needs it. The most frequent
            one is no safe guess: a cue on a third of the images of one class, and nowhere else, is a shortcut, too.
        train_counts: Training images by label and cue, integers `(K, C)`; None leaves out what needs them.
        min_count: Fewest images of a group that may be the worst.
        per_group: Give the values of single groups; they are `3 * K * C` keys.

    Example:
        >>> import torch
        >>> from xai_callbacks.metrics import GroupMetrics
        >>> metric = GroupMetrics(num_classes=2, num_cues=2, aligned=[0, 1])
        >>> metric.update(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
        >>> metric.compute()["group/conflict_gap"]
        1.0
    """

    higher_is_better = None
    is_differentiable = False
    full_state_update = False
    sums: Tensor  # (K, C, K + 3 * 15 + 1): images by prediction; by bin images, confidence and right ones; loss
    left_out: Tensor  # (2,): images with a logit that is not finite, and with an unknown cue

    def __init__(
        self,
        num_classes: int,
        num_cues: int,
        aligned: Sequence[int] | None = None,
        train_counts: Tensor | Sequence[Sequence[int]] | None = None,
        *,
        min_count: int = 20,
        per_group: bool = True,
    ) -> None:
        super().__init__()
        require_integer("num_classes", num_classes, minimum=2)
        require_integer("num_cues", num_cues, minimum=1)
        require_integer("min_count", min_count, minimum=1)
        given: object = aligned
        whole = isinstance(given, Sequence) and all(isinstance(cue, int) and 0 <= cue < num_cues for cue in given)
        if aligned is not None and not (whole and len(aligned) == num_classes):
            raise ConfigurationError(
                f"Expected `aligned` to be one cue in [0, {num_cues}) for each of {num_classes} labels, but got "
                f"{aligned!r}."
            )
        train = None if train_counts is None else integer_table("train_counts", train_counts)
        if train is not None and train.shape != (num_classes, num_cues):
            raise ConfigurationError(
                f"Expected `train_counts` to be integers (K, C) {num_classes, num_cues}, but got {tuple(train.shape)}."
            )
        self.num_classes, self.num_cues, self.min_count, self.per_group = num_classes, num_cues, min_count, per_group
        self.aligned, self.train_counts = aligned, train
        width = num_classes + 3 * _BINS + 1
        self.add_state("sums", torch.zeros(num_classes, num_cues, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("left_out", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def keys(self) -> Sequence[Key]:
        """Declarations of all that `estimates` gives."""
        known = _ALIGNED * (self.aligned is not None) + _TRAINED * (self.train_counts is not None)
        return _OF_ALL + known + _OF_EACH * self.per_group

    def update(self, logits: Tensor, labels: Tensor, cues: Tensor) -> None:
        """Add images; raises a `ConfigurationError`, and adds nothing, where shapes, types or ranges are others.

        Args:
            logits: `(N, K)`.
            labels: Integers `(N,)` in [0, K).
            cues: Integers `(N,)` in [0, C); -1 = unknown.
        """
        self._check(logits, labels, cues)
        finite, known = logits.isfinite().all(dim=1), cues >= 0
        kept = finite & known
        self.left_out += torch.stack([(~finite).sum(), (finite & ~known).sum()]).to(self.left_out)
        # There is no float64 on Apple's devices.
        precise = torch.float32 if logits.device.type == "mps" else torch.float64
        log_probabilities = logits[kept].detach().to(precise).log_softmax(dim=1)
        labels, cues = labels[kept].long(), cues[kept].long()
        best, predictions = log_probabilities.max(dim=1)
        losses = -log_probabilities.gather(1, labels[:, None])[:, 0]
        confidences, once = best.exp(), torch.ones_like(best)
        first = self.num_classes + 3 * (confidences * _BINS).long().clamp(max=_BINS - 1)
        width = self.sums.shape[2]
        columns = torch.stack([predictions, first, first + 1, first + 2, torch.full_like(first, width - 1)])
        places = (labels * self.num_cues + cues) * width + columns
        values = torch.stack([once, once, confidences, (predictions == labels).to(precise), losses])
        # Unlike a weighted bincount, this has a deterministic form on every device.
        self.sums.view(-1).index_add_(0, places.flatten().to(self.sums.device), values.flatten().to(self.sums))

    def compute(self) -> dict[str, float]:
        """The judgements by key."""
        values = {}
        for key, estimate in self.estimates().items():
            values[key] = estimate.value
            if key in _WITH_ENDS:
                low, high = (math.nan if end is None else end for end in estimate[1:3])
                values |= {f"{key}_low": low, f"{key}_high": high}
        return values

    def estimates(self, names: Sequence[str] | None = None) -> dict[str, Estimate]:
        """The judgements with intervals, of the images of this process; `valid` counts images.

        `names` are those of the groups for keys, label by label; None for `<label>_<cue>`.
        """
        sums, (not_finite, unknown) = self.sums.cpu(), self.left_out.tolist()
        counts = sums[..., : self.num_classes].long()
        sizes, accuracies = counts.sum(dim=2), groups.group_accuracy(counts)
        correct, images = counts.diagonal(dim1=0, dim2=2).T, int(sizes.sum())
        worst, label, cue = groups.worst_group_accuracy(counts, self.min_count)
        errors = groups.group_ece(sums[..., self.num_classes : -1].reshape(-1, _BINS, 3))
        measured = errors[~errors.isnan()]
        found: dict[str, float | Estimate] = {
            "accuracy_all": int(correct.sum()) / images if images else math.nan,
            "accuracy_balanced": float(accuracies.nanmean()),
            "wga": worst,
            "wga_label": label,
            "wga_cue": cue,
            "n_min": float(sizes[sizes > 0].min()) if sizes.any() else math.nan,
            "excluded": int((sizes < self.min_count).sum()),
            "cond_mi": groups.conditional_mutual_information(counts),
            "ece_gap": float(measured.max() - measured.min()) if len(measured) > 1 else math.nan,
            "not_finite": not_finite,
            "unknown_cue": unknown,
        }
        if self.aligned is not None:
            losses = groups.on_sides(sums[..., -1], self.aligned) / groups.on_sides(sizes, self.aligned)
            sides = (*groups.conflict_gap(counts, self.aligned), *losses.tolist())
            found |= {key.key.removeprefix("group/"): value for key, value in zip(_ALIGNED, sides, strict=True)}
        if self.train_counts is not None:
            found["accuracy_reweighted"] = groups.reweighted_accuracy(counts, self.train_counts)
            found["bias_amplification"] = groups.bias_amplification(counts, self.train_counts)
        if self.per_group:
            names = names or [f"{label}_{cue}" for label in range(self.num_classes) for cue in range(self.num_cues)]
            found |= _of_each(names, correct.flatten(), sizes.flatten(), errors)
        return {f"group/{key}": _estimate(value, images) for key, value in found.items()}

    def _check(self, logits: Tensor, labels: Tensor, cues: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or not logits.is_floating_point():
            raise ConfigurationError(
                f"Expected `logits` to be floats (N, {self.num_classes}), but got {logits.dtype} "
                f"{tuple(logits.shape)}. Give `num_classes` the number of logits of the model."
            )
        for name, values, low, high in (("labels", labels, 0, self.num_classes), ("cues", cues, -1, self.num_cues)):
            if values.shape != logits.shape[:1] or values.is_floating_point() or values.dtype == torch.bool:
                got = f"{values.dtype} {tuple(values.shape)}"
                raise ConfigurationError(f"Expected `{name}` to be integers ({len(logits)},), but got {got}.")
            if bool(((values < low) | (values >= high)).any()):
                raise ConfigurationError(
                    f"Expected `{name}` to be in [{low}, {high}), but got {int(values.min())} to {int(values.max())}. "
                    f"Number them from 0, and give `num_{'classes' if name == 'labels' else name}` how many there are."
                )


def integer_table(name: str, values: object) -> Tensor:
    """An argument as int64 `(K, C)` on the CPU; raises a `ConfigurationError` where it is no such table."""
    try:
        table = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        table = torch.empty(0)
    if table.ndim != 2 or table.is_floating_point():
        raise ConfigurationError(f"Expected `{name}` to be integers (K, C), a row a label, but got {values!r}.")
    return table.long()


def _of_each(names: Sequence[str], correct: Tensor, sizes: Tensor, errors: Tensor) -> Mapping[str, Estimate]:
    ends = torch.stack(groups.wilson_interval(correct, sizes), dim=1).tolist()
    found = {}
    rows = zip(names, (correct.double() / sizes).tolist(), sizes.tolist(), ends, errors.tolist(), strict=True)
    for name, accuracy, size, (low, high), error in rows:
        found[f"accuracy/{name}"] = Estimate(accuracy, low, high, valid=size) if size else _estimate(math.nan, 0)
        found[f"count/{name}"], found[f"ece/{name}"] = _estimate(size, size), _estimate(error, size)
    return found


def _estimate(value: float | Estimate, images: int) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(float(value), valid=images)
