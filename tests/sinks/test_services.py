"""What other services have got, asked of their own stores: W&B offline, MLflow in SQLite, Lightning's loggers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import lightning.pytorch.loggers
import pytest
import pytorch_lightning.loggers

from tests.sinks.given import a_history, a_picture, a_record, alike, wandb_rows
from tests.tiny import image_steps, read_events
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.sinks import (
    Background,
    FolderSink,
    ImageLoggerSink,
    MLflowSink,
    TensorBoardSink,
    WandbSink,
    sink_for,
)

# Each of the services deprecates something of its own, or of another.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PACKAGES = [pytorch_lightning.loggers, lightning.pytorch.loggers]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A folder for offline runs of W&B."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield tmp_path
    import wandb

    wandb.teardown()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Address of a local MLflow store, and a place for artifacts."""
    folder = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def artifacts(client, run_id, path=None):
    """Paths of all artifacts of a run, as its client tells them."""
    found = []
    for each in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, each.path) if each.is_dir else [each.path]
    return sorted(found)


def rows_with(folder, key):
    (path,) = folder.rglob("*.wandb")
    return [row for row in wandb_rows(path) if key in row]


def write(sink, steps=(3, 20)):
    """Write from another thread, as callbacks do; returns the pictures."""
    pictures = {step: a_picture(step=step) for step in steps}
    background = Background([sink], lambda history: [pictures[history.last.step]], capacity=9)
    for step in steps:
        background.submit(a_history(a_record(step)))
    background.close()
    assert background.errors() == []
    return pictures


def test_an_offline_run_of_wandb_has_pictures_with_captions(offline):
    import wandb

    run = wandb.init(project="p", mode="offline", dir=offline)
    run.log({"loss": 1.0, "trainer/global_step": 2})
    pictures = write(WandbSink(run))
    run.log({"loss": 0.5, "trainer/global_step": 21})
    run.finish()

    rows = rows_with(offline, "audit_panel/003_cat")
    assert [row["trainer/global_step"] for row in rows] == [3, 20]
    for row, picture in zip(rows, pictures.values(), strict=True):
        told = row["audit_panel/003_cat"]
        assert (told["_type"], told["format"], told["caption"]) == ("image-file", "jpg", "a cat")
        assert (told["width"], told["height"]) == (32, 24)
        (file,) = offline.rglob(f"files/{told['path']}")
        assert file.read_bytes() == picture.encoded
    assert [row["loss"] for row in rows_with(offline, "loss")] == [1.0, 0.5]  # the user's own are as they were


@pytest.mark.parametrize("package", PACKAGES)
def test_lightnings_wandb_logger(offline, package):
    logger = package.WandbLogger(save_dir=offline, offline=True)
    sink = sink_for(logger)
    assert isinstance(sink, WandbSink)
    logger.log_metrics({"loss": 1.0}, step=2)
    pictures = write(sink)
    logger.experiment.finish()
    rows = rows_with(offline, "audit_panel/003_cat")
    assert [row["trainer/global_step"] for row in rows] == list(pictures)


def test_lightnings_way_of_logging_images_to_wandb(offline):
    logger = pytorch_lightning.loggers.WandbLogger(save_dir=offline, offline=True)
    write(ImageLoggerSink(logger), [3])
    logger.experiment.finish()
    (row,) = rows_with(offline, "audit_panel/003_cat")
    told = row["audit_panel/003_cat"]
    assert (told["_type"], told["captions"], told["count"]) == ("images/separated", ["a cat"], 1)


def test_a_run_of_mlflow_has_pictures_and_findings(store):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    client = MlflowClient(store[0])
    run_id = client.create_run(client.create_experiment("plain", store[1])).info.run_id
    pictures = write(MLflowSink(client, run_id, name="night"))
    assert artifacts(client, run_id) == [
        "audit_panel/003_cat/step_00000003.jpg",
        "audit_panel/003_cat/step_00000020.jpg",
        "night/findings.md",
    ]
    for step, picture in pictures.items():
        local = client.download_artifacts(run_id, f"audit_panel/003_cat/step_{step:08d}.jpg")
        with open(local, "rb") as file:
            assert file.read() == picture.encoded
    local = download_artifacts(run_id=run_id, artifact_path="night/findings.md", tracking_uri=store[0])
    with open(local) as file:
        assert file.read().startswith("- **alarm** The cue patch is")


@pytest.mark.parametrize("package", PACKAGES)
def test_lightnings_mlflow_logger(store, package):
    logger = package.MLFlowLogger(package.__name__, tracking_uri=store[0], artifact_location=store[1])
    sink = sink_for(logger)
    assert isinstance(sink, MLflowSink)
    write(sink, [3])
    assert "audit_panel/003_cat/step_00000003.jpg" in artifacts(logger.experiment, logger.run_id)


@pytest.mark.parametrize("package", PACKAGES)
def test_lightnings_tensorboard_logger(tmp_path, package):
    logger = package.TensorBoardLogger(tmp_path, prefix="run7")
    sink = sink_for(logger, folder=tmp_path / "unused")
    assert isinstance(sink, TensorBoardSink)
    write(sink)
    logger.log_metrics({"audit/accuracy": 0.5}, step=1)
    logger.finalize("success")
    events = read_events(logger.log_dir)
    assert image_steps(events, "audit_panel/003_cat") == [3, 20]
    # Charts find the scalars of the logger, which has them by itself.
    assert events.Tags()["scalars"] == ["run7-audit/accuracy"]
    assert b"run7-audit/accuracy" in events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_loggers_of_numbers_get_a_folder_beside_them_or_where_it_is_wanted(tmp_path, package):
    logger = package.CSVLogger(tmp_path)
    sink = sink_for(logger, name="night")
    assert isinstance(sink, FolderSink)
    pictures = write(sink)
    file = tmp_path / "lightning_logs/version_0/night_pictures/audit_panel/003_cat/step_00000020.jpg"
    assert alike(file.read_bytes(), pictures[20])
    assert sink_for(logger, folder=tmp_path / "there").folder == tmp_path / "there"


def test_without_a_logger_there_is_a_folder_or_nothing(tmp_path):
    assert sink_for(None, folder=tmp_path).folder == tmp_path
    assert sink_for(None) is None


class Pictures:
    """A logger whose pictures go by a method of its own."""

    experiment = None

    def __init__(self):
        self.got = []

    def log_image(self, key, images, step=None):
        self.got.append((key, [image.shape for image in images], step))


class Captions(Pictures):
    def log_image(self, key, images, step=None, caption=None):
        self.got.append((key, caption, step))


def test_a_logger_with_log_image_gets_pictures_and_captions_if_it_takes_them():
    plain, captions = Pictures(), Captions()
    for logger in (plain, captions):
        sink = sink_for(logger)
        assert isinstance(sink, ImageLoggerSink)
        write(sink, [3])
    assert plain.got == [("audit_panel/003_cat", [(24, 32, 3)], 3)]
    assert captions.got == [("audit_panel/003_cat", ["a cat"], 3)]


def test_a_logger_of_numbers_without_a_folder_gets_nothing():
    class Numbers(pytorch_lightning.loggers.Logger):
        name, version, experiment = "numbers", "0", None

        def log_hyperparams(self, *_, **__):
            pass

        def log_metrics(self, metrics, step=None):
            pass

    assert sink_for(Numbers()) is None


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_the_logger_of_a_trial_run_takes_all_and_writes_nothing(package):
    logger = importlib.import_module(f"{package}.loggers.logger").DummyLogger()
    write(sink_for(logger))


@pytest.mark.parametrize("wrong", [None, "run", 5, object()])
def test_what_is_no_run_client_or_logger_is_refused(wrong):
    for make in (WandbSink, ImageLoggerSink, lambda client: MLflowSink(client, "7")):
        with pytest.raises(ConfigurationError, match=r"Expected `(run|logger|client)` to"):
            make(wrong)
    with pytest.raises(ConfigurationError, match="Expected `run_id`"):
        MLflowSink(type("Client", (), {"log_artifact": lambda self: None})(), 7)


def test_importing_the_sinks_imports_no_service():
    code = "import sys, xai_callbacks.sinks; sys.exit(any(n in sys.modules for n in ('wandb', 'mlflow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
