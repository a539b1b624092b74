"""Where a record goes."""

from xai_callbacks.sinks.background import BackgroundWriter
from xai_callbacks.sinks.film import Film, FilmFrame
from xai_callbacks.sinks.pictures import PictureBook, color_scale
from xai_callbacks.sinks.rankings import most_novel, write_histograms
from xai_callbacks.sinks.scalars import detail_scalars, finite, main_scalars
from xai_callbacks.sinks.tensorboard import TensorBoardSink
from xai_callbacks.sinks.trend import Trend

__all__ = [
    "BackgroundWriter",
    "Film",
    "FilmFrame",
    "PictureBook",
    "TensorBoardSink",
    "Trend",
    "color_scale",
    "detail_scalars",
    "finite",
    "main_scalars",
    "most_novel",
    "write_histograms",
]
