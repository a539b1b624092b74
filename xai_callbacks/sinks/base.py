"""`Sink`: where records and pictures go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord

__all__ = ["Sink"]


class Sink(ABC):
    """Takes records and pictures. A sink that raises or blocks costs its own pictures, never the run."""

    @abstractmethod
    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Write one audit. While Lightning trains, called on a thread of its own, one audit after another.

        Args:
            record: The audit, with its findings.
            pictures: Its pictures; they are drawn while they are taken, or were before.
        """

    def close(self) -> None:  # noqa: B027  # most sinks hold nothing back
        """Finish what was begun; nothing is written afterwards."""
