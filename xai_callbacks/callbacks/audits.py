"""`Audits`: what a callback needs of an auditor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import NoveltyRecord

__all__ = ["Audits"]


class Audits(Protocol):
    """What a `ScheduledCallback` needs of an auditor."""

    probes: ProbeSet

    @property
    def key(self) -> str:
        """What is asked, in one word."""

    def prepare(self, model: nn.Module) -> object:
        """Look at a model once, so that mistakes come to light before training."""

    def describe(self) -> str:
        """What is done to a prepared model, in words."""

    def audit(
        self, model: nn.Module, *, step: int, epoch: int, on_progress: Callable[[int], None] | None
    ) -> NoveltyRecord:
        """Audit one model state."""

    def state_dict(self) -> dict[str, Any]:
        """What the next audit compares itself with."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""

    def forget(self) -> None:
        """Begin anew."""
