"""Audits in Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks.base import Sink
from xai_callbacks.sinks.words import tag_path

__all__ = ["WandbSink"]


class WandbSink(Sink):
    """Logs the pictures of an audit, with captions, to a run of Weights & Biases, online or offline.

    All of an audit is one row of the run, with the step under `step_key`: wandb's own step counts rows. Keys are tags,
    cut where they are too long for a file.

    Args:
        run: The run, as of `wandb.init` or `WandbLogger(...).experiment`.
        step_key: Key of the step on the x-axis; that of Lightning's logger by default.

    Raises:
        ConfigurationError: An argument is of a wrong type.
    """

    def __init__(self, run: Any, *, step_key: str = "trainer/global_step") -> None:
        if not callable(getattr(run, "log", None)):
            raise ConfigurationError(f"Expected `run` to be a run of wandb, as of `wandb.init`, but got {run!r}.")
        require_instance("step_key", step_key, str, "a text")
        self._run = run
        self._step_key = step_key

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Log one audit."""
        import wandb

        row: dict[str, object] = {}
        with TemporaryDirectory(prefix="xai_callbacks_") as folder:  # wandb copies the files as they are
            for number, picture in enumerate(pictures):
                path = Path(folder, f"{number}{picture.suffix}")
                path.write_bytes(picture.encoded())
                row[tag_path(picture.tag)] = wandb.Image(str(path), caption=picture.caption or None)
            if row:
                self._run.log({**row, self._step_key: record.step})
