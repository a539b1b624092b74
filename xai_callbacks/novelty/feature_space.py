"""Distance from familiar images in the features, the inputs of the linear head: float64, differentiable in them."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from xai_callbacks.errors import AuditError, ConfigurationError, require_integer
from xai_callbacks.novelty.arguments import require_finite, require_fitted, require_images, require_positive
from xai_callbacks.novelty.base import Inliers, LastLayerScore
from xai_callbacks.novelty.last_layer import as_classes, checked

__all__ = ["KNearest", "Mahalanobis", "ViM"]

# Distances to the bank that are held at once: 32 MB in float64.
_HELD = 2**22

# Features are float32 at most; relative to them, what is this small is their rounding.
_ROUNDING = 1e-6


class _Learner(LastLayerScore):
    """Checks that all learners share; `_learn` and `_measure` see finite float64 of the right shapes."""

    learns = True
    _learnt: tuple[Tensor, ...] = ()
    _width: int | None = None

    def fit(self, inliers: Inliers) -> None:
        """Learn what is familiar; an earlier fit is replaced, and kept if this one fails.

        Raises:
            ConfigurationError: The shapes do not belong together, or there are too few images.
            AuditError: Features or logits are NaN or infinite, or do not vary as they must.
        """
        sound = _sound(inliers)
        self.check(*sound.features.shape)
        self._learnt, self._width = self._learn(sound), inliers.features.shape[1]

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score features `(N, F)` and logits `(N, K)`.

        Raises:
            ConfigurationError: `fit` has not been called, or with features of another width.
        """
        features, logits = checked(features, logits)
        require_fitted(self, self._width, features.shape[1])
        broken = features.isnan().any(dim=1)
        # Zeros instead of NaN, so that no decomposition or sorting ever meets one.
        features, logits = (each.masked_fill(broken[:, None], 0) for each in (features, logits))
        measured = self._measure(features, logits, *(each.to(features.device) for each in self._learnt))
        return measured.masked_fill(broken, torch.nan)

    @abstractmethod
    def _learn(self, inliers: Inliers) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor: ...


class Mahalanobis(_Learner):
    """`min_c (h - mu_c)^T S^-1 (h - mu_c)`: squared distance to the nearest class, in units of the spread within one.

    Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks", NeurIPS
    2018, for the last layer and without their step on the image. S is the covariance around the class means, tied over
    classes (divided by N), plus `shrinkage * trace / F` on the diagonal, so that fewer images than features and dead
    features have an answer. Classes are `labels` where known, else what the model predicted. Range `[0, inf)`; about F
    for familiar images where N is much larger than F. Cost: F^3 for `fit`; F^2 + C F an image.

    Args:
        shrinkage: Share of the mean variance added to every variance, above 0.
    """

    name = "mahalanobis"

    def __init__(self, shrinkage: float = 1e-3) -> None:
        self.shrinkage = require_positive("shrinkage", shrinkage)

    def check(self, count: int, width: int) -> None:
        """Raise `ConfigurationError` of a single familiar image, which has no spread."""
        require_images(count, 2, "for `Mahalanobis`")

    def _learn(self, inliers: Inliers) -> tuple[Tensor, ...]:
        """The mean of all, the Cholesky factor of S, and the class means around that mean, whitened."""
        features, labels = inliers.features, inliers.labels
        labels = as_classes(inliers.logits).argmax(dim=1) if labels is None else labels.to(features.device)
        centre = features.mean(dim=0)
        features = features - centre
        classes, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        means = features.new_zeros(len(classes), features.shape[1]).index_add_(0, index, features) / counts[:, None]
        within = features - means[index]
        variance = within.square().mean()
        if variance <= _ROUNDING**2 * inliers.features.square().mean():
            raise AuditError(
                f"Expected features that differ within a class, but got {len(features)} images in {len(classes)} "
                "classes without any spread. Give at least two different images of a class; if they are, the features "
                "of the model have collapsed."
            )
        covariance = within.T @ within / len(features)
        covariance.diagonal().add_(self.shrinkage * variance)
        factor = torch.linalg.cholesky(covariance)
        return centre, factor, _whiten(factor, means)

    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor:
        centre, factor, means = learnt
        white = _whiten(factor, features - centre)
        with torch.no_grad():
            # By differences for every batch; the default takes less exact products for large ones.
            nearest = torch.cdist(white, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        return (white - means[nearest]).square().sum(dim=1)


class KNearest(_Learner):
    """Distance to the k-th nearest familiar image, of features scaled to length 1; in [0, 2].

    Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022. They use k = 50 for a bank of
    50,000; about 10 suits up to 2,000. An image of the bank is its own first neighbour. Features of zeros stay zeros,
    at a distance of 1 from all others. Cost: M F an image for a bank of M, which is kept in float64; 32 MB beside it.

    Args:
        k: Which neighbour, 1 or more; the bank must hold more images.
    """

    name = "k_nearest"

    def __init__(self, k: int = 10) -> None:
        require_integer("k", k, minimum=1)
        self.k = k

    def check(self, count: int, width: int) -> None:
        """Raise `ConfigurationError` of no more than `k` familiar images."""
        require_images(count, self.k + 1, f"for `KNearest` with k = {self.k}", "Give more, or lower `k`.")

    def _learn(self, inliers: Inliers) -> tuple[Tensor, ...]:
        return (_unit(inliers.features),)

    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor:
        (bank,) = learnt
        unit = _unit(features)
        with torch.no_grad():
            chunks = torch.split(unit, max(1, _HELD // len(bank)))
            index = torch.cat([torch.cdist(rows, bank).topk(self.k, largest=False).indices[:, -1] for rows in chunks])
        # Found by products, measured by a difference: products cannot resolve distances below 1e-8.
        distance: Tensor = torch.linalg.vector_norm(unit - bank[index], dim=1)
        return distance


class ViM(_Learner):
    """`alpha ||R^T (h - u)|| - logsumexp(z)`: a virtual logit for what familiar features do not contain, less energy.

    Wang et al., "ViM: out-of-distribution with virtual-logit matching", CVPR 2022. `u = -W^+ b` is where all logits
    are 0; R spans the directions beyond the D in which familiar features lie, around u, the most; alpha makes the mean
    virtual logit equal to the mean largest logit of familiar images. Unbounded, in units of the logits. Cost: F^3 for
    `fit`; F (F - D) an image.

    Args:
        dimensions: D, at least 1 and below F; None for the authors' choice: 1000 from F = 2048 on, 512 from 768 on,
            else F / 2.
    """

    name = "vim"
    tasks = ("single-label",)

    def __init__(self, dimensions: int | None = None) -> None:
        if dimensions is not None:
            require_integer("dimensions", dimensions, minimum=1, hint="Leave it out for the authors' choice.")
        self.dimensions = dimensions

    def check(self, count: int, width: int) -> None:
        """Raise `ConfigurationError` of no more features, or no more familiar images, than dimensions."""
        principal = self._principal(width)
        if not 1 <= principal < width:
            raise ConfigurationError(
                f"Expected `dimensions` to be at least 1 and below the {width} features, but got {principal}. `ViM` "
                "measures what lies beyond them."
            )
        why = f"for {principal} principal dimensions of `ViM`"
        require_images(count, principal + 1, why, "Give more, or lower `dimensions`.")

    def _principal(self, width: int) -> int:
        return self.dimensions or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)

    def _learn(self, inliers: Inliers) -> tuple[Tensor, ...]:
        """The origin u `(F,)`, the basis R `(F, F - D)`, and alpha."""
        count, width = inliers.features.shape
        principal = self._principal(width)
        origin = -(torch.linalg.pinv(inliers.weight) @ inliers.bias)
        centred = inliers.features - origin
        _, vectors = torch.linalg.eigh(centred.T @ centred / count)
        basis = vectors[:, : width - principal].contiguous()  # eigenvalues ascend
        residual = torch.linalg.vector_norm(centred @ basis, dim=1).mean()
        if residual <= _ROUNDING * torch.linalg.vector_norm(centred, dim=1).mean():
            raise AuditError(
                f"Expected features that reach beyond {principal} of {width} dimensions, but those of {count} familiar "
                "images do not. Lower `dimensions`; many dead features are a sign of their own."
            )
        largest = as_classes(inliers.logits).amax(dim=1).mean()
        if largest <= 0:
            raise AuditError(
                "Expected the largest logit to be positive on average over familiar images, but got "
                f"{float(largest):.3g}: `ViM` would take what is familiar for novel. Choose another score for this "
                "model; logarithms of probabilities are no logits to it."
            )
        return origin, basis, largest / residual

    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor:
        origin, basis, alpha = learnt
        residual: Tensor = torch.linalg.vector_norm((features - origin) @ basis, dim=1)
        return alpha * residual - as_classes(logits).logsumexp(dim=1)


def _sound(inliers: Inliers) -> Inliers:
    """Inliers in float64 and detached, on the device of the features; or an error that says what is wrong."""
    features, logits, labels, weight, bias = inliers
    shapes = [tuple(each.shape) for each in (features, logits, weight, bias)]
    count, width, classes = len(features), features.shape[-1], logits.shape[-1]
    if shapes != [(count, width), (count, classes), (classes, width), (classes,)] or 0 in (count, width, classes):
        raise ConfigurationError(
            "Expected `inliers` to hold features (N, F), logits (N, K), weight (K, F) and bias (K,), but got "
            f"{', '.join(map(str, shapes))}. Take all four from one linear head."
        )
    if labels is not None and (labels.shape != (count,) or labels.is_floating_point() or int(labels.min()) < 0):
        raise ConfigurationError(
            f"Expected the labels of `inliers` to be {count} classes of 0 or more, but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Leave them out where unknown."
        )
    sound = [each.detach().to(features.device).double() for each in (features, logits, weight, bias)]
    for name, values in zip(("features", "logits", "weight", "bias"), sound, strict=True):
        advice = "The training has probably diverged, or an image is broken; look at the loss and at that image."
        require_finite(f"the {name} of `inliers`", values, advice)
    return Inliers(sound[0], sound[1], labels, sound[2], sound[3])


def _whiten(factor: Tensor, rows: Tensor) -> Tensor:
    """Rows `(N, F)` in coordinates where the covariance `factor factor^T` is the identity."""
    white: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False).T
    return white


def _unit(rows: Tensor) -> Tensor:
    """Rows scaled to length 1; zeros stay zeros."""
    # By the largest entry first, so that no square over- or underflows.
    largest = rows.abs().amax(dim=1, keepdim=True)
    return torch.nn.functional.normalize(rows / torch.where(largest > 0, largest, 1.0), dim=1)
