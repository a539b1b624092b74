"""Lightning adapters over the Auditor."""

from xai_callbacks.callbacks.audit import AuditCallback

__all__ = ["AuditCallback"]
