"""Sinks: where records and pictures go."""

from xai_callbacks.sinks.background import Background
from xai_callbacks.sinks.base import Sink, detail_scalars, finite, main_scalars
from xai_callbacks.sinks.services import FolderSink, ImageLoggerSink, MLflowSink, WandbSink, sink_for
from xai_callbacks.sinks.tensorboard import TensorBoardSink

__all__ = [
    "Background", "FolderSink", "ImageLoggerSink", "MLflowSink", "Sink", "TensorBoardSink", "WandbSink",
    "detail_scalars", "finite", "main_scalars", "sink_for",
]  # fmt: skip
