"""`RegionTrial`: what does a model lose with a region?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance, require_integer
from xai_callbacks.interventions.cues.checks import require_region
from xai_callbacks.interventions.fills import apply_fill, dilate
from xai_callbacks.interventions.regions import partners, placebo_masks
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics.regions import correct
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet
from xai_callbacks.trials.base import Answers, Judged, Trial, Views
from xai_callbacks.trials.checks import require_fills, require_labels

__all__ = ["RegionTrial"]

# A placebo that hides more of another region than this shows what that region does.
_HIDES = 0.2


class RegionTrial(Trial):
    """Fills a region, and elsewhere a place of the same shape, and looks how much accuracy is lost.

    | key, after `region/<region>/` | meaning | range |
    |---|---|---|
    | `drop` | accuracy as shown minus accuracy with the region filled, mean over the fills | [-1, 1] |
    | `drop/<fill>` | the same for each fill: their spread is what the fill itself does | [-1, 1] |
    | `placebo_drop` | the same with the fill elsewhere, away from `core` and `spurious` | [-1, 1] |
    | `drop_minus_placebo` | their difference; chance 0 | [-1, 1] |

    Both placebo metrics are NaN, and counted, for a region too large to move away from itself, and where its place
    elsewhere would hide more than a fifth of `core` or `spurious`.

    Of the object, a *small* drop is suspicious; of a cue, a large one where it agrees with the label, and one below 0
    where it contradicts. Cost: two forward passes a probe and fill.

    Args:
        region: Name of the region.
        fills: What takes its place, see `interventions.fills`; three or more, as each leaves a mark of its own. `swap`
            takes the place from a probe of a class drawn at random.
        grow: Pixels by which the region grows first, so that no rim stays behind.
        seed: Seed of what is random.
    """

    def __init__(
        self, region: str, fills: Sequence[str] = ("local_mean", "blur", "swap"), *, grow: int = 1, seed: int = 0
    ) -> None:
        require_instance("region", region, str, "the name of a region")
        self.region = region
        self.fills = require_fills(fills)
        require_integer("grow", grow, minimum=0, hint="It is a number of pixels.")
        require_integer("seed", seed, minimum=0)
        self.grow = grow
        self.seed = seed
        self.name = f"region/{region}"

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; needs labels and the region, and two probes to swap."""
        require_labels(probes, self.name)
        require_region(self.region, probes, "region", self.name)
        if "swap" in self.fills and len(probes) < 2:
            raise ConfigurationError(f"Expected two probes or more for the fill 'swap' of {self.name}, but got one.")

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        region = shown.probes.masks[self.region][shown.rows]
        masks = dilate(region, self.grow)
        others = self._others(shown)
        placebo = placebo_masks(masks, self.seed, shown.names, avoid=others)
        hidden = (placebo & others).flatten(1).sum(dim=1) > _HIDES * others.flatten(1).sum(dim=1)
        images = {}
        for fill in self.fills:
            images[fill] = _filled(shown, masks, fill, self.seed)
            images[f"placebo {fill}"] = _filled(shown, placebo, fill, self.seed)
        facts = {"has": region.flatten(1).any(dim=1), "moved": placebo.flatten(1).any(dim=1) & ~hidden}
        return Views(images, facts)

    def judge(self, probes: ProbeSet, answers: Answers) -> Judged:
        """See `Trial.judge`."""
        assert probes.labels is not None  # noqa: S101  # `check` says so; narrows the type
        given, has = correct(answers.given, probes.labels), answers.facts["has"]
        right = {name: correct(outputs, probes.labels) for name, outputs in answers.views.items()}
        drops = {fill: given - right[fill] for fill in self.fills}
        placebo = torch.stack([given - right[f"placebo {fill}"] for fill in self.fills]).mean(dim=0)
        drop = torch.stack(list(drops.values())).mean(dim=0)
        compared = {
            "drop": drop,
            **{f"drop/{fill}": values for fill, values in drops.items()},
            "placebo_drop": placebo.where(answers.facts["moved"], torch.nan),
            "drop_minus_placebo": (drop - placebo).where(answers.facts["moved"], torch.nan),
        }
        zero = torch.zeros_like(drop).where(has, torch.nan)
        return {f"{self.name}/{key}": PerProbe(values.where(has, torch.nan), zero) for key, values in compared.items()}

    def _others(self, shown: Shown) -> Tensor:
        """What a placebo should leave alone, `(n, H, W)`: the cue where the region is the object, and the reverse."""
        avoid = torch.zeros(len(shown.images), *shown.images.shape[-2:], dtype=torch.bool)
        for name in ("core", "spurious"):
            found = None if name == self.region else shown.region(name)
            avoid = avoid if found is None else avoid | found
        return avoid


def _filled(shown: Shown, masks: Tensor, fill: str, seed: int) -> Tensor:
    """One fill; `swap` takes its pixels from another probe of the whole set, whatever the chunk."""
    labels = shown.probes.labels
    if fill != "swap" or labels is None:
        return apply_fill(shown.images, masks, fill, names=shown.names, seed=seed)
    # Not from a place further in the set: where that is ordered, it would be one of the same class.
    others = shown.scale.displayed(shown.probes.images[partners(labels, "rand", seed)[shown.rows]])
    return torch.where(masks[:, None], others, shown.images)
