"""What is told during a run, each thing once; and what is kept quiet."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from tqdm import tqdm

from xai_callbacks._lightning import Trainer
from xai_callbacks.errors import DroppedError

OnError = Literal["warn", "raise"]


class Notices:
    """What was said so far, and how to say more; `on_error` tells whether what fails is said, or raised."""

    def __init__(self, on_error: OnError) -> None:
        self.told: set[str] = set()
        self._on_error = on_error

    def tell(self, trainer: Trainer, message: str, *, loud: bool = False) -> None:
        """Say something once, where Lightning says its own; loud as a warning."""
        if message and message not in self.told and trainer.is_global_zero:
            self.told.add(message)
            # A user's own Trainer class lives elsewhere; Lightning's is among its ancestors.
            homes = [cls.__module__ for cls in type(trainer).__mro__ if "lightning" in cls.__module__]
            logging.getLogger(homes[0] if homes else __name__).log(logging.WARNING if loud else logging.INFO, message)

    @contextmanager
    def forgiving(
        self, happened: str = "An audit failed and training goes on.", on_error: OnError | None = None
    ) -> Iterator[None]:
        """Report what fails inside, once for each kind of error, instead of ending the run.

        What only depends on the speed of the machine never ends it.
        """
        try:
            yield
        except Exception as error:
            fatal = not isinstance(error, DroppedError)
            if (on_error or self._on_error) == "raise" and fatal:
                raise
            kind = f"{happened} {type(error).__name__}"
            if kind not in self.told:
                self.told.add(kind)
                hint = " (on_error='raise' would stop at the first failing audit.)" if fatal else ""
                warnings.warn(f"{kind}: {error}{hint}", stacklevel=2)


@contextmanager
def without_logging(module: nn.Module) -> Iterator[None]:
    """A `forward` that calls `self.log` must neither log probes as data nor fail where Lightning forbids it."""
    names = [name for name in ("log", "log_dict") if hasattr(module, name)]
    own = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(dict.fromkeys(names, lambda *_, **__: None))
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(own)


@contextmanager
def progress(trainer: Trainer, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that appears when an audit takes more than a second."""
    hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with tqdm(total=total, desc="Audit", unit=" probes", delay=1.0, leave=False, disable=hidden) as bar:
        yield lambda done: bar.update(done - bar.n)
