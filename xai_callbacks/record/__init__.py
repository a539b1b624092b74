"""Records: the result of one audit as plain data. Imports nothing else of the package but its errors."""

from xai_callbacks.record.audit_record import AuditRecord, versions
from xai_callbacks.record.files import SCHEMA
from xai_callbacks.record.values import Estimate, Finding, Key, MapSet, Onset, PerProbe

__all__ = ["SCHEMA", "AuditRecord", "Estimate", "Finding", "Key", "MapSet", "Onset", "PerProbe", "versions"]
