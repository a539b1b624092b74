"""Models as the command line names them: paths of runs, histories, records, audited checkpoints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xai_callbacks.history import History


def models_at(paths: Sequence[str]) -> "dict[str, History]":
    """Histories by the name of the model; an `AuditError` if the latest audit of one cannot be read."""
    from xai_callbacks.compare import read_models

    return read_models(paths)
