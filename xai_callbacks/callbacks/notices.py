"""`Notices`: what a callback says, each thing once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from xai_callbacks._lightning import Trainer
from xai_callbacks.errors import DroppedError

__all__ = ["Notices", "OnError"]

OnError = Literal["warn", "raise"]


class Notices:
    """What was said so far, and how to say more."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, trainer: Trainer, message: str, *, loud: bool = False) -> None:
        """Say something once, where Lightning says its own; loud as a warning."""
        if message and message not in self._told and trainer.is_global_zero:
            self._told.add(message)
            # A user's own Trainer class lives elsewhere; Lightning's is among its ancestors.
            homes = [cls.__module__ for cls in type(trainer).__mro__ if "lightning" in cls.__module__]
            logger = logging.getLogger(next(iter(homes), __name__))
            logger.log(logging.WARNING if loud else logging.INFO, message)

    @contextmanager
    def forgiving(self, on_error: OnError, happened: str = "An audit failed and training goes on.") -> Iterator[None]:
        """Report what fails inside, once for each kind of error, instead of ending the run.

        What only depends on the speed of the machine never ends it.
        """
        try:
            yield
        except Exception as error:
            fatal = not isinstance(error, DroppedError)
            if on_error == "raise" and fatal:
                raise
            kind = type(error).__name__
            if f"{happened} {kind}" not in self._told:
                self._told.add(f"{happened} {kind}")
                hint = " (on_error='raise' would stop at the first failing audit.)" if fatal else ""
                warnings.warn(f"{happened} {kind}: {error}{hint}", stacklevel=2)

    def forget(self) -> None:
        """Begin anew."""
        self._told.clear()
