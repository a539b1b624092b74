"""`TextureCue`: a pattern over images, or over their backgrounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance, texts_of
from xai_callbacks.interventions.cues.checks import require_region, require_share
from xai_callbacks.interventions.cues.painted import PaintedCue
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

__all__ = ["TEXTURES", "TextureCue"]

TEXTURES = ("stripes", "checks", "dots", "rings")
"""Names of the ready patterns of `TextureCue`."""

# Pixels of a period, below which patterns could not be told apart.
_SHORTEST = 4.0


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
