"""Lightning adapters over the auditors."""

from xai_callbacks.callbacks.audit import AuditCallback
from xai_callbacks.callbacks.groups import Group
from xai_callbacks.callbacks.monitor import ShortcutMonitor
from xai_callbacks.callbacks.novelty import NoveltyCallback

__all__ = ["AuditCallback", "Group", "NoveltyCallback", "ShortcutMonitor"]
