"""Distance from familiar images in the features, the inputs of the linear head: float64, differentiable in them."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.errors import AuditError, ConfigurationError, require_integer
from xai_callbacks.novelty.base import Inliers, LastLayerScore, require_finite, require_fitted, require_images
from xai_callbacks.novelty.last_layer import as_classes, checked

_ROUNDING = 1e-6  # features are float32 at most; relative to them, what is this small is their rounding
_SHRINKAGE = 1e-3  # share of the mean variance that `Mahalanobis` adds to every variance
_TINY = 1e-150  # shorter features than any of float32


class _Learner(LastLayerScore):
    """What all learners share; `_learn` and `_measure` see finite float64."""

    learns = True
    _learnt: tuple[Tensor, ...] = ()
    _width: int | None = None

    def fit(self, inliers: Inliers) -> None:
        """Learn what is familiar; an earlier fit is replaced, and kept if this one fails.

        Raises a `ConfigurationError` of too few images, an `AuditError` of values that are not finite or do not vary.
        """
        names = ("features", "logits", "weight", "bias")
        sound = {name: getattr(inliers, name).detach().to(inliers.features.device).double() for name in names}
        for name, values in sound.items():
            require_finite(f"the {name} of `inliers`", values)
        width = inliers.features.shape[1]
        self.check(len(inliers.features), width)
        self._learnt, self._width = self._learn(inliers._replace(**sound)), width

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score features `(N, F)` and logits `(N, K)`; a `ConfigurationError` unless `fit` has seen such features."""
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
    classes, plus a thousandth of the mean variance on the diagonal, so that dead features have an answer. Classes are
    `labels` where known, else what the model predicted. Range `[0, inf)`; about F for familiar images where N is much
    larger than F. Cost: F^3 for `fit`; F^2 + C F an image.
    """

    name = "mahalanobis"

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
                "classes without any spread. Give different images; if they are, the features have collapsed."
            )
        covariance = within.T @ within / len(features)
        covariance.diagonal().add_(_SHRINKAGE * variance)
        factor = torch.linalg.cholesky(covariance)
        return centre, factor, torch.linalg.solve_triangular(factor, means.T, upper=False)

    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor:
        centre, factor, means = learnt
        white: Tensor = torch.linalg.solve_triangular(factor, (features - centre).T, upper=False)
        # By differences for every batch; the default takes less exact products for large ones.
        distances = torch.cdist(white.T, means.T, compute_mode="donot_use_mm_for_euclid_dist")
        return (white - means[:, distances.argmin(dim=1)]).square().sum(dim=0)


class KNearest(_Learner):
    """Distance to the k-th nearest familiar image, of features scaled to length 1; in [0, 2].

    Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022. They use k = 50 for a bank of
    50,000; about 10 suits up to 2,000. An image of the bank is its own first neighbour. Features of zeros stay zeros,
    at a distance of 1 from all others. Cost: M F an image for a bank of M, which is kept in float64.

    Args:
        k: Which neighbour, 1 or more; the bank must hold more images.
    """

    name = "k_nearest"

    def __init__(self, k: int = 10) -> None:
        require_integer("k", k, minimum=1)
        self.k = k

    def check(self, count: int, width: int) -> None:
        """Raise `ConfigurationError` of no more than `k` familiar images."""
        require_images(count, self.k + 1, f"for `KNearest` with k = {self.k}")

    def _learn(self, inliers: Inliers) -> tuple[Tensor, ...]:
        return (F.normalize(inliers.features, dim=1, eps=_TINY),)

    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor:
        unit = F.normalize(features, dim=1, eps=_TINY)
        # By differences: products cannot resolve distances below 1e-8.
        distances = torch.cdist(unit, learnt[0], compute_mode="donot_use_mm_for_euclid_dist")
        return distances.kthvalue(self.k, dim=1).values


class ViM(_Learner):
    """`alpha ||R^T (h - u)|| - logsumexp(z)`: a virtual logit for what familiar features do not contain, less energy.

    Wang et al., "ViM: out-of-distribution with virtual-logit matching", CVPR 2022. `u = -W^+ b` is where all logits
    are 0; R spans the directions beyond the D in which familiar features lie, around u, the most; alpha makes the mean
    virtual logit that of the largest one of familiar images. Unbounded, in logits. Cost: F^3 for `fit`; F (F - D) each.

    Args:
        dimensions: D, 1 to F - 1; None for the authors' choice: 1000 from F = 2048 on, 512 from 768 on, else F / 2.
    """

    name = "vim"
    tasks = ("single-label",)

    def __init__(self, dimensions: int | None = None) -> None:
        if dimensions is not None:
            require_integer("dimensions", dimensions, minimum=1)
        self.dimensions = dimensions

    def check(self, count: int, width: int) -> None:
        """Raise `ConfigurationError` of no more features, or no more familiar images, than dimensions."""
        principal = self._principal(width)
        if not 1 <= principal < width:
            raise ConfigurationError(
                f"Expected `dimensions` to be at least 1 and below the {width} features, but got {principal}."
            )
        require_images(count, principal + 1, f"for {principal} principal dimensions of `ViM`")

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
                "images do not. Lower `dimensions`."
            )
        largest = as_classes(inliers.logits).amax(dim=1).mean()
        if largest <= 0:
            raise AuditError(
                "Expected the largest logit to be positive on average over familiar images, but got "
                f"{float(largest):.3g}: `ViM` would take what is familiar for novel. Choose another score."
            )
        return origin, basis, largest / residual

    def _measure(self, features: Tensor, logits: Tensor, *learnt: Tensor) -> Tensor:
        origin, basis, alpha = learnt
        residual: Tensor = torch.linalg.vector_norm((features - origin) @ basis, dim=1)
        return alpha * residual - as_classes(logits).logsumexp(dim=1)
