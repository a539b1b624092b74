"""`WatermarkCue`: a text near the lower edge of the image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, texts_of
from xai_callbacks.interventions.cues.checks import require_share
from xai_callbacks.interventions.cues.painted import PaintedCue
from xai_callbacks.interventions.shown import Shown

__all__ = ["WatermarkCue"]

# Size at which texts are measured.
_POINTS = 64

# Height of the letters as a share of that of the image; taller ones would cover it.
_TALLEST = 1 / 3


class WatermarkCue(PaintedCue):
    """A text near the lower edge, white with a dark rim, as agencies stamp it.

    A letter takes some five pixels to be read: for images of 32 pixels, five letters or less.

    Args:
        texts: Text of each variant, or a single one.
        points_to: See `Cue`.
        opacity: How much the text covers, in (0, 1].
        width: Width of the text as a share of that of the image, in (0, 1]; less for a short one, whose letters would
            else be taller than a third of the image.
        name: See `Cue`.

    Raises:
        ConfigurationError: An argument is out of range, texts and variants differ in number, two texts are alike, or
            the font that Pillow brings along lacks a letter.
    """

    def __init__(
        self,
        texts: str | Sequence[str],
        points_to: int | str | Sequence[int | str],
        *,
        opacity: float = 0.8,
        width: float = 0.8,
        name: str = "watermark",
    ) -> None:
        super().__init__(name, points_to)
        self.texts = texts_of("texts", texts)
        if len(self.texts) != len(self.points_to) or len(set(self.texts)) != len(self.texts):
            raise ConfigurationError(
                f"Expected `texts` of the cue {name!r} to be {len(self.points_to)} different texts, one a variant, but "
                f"got {self.texts!r}."
            )
        for text in self.texts:
            _require_drawable(text, name)
        require_share("opacity", opacity, name)
        require_share("width", width, name)
        self.opacity, self.width = opacity, width

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        value, cover = self._drawn(shown).to(shown.images.dtype)[variants][:, :, None].unbind(dim=1)
        return shown.images + self.opacity * cover * (value - shown.images)

    def region(self, shown: Shown) -> Tensor:
        """The boxes around the texts: the same for every variant, so that their widths give nothing away."""
        rows, columns = self._drawn(shown)[:, 1].amax(dim=0).nonzero().unbind(dim=1)
        box = torch.zeros(shown.images.shape[-2:], dtype=torch.bool)
        box[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1] = True
        return box.expand(len(shown.images), -1, -1).clone()

    def _drawn(self, shown: Shown) -> Tensor:
        """Value and cover of each variant, `(V, 2, H, W)`."""
        height, width = shown.images.shape[-2:]
        return torch.stack([_stamp(text, height, width, self.width) for text in self.texts])


def _require_drawable(text: str, name: str) -> None:
    font = ImageFont.load_default(_POINTS)
    missing = bytes(font.getmask("\uffff"))
    unknown = "".join(letter for letter in text if not letter.isspace() and bytes(font.getmask(letter)) == missing)
    if not text.strip() or not text.isprintable() or unknown:
        raise ConfigurationError(
            f"Expected `texts` of the cue {name!r} to be of one line, in letters that the font of Pillow has, but got "
            f"{text!r}{f', which has {unknown!r}' if unknown else ''}. Paint others with FunctionCue."
        )


@lru_cache(maxsize=64)
def _stamp(text: str, height: int, width: int, share: float) -> Tensor:
    """Grey value and cover of each pixel, `(2, H, W)` in [0, 1]; drawn large and reduced, so that small ones read."""
    large = max(1, 320 // max(height, width) + 1)
    size = (width * large, height * large)
    left, top, right, bottom = ImageFont.load_default(_POINTS).getbbox(text, stroke_width=_POINTS // 16)
    points = _POINTS * min(share * size[0] / (right - left), _TALLEST * size[1] / (bottom - top))
    font = ImageFont.load_default(points)
    value, cover = (Image.new("L", size) for _ in range(2))
    place = (size[0] / 2, size[1] * 0.96)
    rim = max(1, round(points / 16))
    ImageDraw.Draw(value).text(place, text, fill=255, font=font, anchor="md")
    ImageDraw.Draw(cover).text(place, text, fill=255, font=font, anchor="md", stroke_width=rim)
    layers = [np.asarray(layer.resize((width, height), Image.Resampling.BOX)) for layer in (value, cover)]
    return torch.from_numpy(np.stack(layers)).double() / 255
