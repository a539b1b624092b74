"""Models of the papers as Lightning modules, ready to train: to reproduce figures, and to start from."""

from xai_callbacks.reference.autoencoder import AutoencoderModule

__all__ = ["AutoencoderModule"]
