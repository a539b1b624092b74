"""Pictures to any logger with `log_image`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks.base import Sink

__all__ = ["ImageLoggerSink"]


class ImageLoggerSink(Sink):
    """Hands pictures to `logger.log_image(key, images, step)`, with `caption` where that is taken.

    Images are arrays `(H, W, 3)` uint8 in lists of one, captions likewise, as Lightning's logger for W&B takes them.

    Args:
        logger: The logger.

    Raises:
        ConfigurationError: The logger has no `log_image`.
    """

    def __init__(self, logger: Any) -> None:
        if not callable(getattr(logger, "log_image", None)):
            raise ConfigurationError(f"Expected `logger` to have `log_image(key, images, step)`, but got {logger!r}.")
        self._logger = logger

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Log the pictures of one audit."""
        taken = inspect.signature(self._logger.log_image).parameters.values()
        captions = any(each.name == "caption" or each.kind is each.VAR_KEYWORD for each in taken)
        for picture in pictures:
            more = {"caption": [picture.caption]} if captions and picture.caption else {}
            self._logger.log_image(key=picture.tag, images=[picture.pixels], step=picture.step, **more)
