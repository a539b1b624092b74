"""One look at one model state."""

from xai_callbacks.audit.auditor import Auditor

__all__ = ["Auditor"]
