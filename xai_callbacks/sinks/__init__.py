"""Sinks: where records and pictures go."""

from xai_callbacks.sinks.background import Background
from xai_callbacks.sinks.base import Sink
from xai_callbacks.sinks.choosing import sink_for
from xai_callbacks.sinks.folder import FolderSink
from xai_callbacks.sinks.image_logger import ImageLoggerSink
from xai_callbacks.sinks.mlflow import MLflowSink
from xai_callbacks.sinks.scalars import detail_scalars, finite, layout, main_scalars
from xai_callbacks.sinks.tensorboard import TensorBoardSink
from xai_callbacks.sinks.wandb import WandbSink

__all__ = [
    "Background",
    "FolderSink",
    "ImageLoggerSink",
    "MLflowSink",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "detail_scalars",
    "finite",
    "layout",
    "main_scalars",
    "sink_for",
]
