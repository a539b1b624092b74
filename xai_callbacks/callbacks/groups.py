"""`Group`: how to read the group of each validation image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from xai_callbacks.callbacks.batches import BatchReader
from xai_callbacks.errors import ConfigurationError, require_bool, require_integer

__all__ = ["Group"]

# With more groups than this, the values of single groups would bury the rest.
_MOST_LISTED = 16


@dataclass(frozen=True)
class Group:
    """Where a validation batch says which cue each image has, and what is known of the groups (label, cue).

    The settings of a `GroupAccuracy`, see there, checked.
    """

    cue: BatchReader
    label: BatchReader | None = None
    num_cues: int | None = None
    aligned: Sequence[int] | None = None
    train_counts: Sequence[Sequence[int]] | None = None
    cue_names: Sequence[str] | None = None
    min_count: int = 20
    dataloader: int | None = None
    each: bool | None = None

    def __post_init__(self) -> None:
        for name in ("cue", "label"):
            where = getattr(self, name)
            reads = callable(where) or (isinstance(where, (str, int)) and not isinstance(where, bool))
            if not reads and not (where is None and name == "label"):
                raise ConfigurationError(
                    f"Expected `{name}` to be a key, an index or a function of the batch, but got {where!r}."
                )
        require_integer("min_count", self.min_count, minimum=1)
        for name, min_count in (("num_cues", 1), ("dataloader", 0)):
            if getattr(self, name) is not None:
                require_integer(
                    name, getattr(self, name), minimum=min_count, hint="Leave it out for none in particular."
                )
        if self.each is not None:
            require_bool("each", self.each)
        self._check_lists()
        self._check_training()
        self._check_sizes()

    @property
    def cues(self) -> int | None:
        """Number of values of the cue, if it is known beforehand."""
        known = self._told_cues()
        return next(iter(known.values()), None)

    @property
    def training(self) -> Tensor | None:
        """`train_counts` as int64 `(K, C)`."""
        return None if self.train_counts is None else torch.as_tensor(self.train_counts)

    @property
    def smallest(self) -> tuple[int, int]:
        """Fewest classes and cues that agree with all that is given."""
        told = self.aligned if self.aligned is not None else self.train_counts
        cues = self.cues or max([0, *(self.aligned or ())]) + 1
        return (2 if told is None else len(told)), cues

    def names(self, classes: int, cues: int, class_names: Sequence[str] | None) -> list[str] | None:
        """Names of the groups for keys, label by label, such as `duck_land`; None if numbers must do.

        Args:
            classes: Number of classes.
            cues: Number of cues.
            class_names: Names of the classes, if there are any.
        """
        labelled = class_names is not None and len(class_names) == classes
        labels = list(class_names or ()) if labelled else [str(index) for index in range(classes)]
        values = [str(index) for index in range(cues)] if self.cue_names is None else list(self.cue_names)
        names = [re.sub(r"[^\w.-]+", "_", f"{label}_{cue}") for label, cue in product(labels, values)]
        return names if len(set(names)) == len(names) == classes * cues else None

    def lists_each(self, groups: int) -> bool:
        """Whether so many groups are logged one by one."""
        return groups <= _MOST_LISTED if self.each is None else self.each

    def _told_cues(self) -> dict[str, int]:
        told = {
            "num_cues": self.num_cues,
            "cue_names": None if self.cue_names is None else len(self.cue_names),
            "train_counts": None if self.train_counts is None else len(self.train_counts[0]),
        }
        return {name: count for name, count in told.items() if count is not None}

    def _check_lists(self) -> None:
        for name, kind, wanted in (("cue_names", str, "texts"), ("aligned", int, "integers, a cue for each label")):
            given = getattr(self, name)
            listed = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
            right = listed and all(isinstance(value, kind) and not isinstance(value, bool) for value in given)
            if given is not None and not right:
                raise ConfigurationError(f"Expected `{name}` to be a list of {wanted}, but got {given!r}.")

    def _check_training(self) -> None:
        try:
            training = self.training
        except (TypeError, ValueError, RuntimeError, OverflowError):
            training = torch.empty(0)
        if training is not None and (training.ndim != 2 or training.dtype != torch.int64 or len(training) < 2):
            raise ConfigurationError(
                f"Expected `train_counts` to be integers (K, C), a row a label, but got {self.train_counts!r}."
            )

    def _check_sizes(self) -> None:
        told = self._told_cues()
        if len(set(told.values())) > 1:
            sizes = ", ".join(f"`{name}` {count}" for name, count in told.items())
            raise ConfigurationError(f"Expected one number of values of the cue, but got {sizes}. Make them agree.")
        if self.aligned is None:
            return
        limit = self.cues
        if any(cue < 0 or (limit is not None and cue >= limit) for cue in self.aligned):
            below = "0 or more" if limit is None else f"in [0, {limit})"
            raise ConfigurationError(
                f"Expected `aligned` to be one cue {below} for each label, but got {self.aligned}."
            )
        labels = len(self.aligned) if self.train_counts is None else len(self.train_counts)
        if len(self.aligned) < 2 or len(self.aligned) != labels:
            wanted = "two labels or more" if labels < 2 else f"{labels} labels, as in `train_counts`"
            raise ConfigurationError(f"Expected `aligned` to be for {wanted}, but got {self.aligned}.")
