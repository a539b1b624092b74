"""The convolutional autoencoder of the GradCon paper, its errors per image, and how to see that it has died.

Layers follow the authors' public code: four convolutions and four transposed ones for images of 28 x 28 pixels. A code
of 64 x 3 x 3 = 576 numbers is hardly a bottleneck for 784 pixels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["COLLAPSE_ADVICE", "ConvAutoencoder", "ErrorKind", "collapsed", "dead", "reconstruction_error"]

ErrorKind = Literal["mse", "bce"]

SIZE = 28

# Largest mean slope `p (1 - p)` of pinned pixels: within 1 % of black or white. An untrained output, all grey, has .25.
_PINNED = 0.01

COLLAPSE_ADVICE = (
    "A sigmoid output trained with a squared error can die: pixels pinned at black or white, no gradient left to "
    "recover with. Train on logits with loss='bce', lower the learning rate, or start from another seed."
)


class ConvAutoencoder(nn.Module):
    """Images `(N, C, 28, 28)` in [0, 1] to logits of the same shape; 230,721 parameters for C = 1, 232,771 for C = 3.

    The output is a logit, not the published sigmoid of it, because the sigmoid can only be trained well through the
    logit: with a mean squared error after the sigmoid and Adam at 1e-3, most digits of MNIST, mostly black, drive every
    output far below zero within the first epoch, where the gradient of the sigmoid vanishes. The binary cross-entropy
    of a logit has the gradient `sigmoid(z) - x`, which does not. `reconstruct` gives pixels.

    Attributes:
        encoder: To the code `(N, 64, 3, 3)`.
        decoder: From the code to logits; its four weights are what GradCon constrains and scores.
        channels: C.

    Args:
        channels: Channels of the images.

    Raises:
        ConfigurationError: `channels` is no integer of 1 or more.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        require_integer("channels", channels, minimum=1)
        self.channels = channels
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 4, stride=2, padding=2),  # 28 -> 15
            nn.ReLU(),
            nn.Conv2d(32, 32, 4, stride=2, padding=2),  # 15 -> 8
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=2),  # 8 -> 5
            nn.ReLU(),
            nn.Conv2d(64, 64, 4, stride=2, padding=2),  # 5 -> 3
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 64, 4, stride=2, padding=2),  # 3 -> 4
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),  # 4 -> 8
            nn.ReLU(),
            nn.ConvTranspose2d(32, 32, 4, stride=2, padding=2),  # 8 -> 14
            nn.ReLU(),
            nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),  # 14 -> 28
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the pixels, `(N, C, 28, 28)`.

        Raises:
            ConfigurationError: `images` has another shape; other sizes would come back as 28 x 28 or not at all.
        """
        if images.ndim != 4 or images.shape[1:] != (self.channels, SIZE, SIZE):
            raise ConfigurationError(
                f"Expected `images` to be (N, {self.channels}, {SIZE}, {SIZE}), but got {tuple(images.shape)}. Resize "
                "them with antialiasing, and set `channels` to theirs."
            )
        logits: Tensor = self.decoder(self.encoder(images))
        return logits

    def reconstruct(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1], `(N, C, 28, 28)`."""
        logits: Tensor = self(images)
        return logits.sigmoid()


def reconstruction_error(output_logits: Tensor, images: Tensor, kind: ErrorKind = "mse") -> Tensor:
    """Mean error over the pixels of each image; its mean over the batch is the training loss.

    As a score, prefer `mse`: the least possible `bce` of an image is the entropy of its grey pixels, so it ranks images
    also by how grey they are.

    Args:
        output_logits: Shape `(N, ...)`, before the sigmoid.
        images: Same shape, in [0, 1].
        kind: `mse`, of the sigmoid, in [0, 1]; or `bce`, binary cross-entropy in nats, in [0, inf).

    Returns:
        Shape `(N,)`, differentiable, float32 or better.

    Raises:
        ConfigurationError: Shapes differ, or `kind` is unknown.
    """
    if output_logits.shape != images.shape or images.ndim < 2:
        raise ConfigurationError(
            f"Expected `output_logits` and `images` to have one shape (N, ...), but got {tuple(output_logits.shape)} "
            f"and {tuple(images.shape)}. Give both for the same images."
        )
    if kind not in get_args(ErrorKind):
        raise ConfigurationError(f"Expected `kind` to be one of {get_args(ErrorKind)}, but got {kind!r}.")
    dtype = torch.promote_types(torch.promote_types(output_logits.dtype, images.dtype), torch.float32)
    logits, images = output_logits.to(dtype), images.to(dtype)
    if kind == "mse":
        errors = (logits.sigmoid() - images).square()
    else:
        errors = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return errors.flatten(1).mean(dim=1)


def collapsed(reconstructions: Tensor, images: Tensor | None = None, *, tolerance: float = 1e-3) -> bool:
    """Whether all reconstructions are nearly one picture, black or not, whatever the image was.

    Compares how far pictures lie from their mean picture, root mean square over pictures and pixels. A net that has
    seen no data yet is collapsed in this sense as well (about 1e-4): ask after some training. A healthy one often waits
    at the mean picture for an epoch first, with traces of the image from .007 up; a dead one has none at all.

    Args:
        reconstructions: Pixels in [0, 1], `(N, ...)`, N >= 2, of images that differ.
        images: What was reconstructed. The spread is then measured in units of theirs; images that are all the same
            never count as collapsed. Without them it is measured in units of the full range.
        tolerance: Largest spread of a collapsed output, in those units.

    Raises:
        ConfigurationError: Fewer than two reconstructions, or shapes differ.
    """
    if len(reconstructions) < 2:
        raise ConfigurationError(
            f"Expected `reconstructions` to hold two or more, but got {len(reconstructions)}. One picture cannot show "
            "whether it follows its image."
        )
    if images is not None and images.shape != reconstructions.shape:
        raise ConfigurationError(
            f"Expected `images` to have the shape of `reconstructions`, but got {tuple(images.shape)} and "
            f"{tuple(reconstructions.shape)}. Give both for the same images."
        )
    unit = 1.0 if images is None else _spread(images)
    return unit > 0 and _spread(reconstructions) <= tolerance * unit


def dead(reconstructions: Tensor, images: Tensor | None = None) -> bool:
    """Whether an output has collapsed for good: one picture for everything, its pixels pinned at black or white.

    There the gradient of a sigmoid vanishes, so that a squared error cannot recover. Unlike `collapsed` alone, this
    spares a net that has hardly trained: its one picture is grey. Arguments and errors are those of `collapsed`.
    """
    pixels = reconstructions.detach().double()
    return collapsed(reconstructions, images) and (pixels * (1 - pixels)).mean().item() <= _PINNED


def _spread(pictures: Tensor) -> float:
    pictures = pictures.detach().double()
    return (pictures - pictures.mean(dim=0)).square().mean().sqrt().item()
