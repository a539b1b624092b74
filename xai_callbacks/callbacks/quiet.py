"""What surrounds an audit inside a trainer: no logging by the model, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from tqdm import tqdm

from xai_callbacks._lightning import Trainer

__all__ = ["progress", "without_logging"]

# An audit shorter than this, in seconds, shows no progress bar.
_SHOW_PROGRESS_AFTER = 1.0


@contextmanager
def without_logging(module: nn.Module) -> Iterator[None]:
    """A `forward` that calls `self.log` must neither log probes as data nor fail where Lightning forbids it."""
    names = [name for name in ("log", "log_dict") if hasattr(module, name)]
    own = {name: module.__dict__[name] for name in names if name in module.__dict__}
    for name in names:
        module.__dict__[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
        module.__dict__.update(own)


@contextmanager
def progress(trainer: Trainer, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that appears when an audit takes long."""
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    with tqdm(
        total=total, desc="Audit", unit=" probes", delay=_SHOW_PROGRESS_AFTER, leave=False, disable=not shown
    ) as bar:
        yield lambda done: bar.update(done - bar.n)
