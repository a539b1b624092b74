"""Distance from familiar rows of numbers, in units of how they vary together."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = ["Whitener", "require_several", "shrunk_covariance"]

# Share of the identity in a covariance, whatever the estimate: two features may be one number.
_LEAST_SHRINKAGE = 1e-6

# What is this small beside a feature is its rounding.
_ROUNDING = 1e-5


class Whitener:
    """Squared Mahalanobis distance of rows from familiar ones.

    Columns are standardised, and their covariance is shrunk toward the identity, so that fewer rows than columns have
    an answer too; a column that is the same in all familiar rows counts in its own unit. Of familiar rows with P
    columns the distance is about P. Float64 throughout; learning costs P^3 once.

    Args:
        rows: Familiar rows, `(N, P)` float64, two or more, finite.

    Raises:
        ConfigurationError: Fewer than two rows.
    """

    def __init__(self, rows: Tensor) -> None:
        require_several(len(rows))
        self.mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
        self.scale = torch.where(spread > _ROUNDING * self.mean.abs(), spread, 1.0)
        self._factor = torch.linalg.cholesky(shrunk_covariance((rows - self.mean) / self.scale))

    @property
    def width(self) -> int:
        """Number of columns, P."""
        return len(self.mean)

    def distance(self, rows: Tensor) -> Tensor:
        """Squared distance of rows `(N, P)`, as `(N,)` in [0, inf); NaN where a row has a NaN or an infinity."""
        mean, scale, factor = (each.to(rows.device) for each in (self.mean, self.scale, self._factor))
        broken = ~rows.isfinite().all(dim=1)
        standard = ((rows - mean) / scale).masked_fill(broken[:, None], 0)
        white: Tensor = torch.linalg.solve_triangular(factor, standard.T, upper=False)
        return white.square().sum(dim=0).masked_fill(broken, torch.nan)


def require_several(count: int) -> None:
    """Raise unless there are as many familiar images as a spread takes.

    Raises:
        ConfigurationError: Fewer than two.
    """
    if count < 2:
        raise ConfigurationError(f"Expected two or more familiar images, but got {count}. Give some hundreds.")


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Covariance of rows `(N, P)` whose mean is 0, as `(P, P)`, shrunk toward a multiple of the identity.

    How much is estimated from the rows: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", Journal of Multivariate Analysis 2004.
    """
    count, width = centred.shape
    covariance = centred.T @ centred / count
    variance = covariance.diagonal().mean()
    target = variance * torch.eye(width, dtype=centred.dtype, device=centred.device)
    distance = (covariance - target).square().sum()
    # Mean over rows of ||x x^T - S||^2, over their number: how far S is from the truth.
    error = (centred.square().sum(dim=1).square().mean() - covariance.square().sum()) / count
    share = float((error / distance).clamp(0, 1)) if float(distance) > 0 else 1.0
    share = max(share, _LEAST_SHRINKAGE)
    return (1 - share) * covariance + share * target
