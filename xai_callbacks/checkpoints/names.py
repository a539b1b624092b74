"""Names of checkpoints, which folders can have."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from xai_callbacks.checkpoints.building import is_named


def names_of(sources: Sequence[str]) -> list[str]:
    """Short names, all different: of files their stems, of models of libraries their last parts.

    Where those are not all different, the parts of the paths that differ; else with numbers before them.
    """
    paths = [Path(source) for source in sources]
    # What looks like the suffix of a model of a library tells of its weights, as in timm/resnet50.a1_in1k.
    lasts = [path.name if is_pretrained(source) else path.stem for source, path in zip(sources, paths, strict=True)]
    parts = [(*path.parts[:-1], last) for path, last in zip(paths, lasts, strict=True)]
    alike = set(parts[0]).intersection(*parts) if parts else set()
    apart = ["-".join(part for part in each if part not in alike) for each in parts]
    for names in (lasts, apart):
        safe = [_safe(name) for name in names]
        if len(set(safe)) == len(safe):
            return safe
    return [f"{place}-{_safe(last)}" for place, last in enumerate(lasts)]


def is_pretrained(source: str) -> bool:
    """Whether a source is a model of a library, with the weights that come with it; a file goes first."""
    return is_named(source) and not os.path.exists(source)


def _safe(name: str) -> str:
    """A name as `require_name` wants it."""
    safe = re.sub(r"[^\w.-]", "_", name)
    return safe if safe.strip(".") else "_" * max(1, len(safe))
