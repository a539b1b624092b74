"""Demonstration: a small net on real digits with a decoy cue, audited while it trains. `xai-audit demo` runs it."""

from xai_callbacks.demo.digits import DecoyDataModule, SmallCNN
from xai_callbacks.demo.run import Demonstration, demonstrate, save_pictures

__all__ = ["DecoyDataModule", "Demonstration", "SmallCNN", "demonstrate", "save_pictures"]
