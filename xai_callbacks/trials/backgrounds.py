"""`BackgroundTrial`: does a model answer by what is around the object?"""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.errors import require_instance, require_integer
from xai_callbacks.interventions.cues.checks import require_region
from xai_callbacks.interventions.fills import dilate
from xai_callbacks.interventions.regions import keep, mixed_background, partners, remove
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics.regions import correct
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet
from xai_callbacks.trials.base import Answers, Judged, Trial, Views
from xai_callbacks.trials.checks import require_fills, require_labels, two_parts

__all__ = ["BackgroundTrial"]


class BackgroundTrial(Trial):
    """Sets objects on backgrounds of other probes, of the same class and of another one.

    | key | meaning | range |
    |---|---|---|
    | `bg/same_acc`, `bg/rand_acc` | accuracy on backgrounds of the own class, and of a class drawn at random | [0, 1] |
    | `bg/gap` | their difference; chance 0 (Xiao et al. 2021, with the sign of their text) | [-1, 1] |
    | `bg/only_acc` | accuracy with the object filled: what the background alone gives away; chance 1 / K | [0, 1] |
    | `fg/only_acc` | accuracy with the background filled | [0, 1] |

    Objects are filled by `fill` before their background is lent. Probes lend that have the region themselves and a
    background. `bg/rand_acc` and `bg/gap` are NaN for probes of a single class. Cost: four forward passes a probe.

    Args:
        region: Region of the object.
        fill: What takes the place of what is removed. Its outline stays, and of a `blur` its colours, too, which may
            tell the class: `bg/only_acc` is no less than what the background gives away.
        grow: Pixels by which an object grows before it is filled, so that no rim stays behind.
        seed: Seed of what is random.
    """

    def __init__(self, region: str = "core", fill: str = "local_mean", *, grow: int = 1, seed: int = 0) -> None:
        require_instance("region", region, str, "the name of a region")
        self.region = region
        (self.fill,) = require_fills([fill], without=["swap"])
        require_integer("grow", grow, minimum=0, hint="It is a number of pixels.")
        require_integer("seed", seed, minimum=0)
        self.grow = grow
        self.seed = seed
        self.name = "bg"

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; needs labels and the region."""
        require_labels(probes, self.name)
        require_region(self.region, probes, "region", self.name)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        probes = shown.probes
        assert probes.labels is not None  # noqa: S101  # `check` says so; narrows the type
        masks = probes.masks[self.region]
        own, has = masks[shown.rows], two_parts(masks)
        images = {
            "background": remove(shown.images, dilate(own, self.grow), self.fill, names=shown.names, seed=self.seed),
            "foreground": keep(shown.images, own, self.fill, names=shown.names, seed=self.seed),
        }
        facts = {"has": has[shown.rows]}
        for kind in ("same", "rand"):
            places = _lenders(probes.labels, has, kind, self.seed)[shown.rows]
            facts[kind] = places >= 0
            places = torch.where(places >= 0, places, shown.rows)
            others = shown.scale.displayed(probes.images[places])
            names = [probes.names[place] for place in places.tolist()]
            images[kind] = mixed_background(
                shown.images, own, others, dilate(masks[places], self.grow), self.fill, names=names, seed=self.seed
            )
        return Views(images, facts)

    def judge(self, probes: ProbeSet, answers: Answers) -> Judged:
        """See `Trial.judge`."""
        assert probes.labels is not None  # noqa: S101  # `check` says so; narrows the type
        right = {name: correct(outputs, probes.labels) for name, outputs in answers.views.items()}
        chance = torch.full_like(right["same"], 1 / answers.given.shape[1])
        has, same, rand = (answers.facts[name] for name in ("has", "same", "rand"))

        def over(values: Tensor, where: Tensor, level: Tensor) -> PerProbe:
            # A probe with an object should have a value; one that no other lends a background to has none.
            return PerProbe(values.where(where, torch.nan), level.where(has, torch.nan))

        return {
            "bg/same_acc": over(right["same"], same, chance),
            "bg/rand_acc": over(right["rand"], rand, chance),
            "bg/gap": over(right["same"] - right["rand"], same & rand, torch.zeros_like(chance)),
            "bg/only_acc": over(right["background"], has, chance),
            "fg/only_acc": over(right["foreground"], has, chance),
        }


def _lenders(labels: Tensor, suited: Tensor, kind: str, seed: int) -> Tensor:
    """Which probe lends its background to each, `(N,)`: one whose object can be removed; -1 if there is none."""
    rows = suited.nonzero()[:, 0]
    found = torch.full_like(labels, -1)
    if kind == "rand" and len(torch.unique(labels[rows])) < 2:
        return found
    places = partners(labels[rows], kind, seed)
    found[rows] = torch.where(places >= 0, rows[places], -1)
    return found
