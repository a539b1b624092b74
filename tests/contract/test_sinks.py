"""Promises that every sink keeps, ours and one of somebody else's."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.sinks.given import a_history, a_picture, a_record, wandb_rows
from tests.tiny import image_steps, read_events
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks import Background, FolderSink, ImageLoggerSink, MLflowSink, Sink, TensorBoardSink, WandbSink

# Services deprecate something of their own, or of another.
pytestmark = pytest.mark.filterwarnings("ignore")


class LinesSink(Sink):
    """A sink of somebody else's: one line a picture."""

    def __init__(self, path):
        self.path = path

    def write(self, record, pictures):
        for picture in pictures:
            with open(self.path, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{picture.step} {picture.tag.encode()!r} {len(picture.encoded)}\n")


class Case(ABC):
    """A sink, and a look at its store: the step of each picture there, in any order."""

    sink: Sink

    @abstractmethod
    def steps(self):
        """Called once, last."""


class TensorBoardCase(Case):
    def __init__(self, folder):
        self.folder, self.writer = folder, SummaryWriter(folder)
        self.sink = TensorBoardSink(self.writer)

    def steps(self):
        self.writer.close()
        events = read_events(self.folder)
        return [step for tag in events.Tags()["images"] for step in image_steps(events, tag)]


class OtherWriterCase(Case):
    def __init__(self, folder):
        self.found = []
        self.sink = TensorBoardSink(self)

    def add_image(self, tag, pixels, step, *, dataformats):
        self.found.append(step)

    def steps(self):
        return self.found


class WandbCase(Case):
    def __init__(self, folder):
        import wandb

        self.folder = folder
        settings = wandb.Settings(silent=True)
        self.run = wandb.init(project="p", mode="offline", dir=folder, settings=settings, reinit="finish_previous")
        self.sink = WandbSink(self.run)

    def steps(self):
        self.run.finish()
        (path,) = self.folder.rglob("*.wandb")
        found = []
        for row in wandb_rows(path):
            pictures = [each for each in row.values() if isinstance(each, dict) and each.get("_type") == "image-file"]
            assert all(list(self.folder.rglob(f"files/{each['path']}")) for each in pictures)
            found += [row["trainer/global_step"]] * len(pictures)
        return found


class MLflowCase(Case):
    client = None

    def __init__(self, folder):
        from mlflow import MlflowClient

        self.client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")  # one store for all: it is slow to make
        experiment = self.client.create_experiment(str(folder), (folder / "artifacts").as_uri())
        self.run_id = self.client.create_run(experiment).info.run_id
        self.sink = MLflowSink(self.client, self.run_id)

    def steps(self, path=None):
        found = []
        for each in self.client.list_artifacts(self.run_id, path):
            if each.is_dir:
                found += self.steps(each.path)
            elif "/step_" in each.path:
                found.append(int(each.path.rpartition("_")[2].partition(".")[0]))
        return found


class ImageLoggerCase(Case):
    def __init__(self, folder):
        self.found = []
        self.sink = ImageLoggerSink(self)

    def log_image(self, key, images, step=None, **_):
        self.found += [step] * len(images)

    def steps(self):
        return self.found


class FolderCase(Case):
    def __init__(self, folder):
        self.folder, self.sink = folder, FolderSink(folder)

    def steps(self):
        return [int(path.stem.partition("_")[2]) for path in self.folder.rglob("step_*.*")]


class OthersCase(Case):
    def __init__(self, folder):
        self.path = folder / "pictures.txt"
        self.sink = LinesSink(self.path)

    def steps(self):
        return [int(line.split()[0]) for line in self.path.read_text().splitlines()] if self.path.exists() else []


CASES = [TensorBoardCase, OtherWriterCase, WandbCase, MLflowCase, ImageLoggerCase, FolderCase, OthersCase]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("sinks")


@pytest.fixture(params=CASES, ids=lambda kind: kind.__name__.removesuffix("Case"))
def case(request, places):
    folder = places / f"{request.param.__name__}_{request.node.name.partition('[')[0]}"
    folder.mkdir()
    return request.param(folder)


def test_an_audit_without_pictures(case):
    case.sink.write(a_record(), [])
    case.sink.close()
    assert case.steps() == []


def test_an_audit_of_nothing(case):
    case.sink.write(AuditRecord(), iter(()))
    case.sink.write(AuditRecord(step=3), iter([a_picture(step=3)]))
    assert case.steps() == [3]


def test_pictures_of_several_audits(case):
    for step in (0, 7, 100_000_000):
        case.sink.write(a_record(step), (a_picture(tag, step) for tag in ("audit_overview", "audit_panel/003_cat")))
    case.sink.close()
    assert sorted(case.steps()) == [0, 0, 7, 7, 100_000_000, 100_000_000]


def test_pictures_of_any_size_and_without_a_caption(case):
    sizes = [(1, 1), (1, 2000), (700, 3), (300, 400)]
    case.sink.write(a_record(), [a_picture(f"p/{size}", size=size, caption="") for size in sizes])
    assert case.steps() == [1] * len(sizes)


ODD = ["", "a", "a/b/c/d/e/f", "/etc/passwd", "../../up", "Größe 1.5 µm", "猫/犬", "a:b*c?d\\e", "x" * 400, "猫" * 400,
       "x" * 401, "long/" * 200, "<b>bold</b>", "a\nb"]  # fmt: skip


def test_odd_tags_and_captions_arrive_each_for_itself(case):
    case.sink.write(a_record(5), [a_picture(tag, 5, caption=tag) for tag in ODD])
    case.sink.close()
    assert case.steps() == [5] * len(ODD)


def test_odd_findings_and_numbers(case):
    finding = a_record().findings[0]
    odd = [
        dataclasses.replace(finding, sentence=text, value=value)
        for text, value in [("猫\n`|<", None), ("", float("nan"))]
    ]
    metrics = {"a b/猫": a_record().metrics["accuracy"]._replace(value=float("nan"), low=float("-inf"), high=1.0)}
    case.sink.write(a_record(findings=tuple(odd), metrics=metrics, failed=("x" * 5000,)), [a_picture()])
    assert case.steps() == [1]


def test_drawing_that_raises_in_the_middle_is_handed_on_and_the_next_audit_is_written(case):
    def broken():
        yield a_picture("first", 1)
        raise ValueError("no font")

    with pytest.raises(ValueError, match="no font"):
        case.sink.write(a_record(1), broken())
    case.sink.write(a_record(2), [a_picture("first", 2)])
    assert 2 in case.steps()


def test_closing_twice_and_without_an_audit(case):
    case.sink.close()
    case.sink.close()
    assert case.steps() == []


def test_on_a_thread_of_its_own(case):
    def broken(history):
        yield a_picture("first", history.last.step)
        raise SystemExit

    background = Background([case.sink], broken)
    for step in (1, 2):
        background.submit(a_history(a_record(step)))
        background.drain()
    background.close()
    assert [str(error) for error in background.errors()] == ["Pictures could not be drawn: SystemExit."]
    assert sorted(case.steps()) == [1, 2]
