"""Explainers at the pixels, by captum: posed questions asked of altered versions of each image."""

import math
import warnings
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from xai_callbacks.access import Trace
from xai_callbacks.errors import ConfigurationError, is_number, require_integer
from xai_callbacks.explainers.base import Explainer, Observation, Plan, require_gradients
from xai_callbacks.questions import Posed

Baseline = Literal["blur", "mean"] | float
"""What stands for "no evidence": each image blurred (Gaussian, standard deviation an eighth of the shorter side), its
mean colour, or a number in the units of the images."""

_WORDS = ("blur", "mean")
_MISSED = 0.1  # of the change of the score, that integrated gradients may be off by unsaid
_ROUNDING = 1e-4  # of the scores


def read_baseline(argument: str, given: Any, *more: str) -> Any:
    """A `Baseline`, or one of `more` words; others are a `ConfigurationError`."""
    if given in (*_WORDS, *more):
        return given
    if not is_number(given):
        words = ", ".join(map(repr, (*_WORDS, *more)))
        raise ConfigurationError(f"Expected `{argument}` to be {words} or a finite number, but got {given!r}.")
    return float(given)


def baseline_of(images: Tensor, baseline: Baseline) -> Tensor:
    """What stands for "no evidence" in each of the images, of their shape `(N, C, H, W)`."""
    if baseline == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    return _blurred(images) if baseline == "blur" else torch.full_like(images, baseline)


def _blurred(images: Tensor) -> Tensor:
    """Images blurred along one axis after the other, borders mirrored; that of torchvision takes both at once."""
    side = min(images.shape[-2:])
    radius = min(side // 2, side - 1)  # four standard deviations
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / (side / 8)).square())
    kernel = (kernel / kernel.sum())[None, None]
    for _ in range(2):
        rows = pad(images.float().flatten(0, 2)[:, None], (radius, radius), mode="reflect")
        images = conv1d(rows, kernel).reshape(images.shape).to(images.dtype).transpose(2, 3)
    return images


class _PixelExplainer(Explainer):
    """Base of explainers that compare images with a baseline."""

    def __init__(self, baseline: Baseline, name: str | None) -> None:
        super().__init__(name)
        self.baseline: Baseline = read_baseline("baseline", baseline)
        _captum()

    def _attributed(self, algorithm: Any, images: Tensor, **settings: Any) -> Tensor:
        """What captum attributes to images, float32; the function that is explained gets their places beside."""
        base, places = baseline_of(images, self.baseline), torch.arange(len(images), device=images.device)
        found: Tensor = algorithm.attribute(
            images.detach(), baselines=base, additional_forward_args=(places,), **settings
        )
        return found.detach().float()


class IntegratedGradients(_PixelExplainer):
    """Integrated gradients, summed over the channels (Sundararajan, Taly and Yan, ICML 2017).

    `(x - x') * integral of the gradient along the line from the baseline x' to the image x`. The sum over the pixels is
    the score of the image less that of the baseline, up to the error of the steps, of which users are told if it is
    large. It can be nearly all of the sum where a score jumps: a net that normalises patches sees the same in a photo
    of any brightness, and something else in black. Cost: `steps` forward and backward passes for each question, and
    one forward pass.

    Args:
        steps: Points along the line, in the middle of intervals of equal length.
        baseline: Where the line begins; 0 is black, or the mean of the data where images are normalised.
        name: What keys begin with.
    """

    name = "integrated_gradients"

    def __init__(self, steps: int = 64, baseline: Baseline = 0.0, name: str | None = None) -> None:
        require_integer("steps", steps, minimum=1)
        self.steps = steps
        super().__init__(baseline, name)

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that the model can be differentiated down to the images."""
        require_gradients(trace, self)
        return Plan(reason=f"the pixels, in {self.steps} steps", cost=2.0 * self.steps)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """`steps` forward and backward passes a question, `chunk_size` images at a time."""
        images, maps = observation.images, []
        for index, posed in enumerate(observation.posed):

            def score(altered: Tensor, which: Tensor, posed: Posed = posed) -> Tensor:
                return posed.rows(which).score(observation.subject(altered))

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")
                method, size = _captum().IntegratedGradients(score), max(observation.chunk_size, len(images))
                line = {"n_steps": self.steps, "method": "riemann_middle", "internal_batch_size": size}
                maps.append(self._attributed(method, images, **line).sum(dim=1))
            observation.progress((index + 1) / len(observation.posed))
        if self._misses(observation, maps):
            observation.notes.append(
                f"Heatmaps of `{self.name}` miss more than a tenth of what they should add up to, the change of the "
                "score from the baseline. Take more `steps`, another `baseline` such as 'blur', or DeepSHAP()."
            )
        return torch.stack(maps)

    def _misses(self, observation: Observation, maps: list[Tensor]) -> bool:
        images = observation.images
        with torch.no_grad():
            begin = observation.subject(baseline_of(images, self.baseline).expand_as(images))
            scores = torch.stack([posed.score(observation.outputs) for posed in observation.posed])
            changes = scores - torch.stack([posed.score(begin) for posed in observation.posed])
        error = (torch.stack(maps).sum(dim=(2, 3)) - changes).abs().sum()
        return bool(error > _MISSED * changes.abs().sum() + _ROUNDING * scores.abs().sum())


class Occlusion(_PixelExplainer):
    """Occlusion: what the score loses when a square of the image is hidden (Zeiler and Fergus, ECCV 2014).

    A square slides over the image; each pixel gets the mean loss over the squares that hide it, divided by the pixels
    of a square, so that the sum over the pixels of squares side by side is the sum of their losses. Squares that the
    border cuts, where the stride does not lead to it, count as whole ones. One set of forward passes answers all
    questions, without gradients. Cost: one for each place of the square, `(1 + (side - window) / stride)^2`.

    Args:
        window: Side of the square in pixels; None for a seventh of the shorter side of the images.
        stride: Pixels from one place to the next; None for half the window.
        baseline: What hides the square.
        name: What keys begin with.
    """

    name = "occlusion"

    def __init__(
        self, window: int | None = None, stride: int | None = None, baseline: Baseline = "mean", name: str | None = None
    ) -> None:
        for argument, value in (("window", window), ("stride", stride)):
            if value is not None:
                require_integer(argument, value, minimum=1)
        self.window, self.stride = window, stride
        if window is not None:
            self._sizes(window)
        super().__init__(baseline, name)

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Settle the square for the size of the images."""
        shape = trace.images.shape[-2:]
        window, stride = self._sizes(min(shape))
        if window > min(shape):
            raise ConfigurationError(
                f"Expected `window` to be at most {min(shape)}, the shorter side of the images, but got {window}."
            )
        places = math.prod(math.ceil((side - window) / stride) + 1 for side in shape)
        return Plan(reason=f"{places} squares of {window} x {window} pixels, hidden one after another", cost=places)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One forward pass a place for all questions, `chunk_size` images at a time."""
        images = observation.images
        count, channels, *shape = images.shape
        window, stride = self._sizes(min(shape))
        done = 0

        def scores(altered: Tensor, which: Tensor) -> Tensor:
            nonlocal done
            done += len(altered)
            observation.progress(min(1.0, done / (count * (plan.cost + 1))))
            return observation.scores(altered, which).T

        found = self._attributed(
            _captum().Occlusion(scores),
            images,
            sliding_window_shapes=(channels, window, window),
            strides=(channels, stride, stride),
            perturbations_per_eval=max(1, observation.chunk_size // count),
        )
        # Captum gives one row for each number that came out: images by questions.
        summed = found.mean(dim=1) / window**2
        return summed.reshape(count, len(observation.posed), *shape).transpose(0, 1)

    def _sizes(self, side: int) -> tuple[int, int]:
        """Window and stride for images whose shorter side has so many pixels."""
        window = max(1, round(side / 7)) if self.window is None else self.window
        stride = max(1, window // 2) if self.stride is None else self.stride
        if stride > window:
            raise ConfigurationError(
                f"Expected `stride` to be at most `window`, {window}, so that every pixel is hidden, but got {stride}."
            )
        return window, stride


def _captum() -> ModuleType:
    try:
        from captum import attr
    except ImportError as error:
        raise ConfigurationError(
            "Expected captum to be installed for explanations of pixels, but it is not. Run `pip install captum`."
        ) from error
    return cast("ModuleType", attr)
