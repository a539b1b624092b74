"""How alike are what two models make of the same images? Linear centred kernel alignment (CKA), from Gram matrices.

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019. A Gram matrix holds the inner
products of the features of n images, `(n, n)`, whatever their number of features, so that models of any two
architectures can be compared, and none needs to be kept.
"""

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError


def centred_gram(features: Tensor) -> Tensor:
    """Inner products of features `(n, D)` less their mean, `(n, n)` float32, scaled to a Frobenius norm of 1.

    0 where all images have the same features. The scale of features does not matter to `linear_cka`.
    """
    centred = features.double() - features.double().mean(dim=0)
    gram = centred @ centred.T
    norm = torch.linalg.matrix_norm(gram)
    return (gram / norm if norm > 0 else gram).float()


def linear_cka(gram: Tensor, other: Tensor) -> float:
    """Linear CKA of two representations of the same n images, in [0, 1]: 1 the same but for rotation and scale.

    `<K, L> / (|K| |L|)` of Gram matrices `(n, n)` as `centred_gram` gives them. With few images and many features it is
    high by chance: compare with that of models that were trained apart. Exactly 1 for equal matrices, NaN where a side
    has the same features for all images, or holds NaN.
    """
    if gram.shape != other.shape:
        shapes = f"{tuple(gram.shape)} and {tuple(other.shape)}"
        raise ConfigurationError(f"Expected Gram matrices of the same images, but got {shapes}.")
    first, second = gram.double(), other.double()
    product = torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second)
    if torch.equal(first, second) and product > 0:
        return 1.0
    return float(((first * second).sum() / product).clamp(0, 1))  # 0 / 0 for a side without differences
