"""Heatmaps to pictures: a fixed colour scale, panels and filmstrips. NumPy arrays in, NumPy arrays out."""

from xai_callbacks.render.colors import ColorScale
from xai_callbacks.render.filmstrip import MAX_FRAMES, Frame, render_filmstrip
from xai_callbacks.render.frames import keep_frame_indices
from xai_callbacks.render.furniture import Verdict
from xai_callbacks.render.panel import Tile, render_panel
from xai_callbacks.render.ranking import Ranked, render_ranking
from xai_callbacks.render.resample import upsample

__all__ = [
    "MAX_FRAMES",
    "ColorScale",
    "Frame",
    "Ranked",
    "Tile",
    "Verdict",
    "keep_frame_indices",
    "render_filmstrip",
    "render_panel",
    "render_ranking",
    "upsample",
]
