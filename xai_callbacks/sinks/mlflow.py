"""Audits in MLflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xai_callbacks.errors import ConfigurationError, require_instance, require_name
from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks.base import Sink
from xai_callbacks.sinks.words import findings_text, tag_path

__all__ = ["MLflowSink"]


class MLflowSink(Sink):
    """Logs pictures as artifacts `<tag>/step_<step>.jpg` of a run, and findings as `<name>/findings.md`.

    Args:
        client: An `MlflowClient`, as `MLFlowLogger(...).experiment`.
        run_id: The run.
        name: Folder of the findings.

    Raises:
        ConfigurationError: An argument is of a wrong type.
    """

    def __init__(self, client: Any, run_id: str, *, name: str = "audit") -> None:
        if not callable(getattr(client, "log_artifact", None)):
            raise ConfigurationError(f"Expected `client` to be an MlflowClient, but got {client!r}.")
        require_instance("run_id", run_id, str, "a text")
        require_name("`name`", name)
        self._client = client
        self._run_id = run_id
        self._name = name

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Log one audit."""
        if text := findings_text(record):
            self._client.log_text(self._run_id, text, f"{self._name}/findings.md")
        with TemporaryDirectory(prefix="xai_callbacks_") as folder:
            for picture in pictures:
                path = Path(folder, f"step_{picture.step:08d}{picture.suffix}")
                path.write_bytes(picture.encoded())
                self._client.log_artifact(self._run_id, str(path), tag_path(picture.tag))
