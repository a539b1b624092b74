"""`Sink`: where records and pictures go; and what several sinks write alike."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable

from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord

__all__ = ["Sink", "findings_text", "tag_path"]

_LONGEST_PART = 100  # bytes; file systems take 255


class Sink(ABC):
    """Takes records and pictures. A sink that raises or blocks costs its own pictures, never the run."""

    @abstractmethod
    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Write one audit, with its findings, and its pictures, which are drawn when the first sink takes them.

        While Lightning trains, called on a thread of its own, one audit after another.
        """

    def close(self) -> None:  # noqa: B027  # most sinks hold nothing back
        """Finish what was begun; nothing is written afterwards."""


def findings_text(record: AuditRecord) -> str:
    """The findings of an audit as a list in Markdown, the most alarming first, and what failed; empty if nothing is."""
    found = sorted(record.findings, key=lambda each: -(each.value or 0) if each.value == each.value else 0)
    lines = [f"- **{_plain(each.state)}** {_plain(each.sentence)}" for each in found]
    lines += [f"- **left out** {_plain(sentence)}" for sentence in (*record.failed, *record.useless)]
    return "\n".join(lines)


def tag_path(tag: str) -> str:
    """A tag as a relative path that every file system takes; different tags give different paths.

    What is no letter, digit, space or one of `_ - . =` becomes `_`, as do slashes after the third, and long parts are
    cut; a part that was changed ends with a hash of what it was.
    """
    return "/".join(_part(part) for part in tag.split("/", 3))


def _part(part: str) -> str:
    clean = re.sub(r"[^\w .=-]", "_", part).strip(" .")
    clean = clean.encode()[:_LONGEST_PART].decode(errors="ignore") or "_"
    return clean if clean == part else f"{clean}_{hashlib.sha256(part.encode(errors='replace')).hexdigest()[:8]}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*<\[\]])", r"\\\1", " ".join(text.split()))
