"""Sinks for services, loggers and folders, and the choice of one that suits a logger."""

import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xai_callbacks.errors import ConfigurationError, require_instance, require_integer, require_name
from xai_callbacks.files import write_whole
from xai_callbacks.gallery import Picture
from xai_callbacks.history import evenly_spaced
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks.base import Sink, findings_text, tag_path
from xai_callbacks.sinks.tensorboard import TensorBoardSink

_FILE = re.compile(r"step_(\d+)\.(?:jpg|png)")


class WandbSink(Sink):
    """Logs the pictures of an audit, with captions, to a run of Weights & Biases, online or offline.

    All of an audit is one row of the run, with the step under `step_key`: wandb's own step counts rows. Keys are tags,
    cut where they are too long for a file.

    Args:
        run: The run, as of `wandb.init` or `WandbLogger(...).experiment`.
        step_key: Key of the step on the x-axis; that of Lightning's logger by default.

    Raises a `ConfigurationError` if an argument is of a wrong type.
    """

    def __init__(self, run: Any, *, step_key: str = "trainer/global_step") -> None:
        if not _can(run, "log"):
            raise ConfigurationError(f"Expected `run` to be a run of wandb, as of `wandb.init`, but got {run!r}.")
        require_instance("step_key", step_key, str, "a text")
        self._run, self._step_key = run, step_key

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Log one audit."""
        import wandb

        row: dict[str, object] = {}
        with TemporaryDirectory(prefix="xai_callbacks_") as folder:  # wandb copies the files as they are
            for number, picture in enumerate(pictures):
                path = Path(folder, f"{number}{picture.suffix}")
                path.write_bytes(picture.encoded)
                row[tag_path(picture.tag)] = wandb.Image(str(path), caption=picture.caption or None)
            if row:
                self._run.log({**row, self._step_key: record.step})


class MLflowSink(Sink):
    """Logs pictures as artifacts `<tag>/step_<step>.jpg` of a run, and findings as `<name>/findings.md`.

    Args:
        client: An `MlflowClient`, as `MLFlowLogger(...).experiment`.
        run_id: The run.
        name: Folder of the findings.

    Raises a `ConfigurationError` if an argument is of a wrong type.
    """

    def __init__(self, client: Any, run_id: str, *, name: str = "audit") -> None:
        if not _can(client, "log_artifact"):
            raise ConfigurationError(f"Expected `client` to be an MlflowClient, but got {client!r}.")
        require_instance("run_id", run_id, str, "a text")
        require_name("`name`", name)
        self._client, self._run_id, self._name = client, run_id, name

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Log one audit."""
        if text := findings_text(record):
            self._client.log_text(self._run_id, text, f"{self._name}/findings.md")
        with TemporaryDirectory(prefix="xai_callbacks_") as folder:
            for picture in pictures:
                path = Path(folder, f"step_{picture.step:08d}{picture.suffix}")
                path.write_bytes(picture.encoded)
                self._client.log_artifact(self._run_id, str(path), tag_path(picture.tag))


class ImageLoggerSink(Sink):
    """Hands pictures to `logger.log_image(key, images, step)`, with `caption` where that is taken.

    Images are arrays `(H, W, 3)` uint8 in lists of one, captions likewise, as Lightning's logger for W&B takes them.
    Raises a `ConfigurationError` if the logger has no such method.
    """

    def __init__(self, logger: Any) -> None:
        if not _can(logger, "log_image"):
            raise ConfigurationError(f"Expected `logger` to have `log_image(key, images, step)`, but got {logger!r}.")
        self._logger = logger

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Log the pictures of one audit."""
        taken = inspect.signature(self._logger.log_image).parameters.values()
        captions = any(each.name == "caption" or each.kind is each.VAR_KEYWORD for each in taken)
        for picture in pictures:
            more = {"caption": [picture.caption]} if captions and picture.caption else {}
            self._logger.log_image(key=picture.tag, images=[picture.pixels], step=picture.step, **more)


class FolderSink(Sink):
    """Writes pictures to files `<folder>/<tag>/step_<step>.jpg`, and the latest findings to `<folder>/findings.md`.

    Files of one tag sort by step. Of each tag the first, the latest and evenly spaced ones between stay; files of
    earlier runs in the same folder count as earlier steps.

    Args:
        folder: The folder; made when the first audit is written.
        keep: Most pictures of a tag, 2 or more.

    Raises a `ConfigurationError` if `keep` is out of range, or `folder` is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 10) -> None:
        require_integer("keep", keep, minimum=2)
        require_instance("folder", folder, (str, os.PathLike), "the path of a folder")
        if Path(folder).is_file():
            raise ConfigurationError(f"Expected `folder` to be a folder, but got the file {str(folder)!r}.")
        self.folder, self.keep = Path(folder), keep

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Write one audit; no reader ever sees half a file."""
        if text := findings_text(record):
            write_whole(self.folder / "findings.md", f"# Step {record.step}\n\n{text}\n".encode())
        for picture in pictures:
            place = self.folder / tag_path(picture.tag)
            name = f"step_{picture.step:08d}{picture.suffix}"
            write_whole(place / name, picture.encoded, sync=False)
            self._thin(place, name)

    def _thin(self, place: Path, newest: str) -> None:
        """Delete what is one too many, and the same step in another format."""
        files = {path: int(found[1]) for path in place.iterdir() if (found := _FILE.fullmatch(path.name))}
        steps = sorted(set(files.values()))
        kept = {steps[index] for index in evenly_spaced(steps, self.keep)}
        for path, step in files.items():
            if path.name != newest and (step not in kept or path.stem == Path(newest).stem):
                path.unlink(missing_ok=True)


def sink_for(logger: Any, *, folder: str | os.PathLike[str] | None = None, name: str = "audit") -> Sink | None:
    """A sink for the pictures of a run, by what its logger can do: the two Lightning packages have different classes.

    | the logger has | sink |
    |---|---|
    | `experiment.add_image` | `TensorBoardSink`, without scalars |
    | `experiment.log` and `.define_metric` | `WandbSink` |
    | `experiment.log_artifact` and a `run_id` | `MLflowSink` |
    | `log_image` | `ImageLoggerSink` |
    | none of these | `FolderSink` in `folder`, or in `<name>_pictures` beside the files of the logger |

    Returns None if the logger takes no pictures and there is no folder. All tags begin with `name`.
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
