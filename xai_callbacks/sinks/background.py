"""Sinks off the training thread: a slow one is waited for at the end, a blocked one costs its own pictures."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from xai_callbacks.errors import AuditError, DroppedError
from xai_callbacks.gallery import Picture
from xai_callbacks.history import History
from xai_callbacks.sinks.base import Sink

__all__ = ["Background"]


class Background:
    """Draws the pictures of each audit once and has every sink write them, each on a daemon thread of its own.

    Nothing that a sink or the drawing does reaches the caller: whatever it raises, `SystemExit` included, is kept for
    `errors` and costs that sink this audit. While `capacity` audits wait for a sink, further ones are dropped for it.

    Args:
        sinks: The sinks.
        draw: Draws the pictures of the last audit of a history; called on another thread.
        capacity: Audits that may wait for a sink.
    """

    def __init__(
        self, sinks: Sequence[Sink], draw: Callable[[History], Iterable[Picture]], *, capacity: int = 8
    ) -> None:
        self.__setstate__((tuple(sinks), draw, capacity))

    def submit(self, history: History) -> None:
        """Have the last audit drawn and written soon. Returns at once."""
        if self._process != os.getpid():  # a fork has no threads
            self.__setstate__(self._made_of)
        if (record := history.last) is not None:
            pictures = _Drawn(partial(self._made_of[1], history[:]), self._drawing)
            for writer in self._writers:
                writer.submit(partial(writer.sink.write, record, pictures))

    def drain(self, timeout: float = 60.0) -> None:
        """Wait until everything is written, at most so many seconds for all sinks together.

        A sink that is not done by then is given up: `errors` names it, and it is not waited for again while it hangs.
        """
        until = time.monotonic() + timeout
        for writer in self._writers if self._process == os.getpid() else ():
            writer.drain(until)

    def close(self, timeout: float = 60.0) -> None:
        """Drain, and close the sinks that do not hang."""
        until = time.monotonic() + timeout
        self.drain(timeout)
        for writer in self._writers if self._process == os.getpid() else ():
            if not writer.hangs:
                writer.submit(writer.sink.close)
        self.drain(until - time.monotonic())

    def errors(self) -> list[AuditError]:
        """What went wrong since the last call, each once, in sentences that name the sink; causes are attached."""
        found = [self._drawing.popleft() for _ in range(len(self._drawing))]
        return found + [error for writer in self._writers for error in writer.taken()]

    def __getstate__(self) -> tuple[Any, ...]:
        """Without threads and what waits for them."""
        return self._made_of

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._made_of = state
        self._process = os.getpid()
        self._writers = [_Writer(sink, state[2]) for sink in state[0]]
        self._drawing = _Errors(maxlen=10)


class _Errors(deque[AuditError]):
    """The latest errors, equal ones once: each keeps alive what raised it."""

    def add(self, what: str, cause: BaseException) -> None:
        told = "".join(traceback.format_exception_only(cause)).splitlines()[0].rstrip(".")
        error = AuditError(f"{what}: {told}.")
        error.__cause__ = cause
        if str(error) not in map(str, list(self)):
            self.append(error)


class _Drawn:
    """Pictures that are drawn as the first sink takes them, and kept for the others."""

    def __init__(self, draw: Callable[[], Iterable[Picture]], errors: _Errors) -> None:
        self._source = _until_it_fails(draw, errors)
        self._drawn: list[Picture] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Picture]:
        place = 0
        while True:
            with self._lock:
                if place == len(self._drawn):
                    if (picture := next(self._source, None)) is None:
                        return
                    self._drawn.append(picture)
            yield self._drawn[place]
            place += 1


def _until_it_fails(draw: Callable[[], Iterable[Picture]], errors: _Errors) -> Iterator[Picture]:
    try:
        yield from draw()
    except GeneratorExit:
        raise
    except BaseException as error:  # what is drawn by then is shown
        errors.add("Pictures could not be drawn", error)


class _Writer:
    """One sink and its thread, which ends when nothing waits."""

    def __init__(self, sink: Sink, capacity: int) -> None:
        self.sink = sink
        self.hangs = False  # whether it was given up and has not come back since
        self._capacity = capacity
        self._name = type(sink).__name__
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._errors = _Errors(maxlen=10)

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            if len(self._jobs) >= self._capacity:
                self._dropped += 1
                return
            self._jobs.append(job)
            if self._thread is None or not self._thread.is_alive():
                self.hangs = False
                self._thread = threading.Thread(target=self._work, name=f"xai-callbacks {self._name}", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:  # no thread can be started any more
                    self._thread = None
                    self._jobs.clear()
                    self._errors.add(f"{self._name} failed", error)

    def drain(self, until: float) -> None:
        if (thread := self._thread) is None:
            return
        if waited := not self.hangs:
            thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            self.hangs = thread.is_alive() and self._thread is thread
            if self.hangs:  # nothing more is written, should it come back
                self._dropped += len(self._jobs) + waited
                self._jobs.clear()

    def taken(self) -> list[AuditError]:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        told = f"Pictures of {dropped} audits were dropped, because {self._name} is slow or blocked."
        found = [self._errors.popleft() for _ in range(len(self._errors))]
        return [*found, DroppedError(told)] if dropped else found

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:  # a library that gives up must not end the thread, nor the run
                self._errors.add(f"{self._name} failed", error)
            self.hangs = False
