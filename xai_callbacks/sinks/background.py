"""Work that need not hold up training: one thread, a bounded queue, nothing lost."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["BackgroundWriter"]

_Job = Callable[[], None]


class BackgroundWriter:
    """Runs jobs one after another on a thread of its own.

    At most `capacity` jobs wait; a further `submit` blocks until one is done, so memory stays bounded and no job is
    dropped. The thread is started by the first job and ended by `drain`.

    Args:
        capacity: Jobs that may wait.
    """

    def __init__(self, capacity: int = 2) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=capacity)
        self._thread: threading.Thread | None = None
        self._errors: deque[Exception] = deque()

    def submit(self, job: _Job) -> None:
        """Run `job` later; its exception, if it raises one, is kept for `errors`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="xai-callbacks-writer", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until every job is done, and end the thread. The writer can be used again."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def errors(self) -> list[Exception]:
        """Exceptions of jobs since the last call."""
        return [self._errors.popleft() for _ in range(len(self._errors))]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # whatever a logger or a disk raises must not end the thread
                self._errors.append(error)
