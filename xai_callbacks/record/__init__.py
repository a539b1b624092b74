"""Records: the result of one audit as plain data. Imports nothing else of the package but its errors."""

from xai_callbacks.record.audit_record import SCHEMA, AuditRecord, versions
from xai_callbacks.record.summary import FEWEST_FOR_INTERVAL, interval, summarize
from xai_callbacks.record.values import Estimate, Finding, Key, MapSet, Measured, Onset, PerProbe, plain

__all__ = [
    "FEWEST_FOR_INTERVAL", "SCHEMA", "AuditRecord", "Estimate", "Finding", "Key", "MapSet", "Measured", "Onset",
    "PerProbe", "interval", "plain", "summarize", "versions",
]  # fmt: skip
