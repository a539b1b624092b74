"""How the outputs of a model are read: the only place that knows.

| task | truth of a probe | outputs of the model | read as |
|---|---|---|---|
| `SingleLabel` | one class | K logits, K probabilities, or one sigmoid logit | K logits of exclusive classes |
| `MultiLabel` | K labels, each 0, 1 or -1 (unknown) | K logits or K sigmoids | K logits of labels that do not |
| `Regression` | one value or V | V values | V values |

A task is plain data. Everything else asks it for predictions, probabilities, confidences and what is right; nothing
else takes an argmax or a softmax of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xai_callbacks.tasks.base import Ending, Task, in_key
from xai_callbacks.tasks.classes import UNKNOWN, MultiLabel, SingleLabel, binary_logits
from xai_callbacks.tasks.values import Regression

__all__ = [
    "UNKNOWN",
    "Ending",
    "MultiLabel",
    "Regression",
    "SingleLabel",
    "Task",
    "binary_logits",
    "in_key",
    "task_of",
]


def task_of(
    labels: Tensor | None, targets: Tensor | None, names: Sequence[str] | None = None
) -> SingleLabel | MultiLabel | Regression:
    """The task of probes.

    Args:
        labels: Classes `(N,)`, or labels `(N, K)` of 0, 1 and -1.
        targets: Values `(N,)` or `(N, V)`.
        names: Of classes, labels or values.
    """
    known = None if names is None else tuple(names)
    if targets is not None:
        return Regression(known, 1 if targets.ndim == 1 else targets.shape[1])
    if labels is not None and labels.ndim == 2:
        return MultiLabel(known, labels.shape[1])
    width = None if known is None else len(known)
    return SingleLabel(known, width, labels=0 if labels is None else int(labels.max()) + 1)
