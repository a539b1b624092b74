"""The sink that suits a logger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xai_callbacks.sinks.base import Sink
from xai_callbacks.sinks.folder import FolderSink
from xai_callbacks.sinks.image_logger import ImageLoggerSink
from xai_callbacks.sinks.mlflow import MLflowSink
from xai_callbacks.sinks.tensorboard import TensorBoardSink
from xai_callbacks.sinks.wandb import WandbSink

__all__ = ["sink_for"]


def sink_for(logger: Any, *, folder: str | os.PathLike[str] | None = None, name: str = "audit") -> Sink | None:
    """A sink for the pictures of a run, by what its logger can do: the two Lightning packages have different classes.

    | the logger has | sink |
    |---|---|
    | `experiment.add_image` | `TensorBoardSink`, without scalars |
    | `experiment.log` and `.define_metric` | `WandbSink` |
    | `experiment.log_artifact` and a `run_id` | `MLflowSink` |
    | `log_image` | `ImageLoggerSink` |
    | none of these | `FolderSink` in `folder`, or in `<name>_pictures` beside the files of the logger |

    Args:
        logger: A Lightning logger; None for a trainer without one.
        folder: Where pictures go that the logger does not take; None for beside its own files, if it has any.
        name: What all tags begin with.

    Returns:
        The sink; None if the logger takes no pictures and there is no folder.
    """
    experiment = getattr(logger, "experiment", None)
    if _can(experiment, "add_image"):
        # The prefix has no public name; without it, only the charts of the custom scalars page would be lost.
        prefix = getattr(logger, "_prefix", "")
        joined = f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}" if prefix and isinstance(prefix, str) else ""
        return TensorBoardSink(experiment, scalars=False, tag_prefix=joined, name=name)
    if _can(experiment, "log", "define_metric"):
        return WandbSink(experiment)
    if _can(experiment, "log_artifact", "log_text") and isinstance(getattr(logger, "run_id", None), str):
        return MLflowSink(experiment, logger.run_id, name=name)
    if _can(logger, "log_image"):
        return ImageLoggerSink(logger)
    if folder is None and isinstance(place := getattr(logger, "log_dir", None), str | os.PathLike):
        folder = Path(place) / f"{name}_pictures"
    return None if folder is None else FolderSink(folder)


def _can(thing: Any, *methods: str) -> bool:
    return all(callable(getattr(thing, method, None)) for method in methods)
