"""Lightning adapters over the auditor."""

from xai_callbacks.callbacks.audit import AuditCallback
from xai_callbacks.callbacks.checkpoints import audit_checkpoints
from xai_callbacks.callbacks.group_accuracy import GroupAccuracy
from xai_callbacks.callbacks.monitor import ShortcutMonitor
from xai_callbacks.callbacks.schedule import Schedule
from xai_callbacks.callbacks.validation_novelty import ValidationNovelty
from xai_callbacks.callbacks.watch import Seen, Watch

__all__ = [
    "AuditCallback", "GroupAccuracy", "Schedule", "Seen", "ShortcutMonitor", "ValidationNovelty", "Watch",
    "audit_checkpoints",
]  # fmt: skip
