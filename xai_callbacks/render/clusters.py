"""The clusters of one class at one audit: the mean of each, and what it is a mean of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.render.checks import describe, require_heatmap, require_pixels, require_text
from xai_callbacks.render.colors import ColorScale, require_scale
from xai_callbacks.render.furniture import WRONG_COLOR, ColorBar, Header, Legend
from xai_callbacks.render.overlay import draw_tiles, has_unknown
from xai_callbacks.render.page import INK, MUTED, SMALL_SIZE, TEXT_SIZE, paste_tile, stack
from xai_callbacks.render.resample import fit_image, tile_size
from xai_callbacks.render.text import clean, draw_text, line_height, wrap

__all__ = ["MAX_EXAMPLES", "ClusterExample", "ClusterRow", "render_clusters"]

MAX_EXAMPLES: Final = 6
"""Examples drawn of each cluster."""

THUMBNAIL: Final = 72
BOUNDS: Final = (64, 72)
GAP: Final = 6
MEAN_GAP: Final = 16
CAPTION_GAP: Final = 6
CAPTION_LINES: Final = 3
MIN_WIDTH: Final = 560
BELOW: Final = line_height(SMALL_SIZE) + 2


@dataclass(frozen=True, eq=False)
class ClusterExample:
    """One probe of a cluster.

    Attributes:
        pixels: The probe `(H, W, 3)` uint8, as people see it. Not copied.
        heatmap: Its map `(h, w)`, signed, in the unit of the colour scale. Not copied.
        caption: What stands below it, such as "says 3"; cut if it is wider than the picture.
        wrong: Whether the answer is wrong, which colours the caption.

    Raises:
        ConfigurationError: An attribute is of another kind.
    """

    pixels: NDArray[np.uint8]
    heatmap: NDArray[np.generic]
    caption: str = ""
    wrong: bool = False

    def __post_init__(self) -> None:
        require_pixels(self.pixels)
        require_heatmap("heatmap", self.heatmap)
        require_text("caption", self.caption)


@dataclass(frozen=True, eq=False)
class ClusterRow:
    """One cluster.

    Attributes:
        number: Its number within the class.
        class_name: Name of the class.
        size: Number of its probes.
        mean: The mean of its images and of their maps, in the unit of the colour scale.
        examples: Probes that are typical of it, the most typical first; `MAX_EXAMPLES` are drawn.
        accuracy: Share of right answers in [0, 1]; NaN if it is not known.
        interval: Ends of its interval; None without one.
        p: p-value of errors going with the cluster; NaN without one.
        regions: Share of the relevance in a region, in [0, 1], and how many times the region's area that is, by name of
            the region; NaN shares are left out.

    Raises:
        ConfigurationError: An attribute is of another kind.
    """

    number: int
    class_name: str
    size: int
    mean: ClusterExample
    examples: Sequence[ClusterExample]
    accuracy: float = math.nan
    interval: tuple[float, float] | None = None
    p: float = math.nan
    regions: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_integer("number", self.number, minimum=0)
        require_text("class_name", self.class_name)
        require_integer("size", self.size, minimum=1)
        _require_examples(self.mean, self.examples)

    @property
    def caption(self) -> str:
        """What is known of the cluster, in words: a line, and another one for the regions if there are any."""
        words = [f"cluster {self.number} of class {self.class_name}: {self.size} probe{'s' if self.size > 1 else ''}"]
        if not math.isnan(self.accuracy):
            ends = "" if self.interval is None else f" ({self.interval[0]:.2f}-{self.interval[1]:.2f})"
            words.append(f"accuracy {self.accuracy:.2f}{ends}")
        if not math.isnan(self.p):
            words.append("p < 0.001" if self.p < 0.001 else f"p = {self.p:.{3 if self.p < 0.01 else 2}f}")
        places: list[str] = []
        for name, (share, lift) in self.regions.items():
            if not math.isnan(share):
                area = "" if math.isnan(lift) else f" ({lift:.1f} x area)"
                places.append(f"{100 * share:.0f} %{'' if places else ' of the relevance'} in `{name}`{area}")
        return "\n".join(", ".join(line) for line in (words, places) if line)


def _require_examples(mean: object, examples: object) -> None:
    if not isinstance(mean, ClusterExample):
        raise ConfigurationError(f"Expected `mean` to be a ClusterExample, but got {describe(mean)}.")
    listed = isinstance(examples, Sequence) and all(isinstance(example, ClusterExample) for example in examples)
    if isinstance(examples, str) or not listed:
        raise ConfigurationError(
            f"Expected `examples` to be a sequence of ClusterExamples, but got {describe(examples)}."
        )


def render_clusters(
    rows: Sequence[ClusterRow], *, title: str, subtitle: str = "", scale: ColorScale
) -> NDArray[np.uint8]:
    """Draw clusters below each other: the mean map over the mean image, then typical probes above their maps.

    Args:
        rows: At least one.
        title: Name of the class and step. Cut in its middle if it is too long.
        subtitle: A line below the title, such as how many probes were divided.
        scale: The colour scale, the same for all classes and steps.

    Returns:
        A new RGB picture `(H, W, 3)` uint8, C-contiguous. Equal arguments give equal bytes.

    Raises:
        ConfigurationError: An argument is of another kind, or images differ in size.
    """
    _require_rows(rows)
    require_text("title", title)
    require_text("subtitle", subtitle)
    require_scale(scale)
    size = tile_size(rows[0].mean.pixels.shape[:2], THUMBNAIL, BOUNDS)
    columns = max([1, *(min(len(row.examples), MAX_EXAMPLES) for row in rows)])
    mean_width = 2 * size[1] + round(GAP * size[1] / size[0])
    width = max(mean_width + MEAN_GAP + columns * (size[1] + GAP) - GAP, MIN_WIDTH)
    parts = [_Row.of(row, size, (2 * size[0] + GAP, mean_width), width, scale) for row in rows]
    shown = [example for row in rows for example in (row.mean, *row.examples[:MAX_EXAMPLES])]
    unknown = any(has_unknown(example.heatmap) for example in shown)
    header, legend = Header.of(title, subtitle, None, width), Legend.of({}, unknown, width)
    return stack([header, *parts, legend, ColorBar(scale, width)], width)


def _require_rows(rows: object) -> None:
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, ClusterRow) for row in rows):
        raise ConfigurationError(
            f"Expected `rows` to be a sequence of at least one ClusterRow, but got {describe(rows)}. Leave the picture "
            "out where a class has no cluster."
        )
    sizes = {example.pixels.shape for row in rows for example in (row.mean, *row.examples)}
    if len(sizes) > 1:
        raise ConfigurationError(
            f"Expected all `pixels` to be of one size, but got {sorted(sizes)}. Draw the probes of one probe set."
        )


@dataclass(frozen=True)
class _Row:
    """One cluster: its caption, the large mean on the left, pairs of picture and map beside it.

    Attributes:
        lines: The caption.
        mean: The mean map over the mean image.
        pairs: Picture and map of each example.
    """

    lines: list[str]
    mean: NDArray[np.uint8]
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8], ClusterExample]]

    @classmethod
    def of(cls, row: ClusterRow, size: tuple[int, int], large: tuple[int, int], width: int, scale: ColorScale) -> _Row:
        (mean,) = draw_tiles(fit_image(row.mean.pixels, large), [row.mean.heatmap], [], scale)
        pairs = []
        for example in row.examples[:MAX_EXAMPLES]:
            image, heatmap = draw_tiles(fit_image(example.pixels, size), [None, example.heatmap], [], scale)
            pairs.append((image, heatmap, example))
        return cls(wrap(clean(row.caption, lines=True), width, TEXT_SIZE, CAPTION_LINES), mean, pairs)

    @property
    def height(self) -> int:
        return len(self.lines) * line_height(TEXT_SIZE) + CAPTION_GAP + int(self.mean.shape[0]) + BELOW

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        left, top = at
        for line in self.lines:
            draw_text(pen, (left, top + TEXT_SIZE - 2), line, TEXT_SIZE, INK)
            top += line_height(TEXT_SIZE)
        top += CAPTION_GAP
        baseline = top + self.mean.shape[0] + SMALL_SIZE + 1
        paste_tile(page, self.mean, (left, top))
        draw_text(pen, (left, baseline), "mean", SMALL_SIZE, MUTED)
        left += self.mean.shape[1] + MEAN_GAP
        for image, heatmap, example in self.pairs:
            paste_tile(page, image, (left, top))
            paste_tile(page, heatmap, (left, top + image.shape[0] + GAP))
            for line in wrap(clean(example.caption), image.shape[1] + GAP, SMALL_SIZE, 1):
                draw_text(pen, (left, baseline), line, SMALL_SIZE, WRONG_COLOR if example.wrong else MUTED)
            left += image.shape[1] + GAP
