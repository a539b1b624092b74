"""Tasks: how the outputs of a model are read; nothing else takes an argmax or a softmax of outputs.

| task | truth of a probe | outputs of the model | read as |
|---|---|---|---|
| `SingleLabel` | one class | K logits, K probabilities, or one sigmoid logit | K logits of exclusive classes |
| `MultiLabel` | K labels, each 0, 1 or -1 (unknown) | K logits or K sigmoids | K logits of labels that do not |
| `Regression` | one value or V | V values | V values |
"""

from xai_callbacks.tasks.kinds import (
    UNKNOWN,
    Ending,
    MultiLabel,
    Regression,
    SingleLabel,
    Task,
    binary_logits,
    in_key,
    task_of,
)

__all__ = ["UNKNOWN", "Ending", "MultiLabel", "Regression", "SingleLabel", "Task", "binary_logits", "in_key", "task_of"]
