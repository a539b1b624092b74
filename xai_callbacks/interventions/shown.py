"""`Shown`: some probes of a set as they are displayed."""

from dataclasses import dataclass

from torch import Tensor

from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.probes import ProbeSet


@dataclass(frozen=True, eq=False)
class Shown:
    """Some probes as they are displayed, or as an earlier edit left them."""

    images: Tensor  # (n, C, H, W) in [0, 1]
    rows: Tensor  # which probes these are, (n,) int64
    probes: ProbeSet  # the whole set
    scale: PixelScale  # shows others of the set in [0, 1]
    seed: int  # of what is random

    @property
    def names(self) -> list[str]:
        """Names of these probes."""
        return [self.probes.names[row] for row in self.rows.tolist()]

    def region(self, name: str) -> Tensor | None:
        """Place of a region of these probes, `(n, H, W)` bool; None if the set has no such region."""
        masks = self.probes.masks.get(name)
        return None if masks is None else masks[self.rows]
