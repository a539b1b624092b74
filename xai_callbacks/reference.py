"""The autoencoder of the GradCon paper as a Lightning module, to reproduce figures and to start from."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xai_callbacks._lightning import LightningModule
from xai_callbacks.errors import ConfigurationError, require_choice, require_number
from xai_callbacks.novelty.autoencoder import ERRORS, ConvAutoencoder, ErrorKind, dead, reconstruction_error
from xai_callbacks.novelty.gradcon import GradientConstraint

__all__ = ["AutoencoderModule"]

_LOOKED_AT = 64  # validation images that are looked at for a dead output


class AutoencoderModule(LightningModule):
    """Trains `ConvAutoencoder` on images of one kind, with or without GradCon's constraint.

    Batches are images `(N, C, 28, 28)` in [0, 1], or tuples that begin with them; labels are not read. Adam, as in the
    paper. Losses are logged without the penalty: with it, a checkpoint would be chosen by alignment rather than by
    reconstruction. A warning tells once of an output that a validation finds dead, see `novelty.dead`.

    | key | when | what |
    |---|---|---|
    | `train_loss` | each step | mean `loss` over pixels and batch, without the penalty |
    | `train_alignment` | each step, with a constraint | mean cosine to the reference gradients, 0 in the first step |
    | `val_loss` | each validation | mean `loss` over pixels and images |

    Args:
        channels: Channels of the images.
        loss: `bce`, binary cross-entropy of the logits, which trains reliably; or `mse` of the sigmoid, as published.
        learning_rate: Of Adam.
        constraint: Strength of the gradient constraint on the decoder, published: .03 with `mse`; None for none.
    """

    def __init__(
        self, channels: int = 1, loss: ErrorKind = "bce", learning_rate: float = 1e-3, constraint: float | None = None
    ) -> None:
        super().__init__()
        require_choice("loss", loss, ERRORS)
        self.learning_rate = require_number("learning_rate", learning_rate, 0, ends="()")
        self.save_hyperparameters()
        self.loss: ErrorKind = loss
        self.autoencoder = ConvAutoencoder(channels)
        self.constraint = None if constraint is None else GradientConstraint(self.autoencoder.decoder, constraint)
        self._looked_at: list[tuple[Tensor, Tensor]] = []
        self._warned = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the pixels, `(N, C, 28, 28)`."""
        logits: Tensor = self.autoencoder(images)
        return logits

    def training_step(self, batch: Tensor | Sequence[Any], batch_idx: int) -> Tensor:
        """Reconstruction loss plus penalty."""
        images = _images(batch)
        loss = reconstruction_error(self(images), images, self.loss).mean()
        self.log("train_loss", loss.detach(), batch_size=len(images))
        if self.constraint is None:
            return loss
        penalty: Tensor = self.constraint(loss)
        self.log("train_alignment", self.constraint.alignment, batch_size=len(images))
        return loss + penalty

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the reference follow the gradient, before it is clipped."""
        if self.constraint is not None:
            self.constraint.update()

    def on_validation_epoch_start(self) -> None:
        """Forget the pictures of the validation before."""
        self._looked_at = []

    def validation_step(self, batch: Tensor | Sequence[Any], batch_idx: int) -> None:
        """Log the loss, keep a few pictures."""
        images = _images(batch)
        logits = self(images)
        loss = reconstruction_error(logits, images, self.loss).mean()
        self.log("val_loss", loss, batch_size=len(images), sync_dist=True)
        left = _LOOKED_AT - sum(len(kept) for kept, _ in self._looked_at)
        if left > 0:
            self._looked_at.append((logits[:left].sigmoid(), images[:left]))

    def on_validation_epoch_end(self) -> None:
        """Warn once of an output that has died."""
        kept, self._looked_at = self._looked_at, []
        if self._warned or sum(len(images) for _, images in kept) < 2:
            return
        reconstructions, images = (torch.cat(pictures) for pictures in zip(*kept, strict=True))
        if dead(reconstructions, images) and self.trainer.is_global_zero:
            self._warned = True
            warnings.warn(
                f"The autoencoder gives the same picture, black or white in every pixel, for all of {len(images)} "
                f"validation images (loss={self.loss!r}): no gradient is left to recover with. Train with loss='bce', "
                "lower the learning rate, or start from another seed.",
                UserWarning,
                stacklevel=2,
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with its standard betas."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def _images(batch: Tensor | Sequence[Any]) -> Tensor:
    """The images of a batch, checked for their range; the autoencoder checks the shape."""
    images = batch[0] if isinstance(batch, Sequence) else batch
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = f"{images.dtype} images" if isinstance(images, Tensor) else f"a {type(batch).__name__}"
        raise ConfigurationError(
            f"Expected a batch to be float images or a tuple that begins with them, but got {kind}. Use `ToTensor`."
        )
    lowest, highest = torch.stack([images.min(), images.max()]).tolist()
    if not (lowest >= 0 and highest <= 1):
        raise ConfigurationError(
            f"Expected images to be in [0, 1], but got {lowest:.4g} to {highest:.4g}. Leave out normalisation."
        )
    return images
