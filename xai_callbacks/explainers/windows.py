"""Windows that slide over images, and what a model says of each."""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from xai_callbacks.access import Trace
from xai_callbacks.errors import ConfigurationError, in_words, require_bool, require_choice, require_integer
from xai_callbacks.explainers.base import Explainer, Observation, Plan, Units
from xai_callbacks.questions.base import pick

Border = Literal["flush", "drop", "pad"]
"""What becomes of rows and columns that the last whole stride does not reach.

`flush` adds a window that ends with the image; `drop` leaves them out; `pad` goes on beyond the image, whose last
pixels are repeated there.
"""


class Windows(NamedTuple):
    """Square windows of images of one size, `rows` times `columns` of them."""

    side: int
    tops: tuple[int, ...]  # first pixel of each row of windows
    lefts: tuple[int, ...]  # and of each column

    @classmethod
    def over(cls, size: tuple[int, int], window: int, stride: int, border: Border = "flush") -> "Windows":
        """Windows of images `size` `(H, W)`; `drop` gives `floor((H - window) / stride) + 1` rows.

        A `ConfigurationError` says that a window is larger than the image, or that the stride is larger than a window.
        """
        if window > min(size):
            raise ConfigurationError(
                f"Expected `window` to be at most {min(size)}, the shorter side of the images, but got {window}."
            )
        if stride > window:
            raise ConfigurationError(
                f"Expected `stride` to be at most `window`, {window}, so that no pixel is left out, but got {stride}."
            )
        tops, lefts = (_starts(side, window, stride, border) for side in size)
        return cls(window, tops, lefts)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.tops), len(self.lefts)

    def cut(self, images: Tensor, chunk_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Cut images `(N, C, H, W)` into windows, at most `chunk_size` at a time.

        Yields windows `(M, C, side, side)`, the image `(M,)` that each is of, and its place `(M,)` in the grid, counted
        row by row.
        """
        ends = (starts[-1] + self.side for starts in (self.tops, self.lefts))
        below, right = (max(0, end - size) for end, size in zip(ends, images.shape[-2:], strict=True))
        padded = pad(images, (0, right, 0, below), mode="replicate") if below or right else images
        for some in torch.split(torch.arange(math.prod(self.grid) * len(images)), chunk_size):
            places, rows = some // len(images), some % len(images)
            pairs = zip(rows.tolist(), places.tolist(), strict=True)
            yield torch.stack([padded[row][:, *self.at(place)] for row, place in pairs]), rows, places

    def at(self, place: int) -> tuple[slice, slice]:
        """Rows and columns of pixels of the window at a place in the grid."""
        top, left = self.tops[place // len(self.lefts)], self.lefts[place % len(self.lefts)]
        return slice(top, top + self.side), slice(left, left + self.side)

    def counts(self) -> Tensor:
        """Number of windows that cover each pixel, `(H', W')`, as far as windows reach."""
        rows, columns = (
            torch.stack([pad(torch.ones(self.side), (start, starts[-1] - start)) for start in starts]).sum(dim=0)
            for starts in (self.tops, self.lefts)
        )
        return torch.outer(rows, columns)

    def spread(self, grid: Tensor, size: tuple[int, int], reduce: Callable[..., Tensor] = torch.mean) -> Tensor:
        """The mean, or another reduction such as `torch.amax`, of the windows that cover each pixel.

        Values `(..., rows, columns)` become `(..., *size)`. A pixel that no window covers gets the value of the nearest
        that one does.
        """
        for axis, starts in ((-2, self.tops), (-1, self.lefts)):
            # Windows that cover a pixel follow one another, and rows do not depend on columns.
            begun = torch.tensor(starts)
            pixels = torch.arange(size[axis]).clamp(max=starts[-1] + self.side - 1)
            first, last = (begun + self.side <= pixels[:, None]).sum(dim=1), (begun <= pixels[:, None]).sum(dim=1)
            runs = zip(first.tolist(), last.tolist(), strict=True)
            grid = torch.stack([reduce(grid.narrow(axis, a, b - a), dim=axis) for a, b in runs], dim=axis)
        return grid


def _starts(side: int, window: int, stride: int, border: Border) -> tuple[int, ...]:
    whole = range(0, side - window + 1, stride)
    if border == "drop" or whole[-1] == side - window:
        return tuple(whole)
    return (*whole, side - window if border == "flush" else whole[-1] + stride)


def window_scores(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    windows: Windows,
    *,
    enlarge: bool = False,
    chunk_size: int = 16,
) -> Tensor:
    """Scores of the windows of each image, `(..., N, rows, columns)`.

    Args:
        score: Gives scores `(..., M)` of windows `(M, C, h, w)`, told of which image `(M,)` each is.
        images: `(N, C, H, W)`.
        windows: See `Windows.over`.
        enlarge: Whether windows are brought to the size of the images first, bilinearly.
        chunk_size: Most windows at a time.
    """
    found, size = [], images.shape[-2:]
    for parts, rows, _ in windows.cut(images, chunk_size):
        large = interpolate(parts, size=size, mode="bilinear", align_corners=False) if enlarge else parts
        found.append(score(large, rows))
    scores = torch.cat(found, dim=-1)
    return scores.reshape(*scores.shape[:-1], *windows.grid, len(images)).movedim(-1, -3)


class WindowExplainer(Explainer):
    """Base of explainers of windows."""

    def __init__(self, window: int | None, stride: int | None, border: Border, name: str | None) -> None:
        for argument, value in (("window", window), ("stride", stride)):
            if value is not None:
                require_integer(argument, value, minimum=1)
        if window is not None and stride is not None and stride > window:
            Windows.over((window, window), window, stride)  # says why not
        require_choice("border", border, get_args(Border))
        super().__init__(name)
        self.window, self.stride, self.border = window, stride, border

    def windows(self, images: Tensor) -> Windows:
        """The windows of images `(N, C, H, W)`."""
        size = (images.shape[-2], images.shape[-1])
        window = max(1, min(size) // 2) if self.window is None else self.window
        return Windows.over(size, window, max(1, window // 2) if self.stride is None else self.stride, self.border)


class SlidingWindow(WindowExplainer):
    """What the model says of windows of each image: the sliding-window classifier.

    Each pixel gets the mean, or the maximum, over the windows that cover it, of the probability of the question's fact.
    It is a value of each place and no share of the score: a window says what it would be taken for by itself. Pixels
    that no window covers get the value of the nearest that one does. One set of forward passes answers all questions,
    without gradients, so that functions are explained, too; questions about one fact have one map. Cost: a forward pass
    a window, `((side - window) / stride + 1)^2`, of the size of the images, or without `enlarge` of the window.

    Args:
        window: Side of the window in pixels, about that of objects; None for half of the shorter side of the images.
        stride: Pixels from one window to the next; None for half the window.
        border: See `Border`.
        enlarge: Whether windows are brought to the size of the images. A classifier that was trained on whole images of
            the size of the probes wants that: what fills the window then fills the image, as objects did in training,
            and a fixed size of the input, as of ViTs, is kept. Take False where it was trained on images of the size of
            the window, and the probes are larger.
        probability: Whether to show probabilities, 0 to 1, and 0 where an image has no fact; False shows the score of
            the question, which values of regression nets need.
        reduce: `mean`, or `max`, which lets a pixel belong to the best window around it.
        name: What keys begin with.
    """

    name = "sliding_window"
    units: ClassVar[Units] = "relative"

    def __init__(
        self,
        window: int | None = None,
        stride: int | None = None,
        *,
        border: Border = "flush",
        enlarge: bool = True,
        probability: bool = True,
        reduce: Literal["mean", "max"] = "mean",
        name: str | None = None,
    ) -> None:
        require_bool("enlarge", enlarge)
        require_bool("probability", probability)
        require_choice("reduce", reduce, ("mean", "max"))
        super().__init__(window, stride, border, name)
        self.enlarge, self.probability, self.reduce = enlarge, probability, reduce

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Settle the windows for the size of the images, and see that the model runs on them."""
        if self.probability and not trace.subject.task.classifies:
            raise ConfigurationError(
                f"Expected classes or labels for {type(self).__name__}(), but got {trace.subject.task.kind} probes, "
                "whose values have no probability. Use `probability=False`, which shows the score of each question."
            )
        windows = self.windows(trace.images)
        count, side = math.prod(windows.grid), windows.side
        if not self.enlarge:
            try:
                with torch.no_grad():
                    trace.subject(next(windows.cut(trace.images.detach(), 2))[0])
            except Exception as error:
                raise ConfigurationError(
                    f"Expected a model that runs on windows of {side} x {side} pixels, but it raised {in_words(error)} "
                    "Use `enlarge=True`, which brings them to the size of the images."
                ) from error
        return Plan(reason=f"{count} windows of {side} x {side} pixels, each on its own", cost=count)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One forward pass a window for all questions, `chunk_size` windows at a time."""
        images, done = observation.images, 0
        windows = self.windows(images)

        def score(parts: Tensor, rows: Tensor) -> Tensor:
            nonlocal done
            done += len(parts)
            observation.progress(done / (plan.cost * len(images)))
            if not self.probability:
                return observation.scores(parts, rows)
            found = observation.subject.task.probabilities(observation.subject(parts))
            return torch.stack([pick(found, posed.rows(rows).fact) for posed in observation.posed])

        with torch.no_grad():
            grid = window_scores(
                score, images, windows, enlarge=self.enlarge, chunk_size=observation.chunk_size
            ).float()
        size = (images.shape[-2], images.shape[-1])
        return windows.spread(grid, size, torch.mean if self.reduce == "mean" else torch.amax)
