"""Warnings that point at the line of the user, however deep inside this room they arise."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_user"]


def warn_user(message: str) -> None:
    """Warn with a `UserWarning` attributed to the first caller outside `xai_callbacks`.

    Python shows a warning once for each source line, so a warning attributed to our own line would be shown for the
    first probe set of a process only.
    """
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("xai_callbacks."):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)
