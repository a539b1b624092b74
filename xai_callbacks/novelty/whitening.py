"""Distance from familiar rows of numbers, in units of how they vary together."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import AuditError
from xai_callbacks.novelty.arguments import require_finite, require_fitted, require_images
from xai_callbacks.novelty.base import ModelScore

__all__ = ["WhitenedScore", "Whitener"]

# Share of the identity in a covariance, whatever the estimate: two features may be one number.
_MIN_SHRINKAGE = 1e-6
# Relative to a feature, what is this small is its rounding.
_ROUNDING = 1e-5


class Whitener:
    """Squared Mahalanobis distance from two or more familiar rows, `(N, P)` float64; about P for familiar ones.

    Columns are standardised, and their covariance is shrunk toward the identity, so that fewer rows than columns have
    an answer too; a column that is the same in all familiar rows counts in its own unit. Learning costs P^3 once.
    """

    def __init__(self, rows: Tensor) -> None:
        require_images(len(rows), 2, "to learn from")
        self.mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
        self.scale = torch.where(spread > _ROUNDING * self.mean.abs(), spread, 1.0)
        self._factor = torch.linalg.cholesky(_shrunk_covariance((rows - self.mean) / self.scale))

    def distance(self, rows: Tensor) -> Tensor:
        """Squared distance of rows `(N, P)`, as `(N,)` in [0, inf); NaN where a row has a NaN or an infinity."""
        mean, scale, factor = (each.to(rows.device) for each in (self.mean, self.scale, self._factor))
        broken = ~rows.isfinite().all(dim=1)
        standard = ((rows - mean) / scale).masked_fill(broken[:, None], 0)
        white: Tensor = torch.linalg.solve_triangular(factor, standard.T, upper=False)
        return white.square().sum(dim=0).masked_fill(broken, torch.nan)


class WhitenedScore(ModelScore):
    """Squared Mahalanobis distance of gradient features of an image from those of familiar images."""

    learns = True
    _familiar: Whitener | None = None
    _must_vary: bool  # whether a parameter whose features are the same for all familiar images is refused

    def check(self, subject: Subject, images: Tensor) -> None:
        """Measure two familiar images; raise `ConfigurationError` of a single one."""
        require_images(len(images), 2, "to learn from")
        self._features(subject, images)

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        """Learn from familiar images `(N, C, H, W)`; an earlier fit is replaced, and kept if this one fails.

        Raises:
            ConfigurationError: Fewer than two images, or the model does not suit the score.
            AuditError: An image gives NaN or infinite features, or those of a whole weight are the same for all images.
        """
        parts = [self._features(subject, chunk) for chunk in torch.split(images, chunk_size)]
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, rows in features.items():
            advice = "Look at that image, and at the loss of the training."
            require_finite(f"gradients of `{name}` for familiar images", rows, advice)
            if self._must_vary and len(rows) > 1 and bool((rows == rows[0]).all()):
                raise AuditError(
                    f"Expected gradients of `{name}` that differ between familiar images, but those of all "
                    f"{len(rows)} are the same. The layer is dead, or the images are one; leave it out with "
                    "`parameters=`."
                )
        self._familiar = Whitener(torch.cat(list(features.values()), dim=1))

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where an image, or its loss, is not finite.

        Raises:
            ConfigurationError: `fit` has not been called, or for another model.
        """
        rows = torch.cat(list(self._features(subject, images).values()), dim=1)
        require_fitted(self, None if self._familiar is None else len(self._familiar.mean), rows.shape[1])
        assert self._familiar is not None  # noqa: S101  # narrows the type
        return self._familiar.distance(rows)

    @abstractmethod
    def _features(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Features `(N, P_name)` float64 by parameter; NaN where they cannot be measured."""


def _shrunk_covariance(centred: Tensor) -> Tensor:
    """Covariance `(P, P)` of rows `(N, P)` whose mean is 0, shrunk toward a multiple of the identity.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
    Analysis 2004; not by scikit-learn, which knows no device.
    """
    count, width = centred.shape
    covariance = centred.T @ centred / count
    target = covariance.diagonal().mean() * torch.eye(width, dtype=centred.dtype, device=centred.device)
    distance = (covariance - target).square().sum()
    # Mean over rows of ||x x^T - S||^2, over their number: how far S is from the truth.
    error = (centred.square().sum(dim=1).square().mean() - covariance.square().sum()) / count
    share = float((error / distance).clamp(0, 1)) if float(distance) > 0 else 1.0
    return torch.lerp(covariance, target, max(share, _MIN_SHRINKAGE))
