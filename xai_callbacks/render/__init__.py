"""Arrays to pixels: a fixed colour scale, heat over photos, and one kit of which all pages are set."""

from xai_callbacks.render.charts import field_chart, line_chart
from xai_callbacks.render.colors import ColorScale
from xai_callbacks.render.overlay import overlay, upsample
from xai_callbacks.render.page import Cell, Line, Row, encoded, render_page
from xai_callbacks.render.paper import Tone

__all__ = [
    "Cell", "ColorScale", "Line", "Row", "Tone", "encoded", "field_chart", "line_chart", "overlay", "render_page",
    "upsample",
]  # fmt: skip
