"""The convolutional autoencoder of the GradCon paper, its errors per image, and how to see that it has died."""

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.errors import ConfigurationError, require_choice

ErrorKind = Literal["mse", "bce"]
ERRORS: tuple[str, ...] = get_args(ErrorKind)

# A collapsed output spreads by less than this share of the spread of its images, root mean square around the mean
# picture: a healthy one that waits at the mean picture for an epoch has traces of the image from .007 up.
_COLLAPSED = 1e-3
# Largest mean slope `p (1 - p)` of pinned pixels: within 1 % of black or white. An untrained output, all grey, has .25.
_PINNED = 0.01


class ConvAutoencoder(nn.Module):
    """Images `(N, C, 28, 28)` in [0, 1] to logits of the same shape; 230,721 parameters for C = 1, 232,771 for C = 3.

    Layers are those of the authors' public code. The output is a logit, not the published sigmoid of it: with a mean
    squared error after the sigmoid and Adam at 1e-3, most digits of MNIST, mostly black, drive every output far below
    zero within the first epoch, where the gradient of the sigmoid vanishes; that of the binary cross-entropy does not.

    Attributes:
        encoder: To the code `(N, 64, 3, 3)`.
        decoder: From the code to logits; its four weights are what GradCon constrains and scores.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        widths = pairwise((channels, 32, 32, 64, 64))
        down = [nn.Conv2d(given, made, 4, stride=2, padding=2) for given, made in widths]  # 28 -> 15 -> 8 -> 5 -> 3
        steps = ((64, 64, 2), (64, 32, 1), (32, 32, 2), (32, channels, 1))  # 3 -> 4 -> 8 -> 14 -> 28
        up = [nn.ConvTranspose2d(given, made, 4, stride=2, padding=cut) for given, made, cut in steps]
        self.encoder = nn.Sequential(*(each for layer in down for each in (layer, nn.ReLU())))
        self.decoder = nn.Sequential(*(each for layer in up for each in (layer, nn.ReLU())))[:-1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the pixels, `(N, C, 28, 28)`."""
        logits: Tensor = self.decoder(self.encoder(images))
        return logits

    def reconstruct(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1], `(N, C, 28, 28)`."""
        logits: Tensor = self(images)
        return logits.sigmoid()


def reconstruction_error(output_logits: Tensor, images: Tensor, kind: ErrorKind = "mse") -> Tensor:
    """Mean error over the pixels of each image, `(N,)`, differentiable, float32 or better.

    Args:
        output_logits: Shape `(N, ...)`, before the sigmoid.
        images: Same shape, in [0, 1].
        kind: `mse`, of the sigmoid, in [0, 1]; or `bce`, binary cross-entropy in nats, in [0, inf).
    """
    if output_logits.shape != images.shape or images.ndim < 2:
        raise ConfigurationError(
            f"Expected `output_logits` and `images` to have one shape (N, ...), but got {tuple(output_logits.shape)} "
            f"and {tuple(images.shape)}. Give both for the same images."
        )
    require_choice("kind", kind, ERRORS)
    dtype = torch.promote_types(torch.promote_types(output_logits.dtype, images.dtype), torch.float32)
    logits, images = output_logits.to(dtype), images.to(dtype)
    if kind == "mse":
        errors = (logits.sigmoid() - images).square()
    else:
        errors = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return errors.flatten(1).mean(dim=1)


def dead(reconstructions: Tensor, images: Tensor) -> bool:
    """Whether an output has collapsed for good: one picture for everything, its pixels pinned at black or white.

    There the gradient of a sigmoid vanishes, so that a squared error cannot recover. A net that has hardly trained is
    spared: its one picture is grey. Both are pixels in [0, 1], `(N, ...)`, of two or more images.
    """
    pixels, images = reconstructions.detach().double(), images.detach().double()
    spread, unit = (float((each - each.mean(dim=0)).square().mean().sqrt()) for each in (pixels, images))
    return unit > 0 and spread <= _COLLAPSED * unit and float((pixels * (1 - pixels)).mean()) <= _PINNED
