"""`UndesirablePixels`: the parts of an image that keep a model from a class, found as a mask that hides them."""

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from xai_callbacks.access import Trace
from xai_callbacks.errors import ConfigurationError, require_bool, require_choice, require_integer, require_number
from xai_callbacks.explainers.base import Explainer, Observation, Plan, Units, require_gradients
from xai_callbacks.explainers.masks import grid_of
from xai_callbacks.explainers.pixels import Baseline, baseline_of, read_baseline

Factors = Literal["target", "non-target", "general"]
"""Whether to hide what hinders the class asked about, what speaks for the others, or what lowers its probability."""

_RATE, _BETAS, _TINY = 0.1, (0.9, 0.999), 1e-12  # of Adam, as in all public code of mask optimisation
_STEPS, _DRAWN = 40, 300  # more change little, see docs/results/undesirable.json
_SHARE = 0.2  # of the cells, hidden at first where no area is given


class UndesirablePixels(Explainer):
    """Undesirable pixels (Kang, Jung and Lee, ICCVW 2019): what hinders the class that a question asks about.

    A mask `h` in [0, 1] of a few cells, enlarged bilinearly to `U(h)`, hides parts of the image `x` behind a baseline
    `r`. With `z` the logits of the image, `z'` those of `x + U(h) (r - x)` and `t` the fact of the question, it lowers

    | factors | loss |
    |---|---|
    | `target` | `-z'_t + pinning * mean_c abs(z'_c - z_c)`, over `c != t` |
    | `non-target` | `logsumexp_c z'_c + pinning * abs(z'_t - z_t)`, over `c != t` |
    | `general` | `-p'_t`, the probability, as Fong and Vedaldi do (ICCV 2017) |

    plus `smoothness * sum |dh|^3` over neighbouring cells. The map is `-h` on the cells, which enlarged is `-U(h)`:
    hiding them raises the class asked about, or lowers its rivals, so they are evidence against it, and no cell is
    positive. Ask `WhatHinders()` or `Why("label")`; of other questions the fact alone counts, and those with equal
    facts share a mask. Images without a fact get zeros.

    The body of the paper could not be read, and no code is public: losses, baseline and settings are our reading.
    The share of the cells that is hidden is `area` exactly: each step is followed by the nearest mask of that area,
    from an even one on. That makes maps comparable, and says nothing of how much hinders, as a map of fixed area is
    never empty; with `area=None` the mask pays for its area instead. Steps are those of Adam, but with one scale
    for all cells of an image: with a scale each, cells that matter little move as far as those that matter, and
    masks of one area end up worse. No jitter, and nothing random. Without `gradients` the losses of random masks
    are compared, those that hide a cell against those that do not, and the cells with the lowest difference are
    hidden; seeded, one set for all images.

    Cost: for each question `steps` forward and backward passes, or `steps` forward passes without gradients.

    Args:
        factors: Kind of pixels to look for, see above.
        cells: Cells of the mask along the shorter side. More find more, and come nearer to adversarial patterns.
        baseline: What hides the rest, see `Baseline`.
        area: Share of the cells that is hidden; None leaves it to `area_weight`, by gradients only.
        area_weight: What a hidden cell costs in logits (of `general` in probability) where `area` is None.
        smoothness: Weight of the differences between neighbouring cells; 0 suffices for few cells.
        pinning: Weight of keeping the other logits where they were. At 1, the loss of `target` is
            constant for two classes whose logits are z and -z.
        steps: Steps, 40 if None; without gradients number of random masks, 300 if None.
        gradients: Whether to optimise by gradients. False explains functions, too.
        name: What keys begin with.
    """

    name = "undesirable_pixels"
    units: ClassVar[Units] = "relative"

    def __init__(
        self,
        factors: Factors = "target",
        cells: int = 7,
        baseline: Baseline = "blur",
        *,
        area: float | None = _SHARE,
        area_weight: float = 0.01,
        smoothness: float = 0.0,
        pinning: float = 0.5,
        steps: int | None = None,
        gradients: bool = True,
        name: str | None = None,
    ) -> None:
        require_choice("factors", factors, get_args(Factors))
        require_integer("cells", cells, minimum=2)
        require_bool("gradients", gradients)
        if area is not None:
            require_number("area", area, 0, 1, ends="()", hint="None leaves it to `area_weight`.")
        elif not gradients:
            raise ConfigurationError(
                "Expected `area` to be a number without `gradients`, as random masks tell which cells count most and "
                "not how many, but got None."
            )
        for argument, value in (("area_weight", area_weight), ("smoothness", smoothness), ("pinning", pinning)):
            require_number(argument, value, 0)
        super().__init__(name)
        self.factors, self.cells, self.area, self.gradients = factors, cells, area, gradients
        self.baseline: Baseline = read_baseline("baseline", baseline)
        self.area_weight, self.smoothness, self.pinning = area_weight, smoothness, pinning
        self.steps = (_STEPS if gradients else _DRAWN) if steps is None else steps
        require_integer("steps", self.steps, minimum=1)

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that there are other classes or labels, and settle the grid of the mask for the size of the images."""
        task = trace.subject.task
        if not task.classifies or task.width == 1:
            got = "one label" if task.classifies else "values"
            raise ConfigurationError(
                f"Expected a model of several classes or labels for {type(self).__name__}(), but got one of {got}. Use "
                "Occlusion(), whose negative cells lower any score."
            )
        if self.gradients:
            require_gradients(trace, self)
        rows, columns = grid_of(trace.images, self.cells)
        way = f"in {self.steps} steps" if self.gradients else f"by {self.steps} random masks"
        return Plan(reason=f"a mask of {rows} x {columns} cells, {way}", cost=self.steps * (1.0 + self.gradients))

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One mask for each image and different fact, all images of the chunk at once."""
        find = self._optimised if self.gradients else self._estimated
        found: dict[tuple[int, ...], Tensor] = {}
        for index, posed in enumerate(observation.posed):
            fact = tuple(posed.fact.tolist())
            if fact not in found:
                tell = _part(observation.progress, index, len(observation.posed))
                hidden = find(observation, self._loss(observation, posed.fact), tell)
                found[fact] = hidden * (posed.fact >= 0).to(hidden)[:, None, None]
        observation.progress(1.0)
        return -torch.stack([found[tuple(posed.fact.tolist())] for posed in observation.posed])

    def _loss(self, observation: Observation, fact: Tensor) -> Callable[[Tensor], Tensor]:
        """The loss `(N,)` of masks `(N, h, w)`, without what they cost by themselves."""
        images, before = observation.images, observation.outputs.detach()
        base = baseline_of(images, self.baseline)
        asked = one_hot(fact.clamp_min(0), before.shape[1]).bool()

        def loss(hidden: Tensor) -> Tensor:
            after = observation.subject(covered(images, base, hidden))
            moved = (after - before).abs()
            if self.factors == "general":
                return -observation.subject.task.probabilities(after)[asked]
            if self.factors == "target":
                others = moved.masked_fill(asked, 0).sum(dim=1) / (moved.shape[1] - 1)
                return self.pinning * others - after[asked]
            return after.masked_fill(asked, -torch.inf).logsumexp(dim=1) + self.pinning * moved[asked]

        return loss

    def _optimised(
        self, observation: Observation, loss: Callable[[Tensor], Tensor], tell: Callable[[float], None]
    ) -> Tensor:
        """Masks `(N, h, w)` by gradients; images do not influence each other."""
        images = observation.images
        hidden = torch.full((len(images), *grid_of(images, self.cells)), self.area or _SHARE, device=images.device)
        mean, square = torch.zeros_like(hidden), torch.zeros(len(images), 1, 1, device=images.device)
        for step in range(1, self.steps + 1):
            hidden.requires_grad_(True)
            total = loss(hidden) + self.smoothness * _differences(hidden)
            if self.area is None:
                total = total + self.area_weight * hidden.sum(dim=(1, 2))
            (gradient,) = torch.autograd.grad(total.sum(), hidden)
            mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
            square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient.square().mean(dim=(1, 2), keepdim=True)
            size = (square / (1 - _BETAS[1] ** step)).sqrt().clamp_min(_TINY)
            hidden = hidden.detach() - _RATE / (1 - _BETAS[0] ** step) * mean / size
            hidden = hidden.clamp(0, 1) if self.area is None else to_area(hidden, self.area)
            tell(step / self.steps)
        return hidden

    def _estimated(
        self, observation: Observation, loss: Callable[[Tensor], Tensor], tell: Callable[[float], None]
    ) -> Tensor:
        """Masks `(N, h, w)` from the losses of random ones: cells wholly as far as the area goes, and one in part."""
        images, share = observation.images, self.area or _SHARE
        generator, grid = torch.Generator().manual_seed(observation.seed), grid_of(images, self.cells)
        drawn = (torch.rand(self.steps, *grid, generator=generator) < share).double()
        losses = []
        with torch.no_grad():
            for step, each in enumerate(drawn):
                losses.append(loss(each.to(images.device, torch.float32).expand(len(images), *grid)).cpu().double())
                tell((step + 1) / self.steps)
        means = [
            torch.einsum("mn,mhw->nhw", torch.stack(losses), some) / some.sum(dim=0).clamp_min(1)
            for some in (drawn, 1 - drawn)
        ]
        tried = (drawn.sum(dim=0) > 0) & (drawn.sum(dim=0) < len(drawn))
        gained = (means[0] - means[1]).where(tried, torch.inf).flatten(1)  # what was never hidden comes last
        ranks = gained.argsort(dim=1).argsort(dim=1)
        return (share * gained.shape[1] - ranks).clamp(0, 1).reshape(means[0].shape).float().to(images.device)


def covered(images: Tensor, base: Tensor, hidden: Tensor) -> Tensor:
    """Images `(N, C, H, W)` behind a base of their shape as far as masks `(N, h, w)` in [0, 1] hide them."""
    large = interpolate(hidden[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
    return images + large.to(images) * (base - images)


def to_area(hidden: Tensor, area: float) -> Tensor:
    """The nearest masks to `(N, h, w)` with values in [0, 1] and this mean: all cells moved by one number, then cut."""
    low = hidden.amin(dim=(1, 2), keepdim=True) - 1
    high = hidden.amax(dim=(1, 2), keepdim=True)
    for _ in range(40):  # bisection; more digits than float32 has
        middle = (low + high) / 2
        more = (hidden - middle).clamp(0, 1).mean(dim=(1, 2), keepdim=True) > area
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (hidden - high).clamp(0, 1)


def _differences(hidden: Tensor) -> Tensor:
    """`sum |dh|^3` of neighbouring cells, `(N,)`."""
    return hidden.diff(dim=1).abs().pow(3).sum(dim=(1, 2)) + hidden.diff(dim=2).abs().pow(3).sum(dim=(1, 2))


def _part(progress: Callable[[float], None], index: int, count: int) -> Callable[[float], None]:
    return lambda share: progress((index + share) / count)
