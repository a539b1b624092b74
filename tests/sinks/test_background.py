"""The writer thread: order, bounds, errors, and an end that waits."""

from __future__ import annotations

import threading

import pytest

from xai_callbacks.sinks import BackgroundWriter

TIMEOUT = 30  # seconds; only a failing test waits that long


def test_jobs_run_in_the_order_in_which_they_came():
    done = []
    writer = BackgroundWriter()
    for number in range(20):
        writer.submit(lambda number=number: done.append(number))
    writer.drain()
    assert done == list(range(20))


def test_jobs_run_off_the_calling_thread():
    threads = []
    writer = BackgroundWriter()
    writer.submit(lambda: threads.append(threading.current_thread()))
    writer.drain()
    assert threads[0] is not threading.current_thread()


def test_full_queue_blocks_the_caller_until_a_job_is_done():
    gate, started, third = threading.Event(), threading.Event(), threading.Event()
    writer = BackgroundWriter(capacity=1)
    writer.submit(lambda: (started.set(), gate.wait(TIMEOUT)))
    assert started.wait(TIMEOUT)  # one job runs,
    writer.submit(lambda: None)  # one waits,

    caller = threading.Thread(target=lambda: (writer.submit(lambda: None), third.set()))
    caller.start()  # and one finds no room
    assert not third.wait(0.2)
    gate.set()
    assert third.wait(TIMEOUT)
    caller.join(TIMEOUT)
    writer.drain()


def test_drain_waits_for_every_job_and_ends_the_thread():
    before = threading.active_count()
    gate, done = threading.Event(), []
    writer = BackgroundWriter()
    writer.submit(lambda: (gate.wait(TIMEOUT), done.append(1)))
    writer.submit(lambda: done.append(2))
    threading.Timer(0.05, gate.set).start()
    writer.drain()

    assert done == [1, 2]
    assert [thread.name for thread in threading.enumerate()].count("xai-callbacks-writer") == 0
    assert threading.active_count() <= before + 1  # the timer may still be ending


def test_drained_writer_can_be_used_again():
    done = []
    writer = BackgroundWriter()
    for number in range(3):
        writer.submit(lambda number=number: done.append(number))
        writer.drain()
    assert done == [0, 1, 2]


def test_draining_an_unused_writer_does_nothing():
    writer = BackgroundWriter()
    writer.drain()
    assert writer.errors() == []


def test_errors_are_kept_in_order_and_told_once_and_later_jobs_still_run():
    done = []

    def fail(number):
        raise OSError(number)

    writer = BackgroundWriter()
    writer.submit(lambda: fail(1))
    writer.submit(lambda: done.append("between"))
    writer.submit(lambda: fail(2))
    writer.drain()

    assert [error.args for error in writer.errors()] == [(1,), (2,)]
    assert writer.errors() == []
    assert done == ["between"]


def test_what_was_submitted_before_an_exception_is_done_after_draining():
    done = []
    writer = BackgroundWriter()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        try:
            writer.submit(lambda: done.append(1))
            raise KeyboardInterrupt
        finally:
            writer.drain()
    assert done == [1]
