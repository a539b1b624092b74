"""Histories and probes on disk, found by the paths that users give."""

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.history import RECORD_FILE, History
from xai_callbacks.probes.files import FILE_NAME
from xai_callbacks.record import AuditRecord

_VERSION = re.compile(r"version_[0-9]+")
_NEAR = 4  # folders from a record upwards in which its probes may lie


def read_models(paths: Sequence[str | os.PathLike[str]], *, latest: bool = True) -> dict[str, History]:
    """Read the models of some paths, by the parts of their paths in which they differ.

    Args:
        paths: Each the folder of a run, of audited checkpoints or of any of these (each history below it is a model),
            or one file of `AuditRecord.save`.
        latest: Whether the latest audit must be readable; else an earlier one may stand for it.

    Raises a `ConfigurationError` for a path without audits, or whose audits cannot be read, and an `AuditError` for a
    file that is no record, or a history whose latest audit cannot be read.
    """
    places = _places(paths)
    models = {}
    for name, place in zip(_names(places), places, strict=True):
        history = History().with_record(AuditRecord.load(place)) if place.is_file() else History(place)
        if not history:
            why = " ".join(history.unreadable.values()) or "It is empty."
            raise ConfigurationError(f"Expected audits in {str(place)!r}, but none can be read. {why}")
        if latest and history.latest_unreadable:  # or an earlier one would pass for it
            raise AuditError(history.latest_unreadable)
        _require_whole(history, place)
        models[name] = history
    return models


def _require_whole(history: History, place: Path) -> None:
    """Refuse a latest record in which not all that is said of each probe is there."""
    record = history[-1]
    answers = [getattr(record, name) for name in ("outputs", "predictions", "confidences", "correct", "truth")]
    tensors = [*answers, *record.per_probe.values(), *record.scores.values()]
    counts = {each.shape[0] if each.ndim else -1 for each in tensors if each is not None}
    counts |= {each.heatmaps.shape[1] if each.heatmaps.ndim == 4 else -1 for each in record.maps.values()}
    counts |= set(map(len, record.titles))
    if not record.thinned and counts - {len(record.names)}:
        found = map(RECORD_FILE.fullmatch, os.listdir(place) if place.is_dir() else ())
        names = {int(each[1]): each[0] for each in found if each is not None}
        file = place.joinpath(*(names[number] for number in sorted(names.keys() - history.unreadable)[-1:]))
        raise AuditError(
            f"Expected a file of `AuditRecord.save`, but {str(file)!r} is damaged: it has names of "
            f"{len(record.names)} probes, but not as many answers. Audit the model again."
        )


def find_probes(paths: Sequence[str | os.PathLike[str]]) -> Path | None:
    """The file of probes that lies nearest to the audits of some paths; None if there is none."""
    for place in _places(paths):
        for folder in place.absolute().parents[:_NEAR]:
            if (folder / FILE_NAME).is_file():
                return folder / FILE_NAME
    return None


def _places(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files of records, and folders that hold some, each once."""
    found: list[Path] = []
    for path in map(Path, paths):
        below = [path]
        if not path.is_file():
            below = sorted(Path(folder) for folder, _, files in os.walk(path) if any(map(RECORD_FILE.fullmatch, files)))
        if not below:
            raise ConfigurationError(
                f"Expected `paths` to lead to audits, but there are none in {str(path)!r}. Give the folder of a run of "
                "AuditCallback, of audited checkpoints, or a file of AuditRecord.save."
            )
        found += below
    return list({place.resolve(): place for place in found}.values())


def _names(places: Sequence[Path]) -> list[str]:
    """The parts of paths in which they differ; of a single one the last that says something."""
    parts = [_telling(place.resolve()) for place in places]
    if len(parts) == 1:
        (own,) = parts
        return [own[-2] if _VERSION.fullmatch(own[-1]) and len(own) > 2 else own[-1]]
    first, last = (_shared(side) for side in (parts, [each[::-1] for each in parts]))
    first = min(first, min(map(len, parts)) - 1)  # each keeps one part at least
    last = min(last, min(map(len, parts)) - first - 1)
    names = ["/".join(each[first : len(each) - last]) for each in parts]
    # Folders named `history` or `audit` may make two alike.
    return names if len(set(names)) == len(names) else [f"{place}: {name}" for place, name in enumerate(names, start=1)]


def _telling(place: Path) -> tuple[str, ...]:
    """The parts of a path without the folders that each run has: `<run>/audit/history`, or `<checkpoint>/history`."""
    if place.is_file():
        # A dot in the name of a folder, as in strength-0.1, begins no suffix.
        return (*_owner(place.parent).parts, place.stem)
    owner = _owner(place)
    # Probes lie beside the history of a run, and beside the folders of checkpoints, of which one may be called audit.
    beside, above = ((folder / FILE_NAME).is_file() for folder in (owner, owner.parent))
    return owner.parts if owner.name != "audit" or (above and not beside) else owner.parts[:-1]


def _owner(folder: Path) -> Path:
    return folder.parent if folder.name == "history" else folder


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """Number of parts with which all begin."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
