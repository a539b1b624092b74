"""`WhitenedScore`: distance from familiar images of what the gradient of an image is like."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.whitening import Whitener, require_several

__all__ = ["WhitenedScore"]


class WhitenedScore(ModelScore):
    """Squared Mahalanobis distance of rows of numbers, one an image, from those of familiar images."""

    learns = True

    _familiar: Whitener | None = None
    _columns: str
    """What there is one column of, for messages."""

    def check(self, subject: Subject, images: Tensor) -> None:
        """Measure two familiar images, at the cost of `score`.

        Raises:
            ConfigurationError: There is only one, or the model does not suit the score.
        """
        require_several(len(images))
        self._rows(subject, images)

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; call inside `access.undisturbed`.

        Raises:
            ConfigurationError: `fit` has not been called, or for another model.
        """
        name = type(self).__name__
        if self._familiar is None:
            raise ConfigurationError(
                f"Expected `{name}` to have learnt what is familiar, but `fit` has not been called. Call it with "
                "familiar images, such as some of the training set."
            )
        rows = self._rows(subject, images)
        if rows.shape[1] != self._familiar.width:
            raise ConfigurationError(
                f"Expected a model with {self._familiar.width} {self._columns} as when `{name}` was fitted, but got "
                f"{rows.shape[1]}. Fit it again for this model."
            )
        return self._familiar.distance(rows)

    @abstractmethod
    def _rows(self, subject: Subject, images: Tensor) -> Tensor:
        """What is compared, `(N, P)` float64; NaN where it cannot be measured."""
