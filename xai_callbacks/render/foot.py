"""The foot of a page: legend and colour bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from PIL import Image

from xai_callbacks.render.colors import CONTOUR, ColorScale, paint
from xai_callbacks.render.outlines import STYLES, draw_sample
from xai_callbacks.render.overlay import hatch
from xai_callbacks.render.paper import GAP, MARGIN, MUTED, Strip
from xai_callbacks.render.text import clean, line_height, text_width, wrap

__all__ = ["color_bar", "legend"]

SAMPLE: Final = (14, 30)
INDENT: Final = SAMPLE[1] + 8
BAR_HEIGHT: Final = 8
BAR_GROUND: Final = 220.0
# Less than this share of the scale is said to be little.
LITTLE: Final = 0.1


def legend(regions: Mapping[str, int], *, unknown: bool, width: int, size: int) -> Strip:
    """Draw samples of outlines, with the place of its style for each name, and of the hatch if it is used."""
    samples = [(name, draw_sample(STYLES[place % len(STYLES)], SAMPLE)) for name, place in regions.items()]
    samples += [("not finite", hatch(SAMPLE))] * unknown
    strip = Strip(len(samples) * line_height(size), width)
    for place, (name, sample) in enumerate(samples):
        y = place * line_height(size)
        strip.picture.paste(Image.fromarray(sample), (MARGIN, GAP // 2 + y + 1))
        for label in wrap(clean(name), width - INDENT, size, 1):
            strip.text((INDENT, y + size - 2), label, size)
    return strip


def color_bar(scale: ColorScale, peak: float, *, width: int, size: int) -> Strip:
    """Draw the scale with its ends and its unit, and a note if `peak`, the strongest heat, uses little of it."""
    note = f"strongest here: {peak:.2g}, less than a tenth of the scale" if peak < LITTLE * scale.limit else ""
    notes = wrap(note, width, size, 2)
    strip = Strip(BAR_HEIGHT + 6 + line_height(size) * (1 + len(notes)), width)
    unit = "".join(wrap(clean(scale.unit), width // 4, size, 1))
    left, words = text_width("against", size) + 8, width - max(text_width("for", size), text_width(unit, size))
    length, baseline = words - 8 - left, BAR_HEIGHT + 4 + size
    position = np.linspace(-1, 1, length)
    colors, opacity = paint(position)
    opacity[np.abs(np.abs(position) - CONTOUR) <= 2 / length] = 1  # as contours are drawn
    bar = np.rint(BAR_GROUND + (colors - BAR_GROUND) * opacity[:, None]).astype(np.uint8)
    strip.tile((left, 0), bar[None].repeat(BAR_HEIGHT, axis=0))
    strip.text((0, BAR_HEIGHT + 2), "against", size)
    strip.text((words, BAR_HEIGHT + 2), "for", size)
    strip.text((words, baseline), unit, size, MUTED)
    limit = f"{scale.limit:.0f}" if 1000 <= scale.limit < 1e6 else f"{scale.limit:.4g}"
    for place, label in enumerate((f"≤ \N{MINUS SIGN}{limit}", "0", f"≥ {limit}")):
        strip.text((left + place * (length - text_width(label, size)) // 2, baseline), label, size, MUTED)
        x, y = MARGIN + left + place * (length - 1) // 2, GAP // 2 + BAR_HEIGHT
        strip.pen.line((x, y + 1, x, y + 4), fill=MUTED)
    for place, line in enumerate(notes, start=1):
        strip.text((0, baseline + place * line_height(size)), line, size, MUTED)
    return strip
