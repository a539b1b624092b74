"""Sinks off the training thread: a slow one is waited for at the end, a blocked one costs its own pictures."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from xai_callbacks.errors import AuditError, DroppedError
from xai_callbacks.gallery import Picture
from xai_callbacks.history import History
from xai_callbacks.sinks.base import Sink


class Background:
    """Draws the pictures of each audit once and has every sink write them, each on a daemon thread of its own.

    Nothing that a sink or the drawing raises, `SystemExit` included, reaches the caller: it is kept for `errors` and
    costs that sink this audit. While `capacity` audits wait for a sink, the oldest of them is dropped for a new one.
    `draw` gives the pictures of the last audit of a history; it is called on another thread.
    """

    def __init__(
        self, sinks: Sequence[Sink], draw: Callable[[History], Iterable[Picture]], *, capacity: int = 8
    ) -> None:
        self._draw = draw
        self._drawing = _Errors(maxlen=10)
        self._writers = [_Writer(sink, capacity) for sink in sinks]

    def submit(self, history: History) -> None:
        """Have the last audit drawn and written soon. Returns at once."""
        if (record := history.last) is not None:
            pictures = _Drawn(partial(self._draw, history[:]), self._drawing)
            for writer in self._writers:
                writer.submit(partial(writer.sink.write, record, pictures))

    def drain(self, timeout: float = 60.0) -> None:
        """Wait until everything is written, at most so many seconds for all sinks together.

        A sink that is not done by then is given up: `errors` names it, and it is not waited for again while it hangs.
        """
        until = time.monotonic() + timeout
        for writer in self._writers:
            writer.drain(until)

    def close(self, timeout: float = 60.0) -> None:
        """Drain, and close the sinks that do not hang."""
        until = time.monotonic() + timeout
        self.drain(timeout)
        for writer in self._writers:
            if not writer.hangs:
                writer.submit(writer.sink.close)
        self.drain(until - time.monotonic())

    def errors(self) -> list[AuditError]:
        """What went wrong since the last call, each once, in sentences that name the sink; causes are attached."""
        return self._drawing.taken() + [error for writer in self._writers for error in writer.taken()]


class _Errors(deque[AuditError]):
    """The latest errors, equal ones once: each keeps alive what raised it."""

    def add(self, what: str, cause: BaseException) -> None:
        told = "".join(traceback.format_exception_only(cause)).splitlines()[0].rstrip(".")
        error = AuditError(f"{what}: {told}.")
        error.__cause__ = cause
        if str(error) not in map(str, list(self)):
            self.append(error)

    def taken(self) -> list[AuditError]:
        return [self.popleft() for _ in range(len(self))]


class _Drawn:
    """Pictures that are drawn when the first sink wants them, and kept for the others."""

    def __init__(self, draw: Callable[[], Iterable[Picture]], errors: _Errors) -> None:
        self._draw: Callable[[], Iterable[Picture]] | None = draw
        self._errors = errors
        self._pictures: list[Picture] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Picture]:
        with self._lock:
            draw, self._draw = self._draw, None
            try:
                self._pictures.extend(draw() if draw else ())
            except BaseException as error:  # what is drawn by then is shown
                self._errors.add("Pictures could not be drawn", error)
        return iter(self._pictures)


class _Writer:
    """One sink and its thread, which ends when nothing waits."""

    def __init__(self, sink: Sink, capacity: int) -> None:
        self.sink = sink
        self.hangs = False  # whether it was given up and has not come back since
        self._name = type(sink).__name__
        self._capacity, self._dropped = capacity, 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._errors = _Errors(maxlen=10)

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            if len(self._jobs) >= self._capacity:
                self._jobs.popleft()
                self._dropped += 1
            self._jobs.append(job)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=f"xai-callbacks {self._name}", daemon=True)
                thread.start()
                self._thread = thread

    def drain(self, until: float) -> None:
        if (thread := self._thread) is None:
            return
        thread.join(0.0 if self.hangs else max(0.0, until - time.monotonic()))
        with self._lock:
            if self._thread is not None:
                self._dropped += len(self._jobs) + (not self.hangs)
                self._jobs.clear()  # nothing more is written, should it come back
                self.hangs = True

    def taken(self) -> list[AuditError]:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        told = f"Pictures of {dropped} audits were dropped, because {self._name} is slow or blocked."
        return [*self._errors.taken(), *([DroppedError(told)] if dropped else [])]

    def _work(self) -> None:
        while True:
            with self._lock:
                self.hangs = False
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:  # a library that gives up must not end the thread, nor the run
                self._errors.add(f"{self._name} failed", error)
