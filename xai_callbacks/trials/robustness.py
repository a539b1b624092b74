"""`NoiseTrial` and `HalfTrial`: how robust is a model? Context beside the evidence, no evidence by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, is_number, require_instance, require_integer
from xai_callbacks.interventions.cues.checks import require_region
from xai_callbacks.interventions.fills import apply_fill, named_generator
from xai_callbacks.interventions.regions import HALVES, half_masks
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics.regions import correct, relative_sensitivity, spread
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet
from xai_callbacks.trials.base import Answers, Judged, Trial, Views
from xai_callbacks.trials.checks import require_fills, require_labels, two_parts

__all__ = ["HalfTrial", "NoiseTrial"]


class NoiseTrial(Trial):
    """Relative foreground sensitivity: is the model hurt more by noise on the object or by noise around it?

    `rfs/<region>` is `(a_bg - a_fg) / (2 min(a, 1 - a))` in [-1, 1], with a_fg the accuracy under noise on the region,
    a_bg under noise outside, and a their mean; positive for a model that goes by the object. NaN unless .05 < a < .95.
    Moayeri et al. 2022; in our own tests it told no shortcut from none: context, not evidence. Cost: two forward passes
    a probe and draw.

    A probe has no value without the region, or without anything around it.

    Args:
        region: Region of the object.
        sigma: Standard deviation of the noise, in units of [0, 1] pixels.
        draws: How often noise is drawn.
        seed: Seed of the noise.
    """

    def __init__(self, region: str = "core", *, sigma: float = 0.25, draws: int = 3, seed: int = 0) -> None:
        require_instance("region", region, str, "the name of a region")
        if not is_number(sigma) or sigma <= 0:
            raise ConfigurationError(
                f"Expected `sigma` to be positive and finite, in units of [0, 1] pixels, but got {sigma!r}."
            )
        require_integer("draws", draws, minimum=1)
        require_integer("seed", seed, minimum=0)
        self.region, self.sigma, self.draws, self.seed = region, sigma, draws, seed
        self.name = f"rfs/{region}"

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; needs labels and the region."""
        require_labels(probes, self.name)
        require_region(self.region, probes, "region", self.name)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        masks = shown.probes.masks[self.region][shown.rows]
        return Views(dict(self._noisy(shown, masks)), {"has": two_parts(masks)})

    def judge(self, probes: ProbeSet, answers: Answers) -> Judged:
        """See `Trial.judge`."""
        assert probes.labels is not None  # noqa: S101  # `check` says so; narrows the type
        draws = range(self.draws)
        inside, outside = (
            torch.stack([correct(answers.views[f"{side} {draw}"], probes.labels) for draw in draws]).mean(dim=0)
            for side in ("object", "around")
        )
        return {self.name: relative_sensitivity(inside, outside, answers.facts["has"])}

    def _noisy(self, shown: Shown, masks: Tensor) -> Iterator[tuple[str, Tensor]]:
        for draw in range(self.draws):
            noise = torch.stack(
                [
                    torch.randn(shown.images.shape[1:], generator=named_generator(f"noise {draw}", self.seed, name))
                    for name in shown.names
                ]
            )
            noisy = (shown.images + self.sigma * noise).clamp(0, 1)
            yield f"object {draw}", torch.where(masks[:, None], noisy, shown.images)
            yield f"around {draw}", torch.where(masks[:, None], shown.images, noisy)


class HalfTrial(Trial):
    """Overwrites half of the image in several ways: does the answer depend on what stands in the other half?

    | key | meaning | range |
    |---|---|---|
    | `fill/tv` | mean total variation distance of the answers from their mean | [0, 1] |
    | `fill/disagree` | share of probes whose answers differ | [0, 1] |

    Clean models fail it, too: it measures how a model stands missing parts, not shortcuts. Read it beside its value
    before training. Cost: one forward pass a probe and fill.

    Args:
        half: Which half is overwritten: `top`, `bottom`, `left`, `right`, or `keep_object` for the one opposite to the
            region `core`.
        fills: By what; two or more.
        seed: Seed of what is random.
    """

    def __init__(
        self, half: str = "keep_object", fills: Sequence[str] = ("white", "black", "uniform"), *, seed: int = 0
    ) -> None:
        if half not in HALVES:
            raise ConfigurationError(f"Expected `half` to be one of {', '.join(HALVES)}, but got {half!r}.")
        require_instance("fills", fills, Sequence, "a list of fills")
        self.fills = require_fills(fills, min_count=2, without=["swap"])
        require_integer("seed", seed, minimum=0)
        self.half = half
        self.seed = seed
        self.name = "fill"

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; `keep_object` needs the region `core`."""
        probes.task.require_classes("HalfTrial", single=True)
        if self.half == "keep_object":
            require_region("core", probes, "half='keep_object'", self.name)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        height, width = shown.images.shape[-2:]
        masks = half_masks(shown.region("core"), (height, width), self.half).expand(len(shown.images), -1, -1)
        images = {fill: apply_fill(shown.images, masks, fill, names=shown.names, seed=self.seed) for fill in self.fills}
        return Views(images, {"has": masks.flatten(1).any(dim=1)})

    def judge(self, probes: ProbeSet, answers: Answers) -> Judged:
        """See `Trial.judge`."""
        distance, disagree = spread(torch.stack([answers.views[fill] for fill in self.fills]))
        has = answers.facts["has"]
        return {
            "fill/tv": PerProbe(distance.where(has, torch.nan)),
            "fill/disagree": PerProbe(disagree.where(has, torch.nan)),
        }
