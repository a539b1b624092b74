"""`PasteCue`: a masked region of some probes, pasted into the others and taken out of its own."""

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_choice, require_integer
from xai_callbacks.interventions.cues.base import Cue, Twins
from xai_callbacks.interventions.cues.painted import region_in_words
from xai_callbacks.interventions.fills import FILLS, apply_fill, dilate, named_generator
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet

_FILLS = [fill for fill in FILLS if fill != "swap"]  # `swap` asks for more than an image and a region
_HIDES = 0.2  # share of the object that a pasted region may hide


class PasteCue(Cue):
    """A real cue, cut out of the probes that have it.

    A probe without the region gets that of another one, in the place where it lies there: `added`. A probe with the
    region loses it: the region is filled. No painter of the cue is needed, but masks of it on some probes. What would
    hide more than a fifth of the region `core` is not pasted; a probe for which nothing is left has no pair. The region
    must be that of one cue: where each class has its own, take a region each.

    Args:
        region: Name of the region.
        fill: What takes its place, one of `FILLS` but `swap`.
        grow: Pixels by which the region grows before it is cut or filled, so that no rim stays behind.
        points_to, name: See `Cue`; one class.
    """

    def __init__(
        self,
        points_to: int | str,
        *,
        region: str = "spurious",
        fill: str = "local_mean",
        grow: int = 2,
        name: str = "paste",
    ) -> None:
        super().__init__(name, points_to)
        if len(self.points_to) != 1:
            raise ConfigurationError(
                f"Expected `points_to` of the cue {name!r} to be one class, that of the region, but got {points_to!r}. "
                "Make one cue a class."
            )
        require_integer("grow", grow, minimum=0, hint="It is a number of pixels.")
        require_choice("fill", fill, _FILLS, of=f"the cue {name!r}")
        self.require_region("region", region)
        self.region, self.fill, self.grow, self.carried_in = region, fill, grow, region

    def describe(self, probes: ProbeSet) -> str:
        """See `Cue.describe`."""
        region = region_in_words(self.region, probes)
        return f"{region} of other probes pasted in, or a probe's own filled by {self.fill}, grown by {self.grow} px"

    def twins(self, shown: Shown) -> Twins:
        """Probes with the region, their own or another's, and without."""
        masks = shown.probes.masks[self.region]
        donors = masks.flatten(1).any(dim=1)
        has = donors[shown.rows]
        own = dilate(masks[shown.rows], self.grow)
        emptied = apply_fill(shown.images, own, self.fill, names=shown.names, seed=shown.seed)
        sources = torch.tensor([-1 if donors[row] else self._source(shown, donors, row) for row in shown.rows.tolist()])
        lenders, found = sources.clamp(min=0), sources >= 0
        lent = dilate(masks[lenders], self.grow) & found[:, None, None]
        pieces = shown.scale.displayed(shown.probes.images[lenders])
        pasted = torch.where(lent[:, None], pieces, shown.images)
        take = has[:, None, None, None]
        points_to = torch.where(has | found, self.classes(shown.probes)[0], -1)
        present, absent = torch.where(take, shown.images, pasted), torch.where(take, emptied, shown.images)
        return Twins(present, absent, absent, points_to, torch.where(has[:, None, None], own, lent), ~has)

    def _source(self, shown: Shown, donors: Tensor, row: int) -> int:
        """A probe whose region, pasted here, leaves the object visible, each equally likely; -1 if there is none."""
        generator = named_generator(f"source of {self.name}", shown.seed, shown.probes.names[row])
        candidates = donors.nonzero()[:, 0]
        core = shown.probes.masks.get("core", torch.zeros_like(shown.probes.masks[self.region]))[row]
        most = _HIDES * int(core.sum())
        for source in candidates[torch.randperm(len(candidates), generator=generator)].tolist():
            # Most often the first will do, and regions are not grown before they must be.
            region = dilate(shown.probes.masks[self.region][source : source + 1], self.grow)[0]
            if int((region & core).sum()) <= most:
                return int(source)
        return -1
