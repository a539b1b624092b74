"""Cues laid over images: a pattern, or a text near the lower edge."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.cues.base import PointsTo, require_share, require_texts
from xai_callbacks.interventions.cues.painted import CoveringCue, PaintedCue
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

TEXTURES = ("stripes", "checks", "dots", "rings")
_SHORTEST = 4.0  # pixels of a period, below which patterns could not be told apart
_POINTS = 64  # size at which texts are measured
_TALLEST = 1 / 3  # height of the letters, at most, as a share of that of the image: taller ones would cover it
_INKED = 0.05  # cover of a pixel, from which on it counts as ink


class TextureCue(CoveringCue):
    """A pattern over the image, or over its background.

    Args:
        textures: Pattern of each variant: `stripes`, `checks`, `dots` or `rings`, or a single one.
        opacity: How much the pattern covers, in (0, 1].
        period: Length of its period as a share of the shorter side, in (0, 1].
        keep: Name of a region that is not covered, such as `core`; None, or a probe without it, is covered whole.
        points_to, name: See `Cue`.
    """

    def __init__(
        self,
        textures: str | Sequence[str],
        points_to: PointsTo,
        *,
        opacity: float = 0.5,
        period: float = 0.2,
        keep: str | None = None,
        name: str = "texture",
    ) -> None:
        super().__init__(name, points_to, opacity)
        self.textures = require_texts("textures", textures, self, TEXTURES)
        require_share("period", period, name)
        self.require_region("keep", keep, optional=True)
        self.period, self.keep = period, keep

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        where = "the whole image" if self.keep is None else f"all but the region {self.keep!r}"
        period = _period(self.period, *probes.images.shape[-2:])
        return f"{self.described(probes, self.textures)} of {period:.0f} px, opacity {self.opacity:g}, over {where}"

    def covering(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `CoveringCue.covering`."""
        height, width = shown.images.shape[-2:]
        return torch.stack([_pattern(each, height, width, self.period) for each in self.textures])[variants][:, None]

    def region(self, shown: Shown) -> Tensor | None:
        """See `PaintedCue.region`."""
        kept = None if self.keep is None else shown.region(self.keep)
        return None if kept is None else ~kept


class WatermarkCue(PaintedCue):
    """A text near the lower edge, white with a dark rim, as agencies stamp it.

    A letter takes some five pixels to be read: for images of 32 pixels, five letters or less.

    Args:
        texts: Text of each variant, or a single one.
        opacity: How much the text covers, in (0, 1].
        width: Width of the text as a share of that of the image, in (0, 1]; less where letters would be too tall.
        points_to, name: See `Cue`.
    """

    def __init__(
        self,
        texts: str | Sequence[str],
        points_to: PointsTo,
        *,
        opacity: float = 0.8,
        width: float = 0.8,
        name: str = "watermark",
    ) -> None:
        super().__init__(name, points_to)
        self.texts = require_texts("texts", texts, self)
        for text in self.texts:
            _require_drawable(text, name)
        require_share("opacity", opacity, name)
        require_share("width", width, name)
        self.opacity, self.width = opacity, width

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        widths = (self._drawn(probes.images)[:, 1] > _INKED).any(dim=1).sum(dim=1).tolist()
        texts = [f"the text {text!r}, {width} px wide" for text, width in zip(self.texts, widths, strict=True)]
        return f"near the lower edge, opacity {self.opacity:g}, {self.described(probes, texts)}"

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        value, cover = self._drawn(shown.images).to(shown.images.dtype)[variants][:, :, None].unbind(dim=1)
        return shown.images + self.opacity * cover * (value - shown.images)

    def region(self, shown: Shown) -> Tensor:
        """The boxes around the texts: the same for every variant, so that their widths give nothing away."""
        rows, columns = self._drawn(shown.images)[:, 1].amax(dim=0).nonzero().unbind(dim=1)
        box = torch.zeros(shown.images.shape[-2:], dtype=torch.bool)
        box[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1] = True
        return box.expand(len(shown.images), -1, -1).clone()

    def _drawn(self, images: Tensor) -> Tensor:
        """Value and cover of each variant, `(V, 2, H, W)`."""
        height, width = images.shape[-2:]
        return torch.stack([_stamp(text, height, width, self.width) for text in self.texts])


def _period(share: float, height: int, width: int) -> float:
    return max(_SHORTEST, share * min(height, width))


def _pattern(texture: str, height: int, width: int, period: float) -> Tensor:
    """A pattern of 0 and 1, `(H, W)`."""
    step = 2 * torch.pi / _period(period, height, width)
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
