"""`Picture`: pixels with a tag, drawn once and shown by every sink."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xai_callbacks.render import encoded

__all__ = ["Picture"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One drawing of one audit.

    Attributes:
        tag: Such as `audit_panel/003_cat`; of equal tags the later step continues the earlier one.
        pixels: `(H, W, 3)` uint8.
        step: Step of the audit.
        caption: One line in words, for sinks that show one and as alternative text.
    """

    tag: str
    pixels: np.ndarray
    step: int
    caption: str = ""

    def encoded(self) -> bytes:
        """See `render.encoded`; encoded once."""
        return self._encoded

    @property
    def mime(self) -> str:
        """Media type of `encoded`: `image/jpeg` or `image/png`."""
        return "image/jpeg" if self._encoded.startswith(b"\xff\xd8") else "image/png"

    @property
    def suffix(self) -> str:
        """What names of files of `encoded` end with: `.jpg` or `.png`."""
        return ".jpg" if self.mime == "image/jpeg" else ".png"

    @cached_property
    def _encoded(self) -> bytes:
        return encoded(self.pixels)
