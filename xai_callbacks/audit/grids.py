"""`bounded`: heatmaps at pixel size, kept on a grid that bounds memory, pictures and checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["MOST_CELLS", "bounded"]

MOST_CELLS = 64
"""Most cells a side of a heatmap that is kept; small images keep every pixel."""


def bounded(heatmaps: Tensor) -> Tensor:
    """Heatmaps `(..., h, w)` on a grid of at most `MOST_CELLS` cells a side, with the same sums.

    Each cell of the new grid gets what lies in it; a cell that lies in two is divided by area.
    """
    height, width = heatmaps.shape[-2:]
    factor = math.ceil(max(height, width) / MOST_CELLS)
    if factor <= 1:
        return heatmaps
    rows, columns = (_shares(side, math.ceil(side / factor)).to(heatmaps) for side in (height, width))
    return rows @ heatmaps @ columns.T


def _shares(fine: int, coarse: int) -> Tensor:
    """Share of each fine cell in each coarse one, `(coarse, fine)`; columns add up to 1."""
    edges = torch.arange(fine + 1, dtype=torch.float64) * coarse / fine
    bounds = torch.arange(coarse, dtype=torch.float64)[:, None]
    low, high = edges[:-1].clamp(bounds, bounds + 1), edges[1:].clamp(bounds, bounds + 1)
    return (high - low) * fine / coarse
