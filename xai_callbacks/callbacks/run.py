"""`Run`: the history of one training run, its place beside the logs, and how a resumed run continues it."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from xai_callbacks._lightning import Trainer
from xai_callbacks.audit.results import weights_hash
from xai_callbacks.history import History


class Run:
    """Memory of one run: everything that is known of earlier audits is in its history."""

    def __init__(self) -> None:
        self.identity = ""  # a random name, which a resumed run keeps
        self.folder: Path | None = None  # beside the logs; None where nothing is kept on disk
        self.history = History()
        self.trainer: int | None = None  # `id` of the trainer, by which another run is told from a second `fit`

    def begin(self, trainer: Trainer, name: str) -> None:
        """Begin a new run, in a folder of its own."""
        self.trainer, self.identity = id(trainer), secrets.token_hex(8)
        self.folder = _fresh(_place(trainer, name))
        self.history = History(self._records(trainer))

    def resume(self, trainer: Trainer, name: str, state: Mapping[str, Any]) -> str:
        """Continue a run, of which a checkpoint has identity and history; returns sentences on what was lost."""
        self.trainer, self.identity = id(trainer), str(state["run"])
        before, wanted = folder_of(state), _place(trainer, name)
        goes_on = before is not None and wanted is not None and before.parent == wanted.absolute().parent
        self.folder = before if goes_on else _fresh(wanted)
        history = state["history"]
        self.history, lost = History.resumed(history, self._records(trainer), int(history["step"]))
        return lost

    def note_loaded(self, trainer: Trainer, module: nn.Module) -> None:
        """Remember the checkpoint from which a run was resumed, if the latest audit was of its weights."""
        last = self.history.last
        if last is not None and last.weights and last.weights == weights_hash(module):
            self.note(trainer.ckpt_path)

    def note(self, checkpoint: object) -> None:
        """Remember the checkpoint of the latest audit, a path; None if none is known."""
        last = self.history.last
        if checkpoint and last is not None and last.checkpoint != str(checkpoint):
            self.history.replace_last(checkpoint=str(checkpoint))

    def _records(self, trainer: Trainer) -> Path | None:
        """Where records are written; each process remembers them, one writes them."""
        return self.folder / "history" if self.folder is not None and trainer.is_global_zero else None


def folder_of(state: Mapping[str, Any]) -> Path | None:
    """Folder of the run of which a checkpoint has this, if it is still there."""
    folder = state["history"].get("folder")
    return Path(folder).parent if folder is not None and Path(folder).is_dir() else None


def checkpoint_of(trainer: Trainer, step: int | None) -> str | None:
    """Path of the checkpoint that is validated, or was saved after that many optimizer steps; None if none is known."""
    if trainer.state.fn == "validate" and trainer.ckpt_path:
        return str(trainer.ckpt_path)
    for callback in trainer.checkpoint_callbacks:
        # Private, but the only names under which step and path are kept whatever the callback monitors.
        path = getattr(callback, "_last_checkpoint_saved", "")
        if path and path == getattr(callback, "last_model_path", ""):
            # Each save overwrites `last.ckpt`; a file of its own, if there is one, was saved just before.
            kept = getattr(callback, "best_k_models", None) or {getattr(callback, "best_model_path", ""): None}
            path = next(reversed(kept))
        if path and getattr(callback, "_last_global_step_saved", None) == step:
            return str(path)
    return None


def _place(trainer: Trainer, name: str) -> Path | None:
    """Folder beside the logs; a collective operation. None in a `fast_dev_run`, which leaves nothing behind."""
    place = trainer.log_dir
    return None if place is None or getattr(trainer, "fast_dev_run", False) else Path(place) / name


def _fresh(folder: Path | None) -> Path | None:
    """The folder, or if another run has left something there, the next number."""
    if folder is None:
        return None
    number, found = 1, folder
    while found.exists() and (found.is_file() or any(found.iterdir())):
        found, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return found
