"""One look at one model state."""

from xai_callbacks.audit.auditor import Auditor
from xai_callbacks.audit.novelty_auditor import NoveltyAuditor

__all__ = ["Auditor", "NoveltyAuditor"]
