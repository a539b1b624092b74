"""Cues laid over images: a pattern, or a text near the lower edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance, texts_of
from xai_callbacks.interventions.cues.base import require_share
from xai_callbacks.interventions.cues.painted import PaintedCue
from xai_callbacks.interventions.regions import require_region
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

__all__ = ["TEXTURES", "TextureCue", "WatermarkCue"]

TEXTURES = ("stripes", "checks", "dots", "rings")
"""Names of the ready patterns of `TextureCue`."""

# Pixels of a period, below which patterns could not be told apart.
_SHORTEST = 4.0
# Size at which texts are measured.
_POINTS = 64

# Height of the letters as a share of that of the image; taller ones would cover it.
_TALLEST = 1 / 3


class TextureCue(PaintedCue):
    """A pattern over the image, or over its background.

    Args:
        textures: Pattern of each variant: `stripes`, `checks`, `dots` or `rings`, or a single one.
        points_to: See `Cue`.
        opacity: How much the pattern covers, in (0, 1].
        period: Length of its period as a share of the shorter side, in (0, 1].
        keep: Name of a region that is not covered, such as `core`, which makes the pattern a background; None covers
            all. A probe without the region is covered whole.
        name: See `Cue`.

    Raises:
        ConfigurationError: An argument is out of range, or textures and variants differ in number.
    """

    def __init__(
        self,
        textures: str | Sequence[str],
        points_to: int | str | Sequence[int | str],
        *,
        opacity: float = 0.5,
        period: float = 0.2,
        keep: str | None = None,
        name: str = "texture",
    ) -> None:
        super().__init__(name, points_to)
        self.textures = texts_of("textures", textures)
        unknown = [texture for texture in self.textures if texture not in TEXTURES]
        if unknown or len(self.textures) != len(self.points_to):
            raise ConfigurationError(
                f"Expected `textures` of the cue {name!r} to be {len(self.points_to)} of {', '.join(TEXTURES)}, one a "
                f"variant, but got {', '.join(map(repr, self.textures))}."
            )
        require_share("opacity", opacity, name)
        require_share("period", period, name)
        if keep is not None:
            require_instance("keep", keep, str, "the name of a region")
        self.opacity, self.period, self.keep = opacity, period, keep

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`; the region that is kept must exist."""
        super().check(probes)
        if self.keep is not None:
            require_region(self.keep, probes, "keep", self.name)

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        height, width = shown.images.shape[-2:]
        patterns = torch.stack([_pattern(texture, height, width, self.period) for texture in self.textures])
        covering = patterns.to(shown.images.dtype)[variants][:, None]
        painted = shown.images + self.opacity * (covering - shown.images)
        covered = self.region(shown)
        return painted if covered is None else torch.where(covered[:, None], painted, shown.images)

    def region(self, shown: Shown) -> Tensor | None:
        """See `PaintedCue.region`."""
        kept = None if self.keep is None else shown.region(self.keep)
        return None if kept is None else ~kept


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


def _pattern(texture: str, height: int, width: int, period: float) -> Tensor:
    """A pattern of 0 and 1, `(H, W)`."""
    step = 2 * torch.pi / max(_SHORTEST, period * min(height, width))
    # A quarter of a pixel aside, no pixel lies where a wave is zero and its sign a matter of rounding.
    rows, columns = ((torch.arange(side, dtype=torch.float64) + 0.25) * step for side in (height, width))
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    waves = {
        "stripes": (down + right).sin(),
        "checks": down.sin() * right.sin(),
        "dots": down.cos() * right.cos() - 0.5,
        "rings": ((down - rows.mean()).hypot(right - columns.mean()) + step / 4).sin(),
    }
    return (waves[texture] > 0).double()


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
