"""One self-contained HTML page of a run, or of models compared."""

from xai_callbacks.report.page import write_html

__all__ = ["write_html"]
