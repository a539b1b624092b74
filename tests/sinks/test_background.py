"""Sinks off the training thread: drawn once, in order, nothing lost that can be written, nobody held up."""

from __future__ import annotations

import threading
import time

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.sinks.given import a_history, a_picture, a_record
from tests.tiny import image_steps, read_events
from xai_callbacks.errors import AuditError
from xai_callbacks.sinks import Background, Sink, TensorBoardSink

TIMEOUT = 30  # seconds; only a failing test waits that long


class Kept(Sink):
    """Keeps what it is given."""

    def __init__(self):
        self.steps, self.pictures, self.threads, self.closed = [], [], set(), 0

    def write(self, record, pictures):
        self.threads.add(threading.current_thread())
        self.pictures += list(pictures)
        self.steps.append(record.step)

    def close(self):
        self.closed += 1


class Gated(Kept):
    """Writes when it is let."""

    def __init__(self):
        super().__init__()
        self.gate, self.begun = threading.Event(), threading.Event()

    def write(self, record, pictures):
        self.begun.set()
        self.gate.wait(TIMEOUT)
        super().write(record, pictures)


class Failing(Kept):
    """Raises at step 1, after its first picture."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, record, pictures):
        if record.step == 1:
            next(iter(pictures))
            raise self.error
        super().write(record, pictures)


def draw(history):
    for number in range(3):
        yield a_picture(f"audit_panel/{number}", history.last.step)


def audits(background, steps):
    for step in steps:
        background.submit(a_history(a_record(step)))


def messages(background):
    return [str(error) for error in background.errors()]


def test_every_sink_gets_every_audit_in_order_off_the_calling_thread():
    sinks = [Kept(), Kept()]
    background = Background(sinks, draw, capacity=20)
    audits(background, range(10))
    background.drain()
    for sink in sinks:
        assert sink.steps == list(range(10))
        assert [(picture.tag, picture.step) for picture in sink.pictures] == [
            (f"audit_panel/{number}", step) for step in range(10) for number in range(3)
        ]
        assert threading.current_thread() not in sink.threads
    assert background.errors() == []


def test_pictures_are_drawn_once_for_all_sinks():
    calls, sinks = [], [Kept(), Kept(), Kept()]

    def counted(history):
        for picture in draw(history):
            calls.append(picture)
            yield picture

    background = Background(sinks, counted)
    audits(background, [4])
    background.drain()
    assert len(calls) == 3
    assert all(sink.pictures == calls for sink in sinks)


def test_what_is_drawn_is_the_history_as_it_was():
    history, seen, gate = a_history(a_record(1)), [], threading.Event()

    def late(given):
        gate.wait(TIMEOUT)
        seen.append([record.step for record in given])
        yield a_picture(step=given.last.step)

    sink = Kept()
    background = Background([sink], late)
    background.submit(history)
    history.append(a_record(2))
    gate.set()
    background.drain()
    assert seen == [[1]]
    assert sink.steps == [1]


def test_tensors_of_the_audit_are_there_although_the_history_was_thinned_meanwhile():
    history, seen, gate = a_history(*(a_record(step) for step in range(1, 33))), [], threading.Event()

    def late(given):
        gate.wait(TIMEOUT)
        seen.append(given.last.thinned)
        yield from ()

    background = Background([Kept()], late)
    background.submit(history)
    for step in range(33, 60):
        history.append(a_record(step))
    assert history[31].thinned
    gate.set()
    background.drain()
    assert seen == [False]


def test_an_empty_history_writes_nothing():
    background = Background([Kept()], draw)
    background.submit(a_history())
    background.drain()
    assert background.errors() == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit("gives up"), KeyboardInterrupt()])
def test_a_sink_that_raises_costs_its_own_pictures_of_that_audit(error):
    failing, other = Failing(error), Kept()
    background = Background([failing, other], draw, capacity=9)
    audits(background, range(4))
    background.drain()
    assert failing.steps == [0, 2, 3]
    assert other.steps == [0, 1, 2, 3]
    assert len(other.pictures) == 12
    (told,) = background.errors()
    assert isinstance(told, AuditError)
    assert str(told).startswith(f"Failing failed: {type(error).__name__}")
    assert told.__cause__ is error
    assert background.errors() == []  # told once


def test_an_error_that_cannot_be_shown_is_survived():
    class OddError(Exception):
        def __str__(self):
            raise RuntimeError

    failing = Failing(OddError())
    background = Background([failing], draw, capacity=9)
    audits(background, range(3))
    background.drain()
    assert failing.steps == [0, 2]
    assert "OddError" in messages(background)[0]


@pytest.mark.parametrize("error", [ValueError("no font"), SystemExit()])
def test_drawing_that_raises_leaves_what_was_drawn_before(error):
    def broken(history):
        yield a_picture(step=history.last.step)
        raise error

    sinks = [Kept(), Kept()]
    background = Background(sinks, broken)
    audits(background, [1, 2])
    background.drain()
    for sink in sinks:
        assert sink.steps == [1, 2]
        assert [picture.step for picture in sink.pictures] == [1, 2]
    (told,) = messages(background)  # the same at both audits
    assert told.startswith(f"Pictures could not be drawn: {type(error).__name__}")


def test_a_blocked_sink_holds_up_neither_training_nor_the_others_and_is_named():
    blocked, other = Gated(), Kept()
    background = Background([blocked, other], draw, capacity=2)
    begin = time.monotonic()
    audits(background, [0])
    assert blocked.begun.wait(TIMEOUT)
    for step in range(1, 6):
        audits(background, [step])
        while other.steps[-1:] != [step]:  # the other one goes on meanwhile
            assert time.monotonic() - begin < TIMEOUT
            time.sleep(0.001)
    told = "Pictures of 3 audits were dropped, because Gated is slow or blocked."
    assert messages(background) == [told]

    background.drain(timeout=0.2)
    assert messages(background) == [told]  # one that was being written, two that waited
    begin = time.monotonic()
    background.close(timeout=TIMEOUT)  # given up: not waited for again
    assert time.monotonic() - begin < TIMEOUT / 2
    assert messages(background) == []
    assert (blocked.closed, other.closed) == (0, 1)

    blocked.gate.set()
    while blocked.steps != [0]:
        time.sleep(0.001)
    audits(background, [9])
    background.drain()
    assert blocked.steps == [0, 9]  # it came back


def test_the_oldest_of_those_that_wait_is_dropped():
    slow = Gated()
    background = Background([slow], draw, capacity=2)
    audits(background, [0])
    assert slow.begun.wait(TIMEOUT)
    audits(background, range(1, 5))
    slow.gate.set()
    background.drain()
    assert slow.steps == [0, 3, 4]
    assert messages(background) == ["Pictures of 2 audits were dropped, because Gated is slow or blocked."]


def test_of_a_slow_sink_nothing_is_lost_at_the_end():
    slow = Gated()
    background = Background([slow], draw)
    audits(background, [1])
    assert slow.begun.wait(TIMEOUT)
    audits(background, [2, 3])
    threading.Timer(0.3, slow.gate.set).start()
    background.drain()
    assert slow.steps == [1, 2, 3]
    assert background.errors() == []


def test_where_no_thread_can_be_started_that_is_raised_and_nothing_is_lost(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    sink = Kept()
    background = Background([sink], draw)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            audits(background, [1])
        background.drain()
    audits(background, [2])
    background.drain()
    assert sink.steps == [1, 2]


def test_no_thread_is_left_when_all_is_written():
    background = Background([Kept()], draw)
    audits(background, [1])
    background.drain()
    assert not [thread for thread in threading.enumerate() if thread.name == "xai-callbacks Kept"]


def test_draining_and_closing_an_unused_one():
    sink = Kept()
    background = Background([sink], draw)
    background.drain()
    background.close()
    background.close()
    assert sink.closed == 2
    assert background.errors() == []


def test_a_writer_that_ends_the_thread_once_costs_one_audit(tmp_path):
    class GivesUp(SummaryWriter):
        def add_image(self, tag, pixels, step, **options):
            if step == 1:
                raise SystemExit("the writer gives up")
            super().add_image(tag, pixels, step, **options)

    with GivesUp(tmp_path) as writer:
        background = Background([TensorBoardSink(writer)], draw, capacity=9)
        audits(background, range(6))
        background.close()
        assert messages(background) == ["TensorBoardSink failed: SystemExit: the writer gives up."]
    assert image_steps(read_events(tmp_path), "audit_panel/0") == [0, 2, 3, 4, 5]
