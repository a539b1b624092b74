"""`configs/`, each as its command says: with LightningCLI, with Hydra, with `xai-audit audit`."""

from __future__ import annotations

import importlib
import inspect
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.callbacks.cli_parts import digits
from tests.callbacks.leaning import leaning_probes
from tests.callbacks.runs import BATCHES
from tests.tiny import image_steps, read_events, scalar_steps, tiny_probes
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    Auditor,
    Baselines,
    ConfoundingLabels,
    Every,
    Expectation,
    GradCAM,
    GradNorm,
    History,
    IntegratedGradients,
    PatchCue,
    ProbeSet,
    Schedule,
    ShortcutMonitor,
    Why,
    WhyNotCertain,
    WhyRatherThan,
)
from xai_callbacks.cli import main
from xai_callbacks.demo import SmallCNN
from xai_callbacks.demo.digits import CUE_COLOURS, PROBE_FIELDS, make_splits

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "audit.yaml"
NOVELTY = REPOSITORY / "configs" / "novelty.yaml"
MONITOR = REPOSITORY / "configs" / "monitor.yaml"
PARTS = {"pytorch_lightning": "Old", "lightning.pytorch": "New"}
QUIET = [
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with saved probes, from which the command is run."""
    tiny_probes().save(tmp_path / "probes.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])  # not pytest's arguments
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # Lightning sets these for good
        monkeypatch.setenv(name, "0")
    return tmp_path


@pytest.fixture
def digit_project(project):
    """The same with digits for an autoencoder."""
    for name, count in (("probes", 6), ("inliers", 20), ("novel", 5)):
        ProbeSet.from_tensors(digits(count, count)).save(project / f"{name}.safetensors")
    return project


@pytest.fixture
def leaning_project(project):
    """The same with probes for a model that comes to lean on a cue."""
    leaning_probes(128).save(project / "probes.safetensors")
    return project


def cli(name, *, config=CONFIG, run=True):
    given = [*(["fit"] if run else []), "--config", str(config), *QUIET]
    parts = [
        f"--model=tests.callbacks.cli_parts.{PARTS[name]}Module",
        f"--data=tests.callbacks.cli_parts.{PARTS[name]}Data",
    ]
    return importlib.import_module(f"{name}.cli").LightningCLI(args=[*given, *parts], run=run)


def command(config, name="pytorch_lightning", module=""):
    """The words of the command in the first line of a config, with a module and data that exist."""
    first = config.read_text().splitlines()[0]
    assert first.startswith("# python -c ")
    words = first.removeprefix("# ").replace(f"configs/{config.name}", str(config))
    return shlex.split(words.replace("my_project.My", f"tests.callbacks.cli_parts.{PARTS[name]}{module}"))


@pytest.mark.parametrize("name", PARTS)
def test_config_trains_and_audits(project, name):
    cli(name)
    events = read_events(project / "lightning_logs" / "version_0")
    steps = [0, *scalar_steps(events, "val_loss")]
    assert steps == [0, 3, 7]
    assert scalar_steps(events, "audit/gradcam/why/relevance_mass/core") == steps
    assert scalar_steps(events, "audit/novelty/confounding_labels") == steps
    assert scalar_steps(events, "audit/validation/novelty/gradnorm") == steps[1:]
    assert scalar_steps(events, "audit/expectation/undecided") == steps
    # An overview, a panel and a filmstrip for each of six probes, the most novel probes by each of two scores.
    assert len([tag for tag in events.Tags()["images"] if image_steps(events, tag) == steps]) == 2 + 2 * 6 + 2
    assert list(project.rglob("*.ckpt"))


def test_config_says_what_the_defaults_are(project):
    """Leaving out what the comments call the default gives the same callback."""
    made = cli("pytorch_lightning", run=False).trainer.callbacks
    (audit,) = (callback for callback in made if isinstance(callback, AuditCallback))
    assert audit.auditor.questions == (Why(), WhyRatherThan(), WhyNotCertain())
    gradcam, costly = audit.auditor.explainers
    assert repr(gradcam) == repr(GradCAM())
    assert repr(costly) == repr(Every(5, IntegratedGradients()))
    assert [repr(each) for each in AuditCallback(tiny_probes()).auditor.explainers] == [repr(GradCAM())]
    assert [type(score) for score in audit.auditor.novelty] == [GradNorm, ConfoundingLabels]
    plain = AuditCallback(tiny_probes())
    assert [type(score) for score in plain.auditor.novelty] == [GradNorm]
    assert {type(each) for each in audit.auditor.measures} - {type(each) for each in plain.auditor.measures} == {
        Baselines
    }
    assert (audit.schedule, audit.max_panels, audit.name) == (plain.schedule, plain.max_panels, plain.name)
    assert (audit.auditor.chunk_size, audit.auditor.model) == (plain.auditor.chunk_size, None)
    assert audit.auditor.probes.fingerprint == tiny_probes().fingerprint


@pytest.mark.parametrize("name", PARTS)
def test_novelty_config_trains_and_scores(digit_project, name):
    words = command(NOVELTY, name)
    made = importlib.import_module(f"{name}.cli").LightningCLI(args=[*words[words.index("fit") :], *QUIET])
    events = read_events(digit_project / "lightning_logs" / "version_0")
    steps = [0, *scalar_steps(events, "val_loss")]
    assert steps == [0, 3, 7]
    for score in ("reconstruction", "fisher", "gradcon"):
        for key in ("", "/auroc", "/blur_1/auroc", "/noise_5/auroc"):
            assert scalar_steps(events, f"audit/novelty/{score}{key}") == steps
        assert image_steps(events, f"audit_summary/most_novel_{score}") == steps
    assert list(digit_project.rglob("*.ckpt"))
    (callback,) = (each for each in made.trainer.callbacks if isinstance(each, AuditCallback))
    assert callback.last_record.useless == ()


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.slow
def test_monitor_config_trains_and_raises_an_alarm(leaning_project, name):
    words = command(MONITOR, name, module="Leaning")
    given = [*words[words.index("fit") :], *QUIET, "--trainer.max_epochs=4", "--model.pace=2.0"]
    made = importlib.import_module(f"{name}.cli").LightningCLI(args=given)

    (monitor,) = (each for each in made.trainer.callbacks if isinstance(each, ShortcutMonitor))
    (trial,) = [each for each in monitor.auditor.trials if each.name == "cue/patch"]
    assert isinstance(trial.cue, PatchCue)
    assert monitor.rules == (
        AlarmRule(),
        Expectation("cue/patch/effect < 0.05"),
        Expectation("accuracy > 0.5 from epoch 5", name="learns at all"),
    )
    events = read_events(leaning_project / "lightning_logs" / "version_0")
    assert [event.value for event in events.Scalars("audit/alarm/cue/patch")] == [0, 0, 0, 1, 2]
    weights = torch.load(monitor.last_record.findings[0].onset.checkpoint, weights_only=True)["state_dict"]
    assert float(weights["net.clock"]) == 2 * BATCHES


def test_typo_in_an_expectation_is_reported_before_training(leaning_project):
    config = leaning_project / "monitor.yaml"
    config.write_text(MONITOR.read_text().replace("cue/patch/effect <", "cue/path/effect <"))
    words = command(MONITOR, module="Leaning")
    words[words.index("--config") + 1] = str(config)
    with pytest.raises(ValueError, match=r"'cue/path/effect'.* Did you mean 'cue/patch/effect'"):
        importlib.import_module("pytorch_lightning.cli").LightningCLI(args=[*words[words.index("fit") :], *QUIET])


@pytest.mark.parametrize(
    ("config", "kinds"),
    [(CONFIG, (AuditCallback, Auditor, Schedule)), (MONITOR, (ShortcutMonitor, Schedule, AlarmRule))],
)
def test_every_argument_is_in_the_config_with_its_default(config, kinds):
    (audit, *_others) = yaml.safe_load(config.read_text())["trainer"]["callbacks"]
    made = {each["class_path"]: each["init_args"] for each in parts(audit) if "init_args" in each}
    for kind in kinds:
        given, signature = made[f"xai_callbacks.{kind.__name__}"], inspect.signature(kind).parameters
        assert list(given) == [name for name in signature if name != "hook"]  # a function
        for name, value in given.items():
            if not isinstance(value, (list, dict)) and not str(value).endswith(".safetensors"):
                assert value == signature[name].default, name


@pytest.mark.parametrize("config", [CONFIG, NOVELTY, MONITOR])
def test_whatever_is_said_of_a_default_is_true(config):
    for each in parts(yaml.safe_load(config.read_text())):
        if each.get("class_path") == "xai_callbacks.AuditCallback":
            signature = inspect.signature(AuditCallback).parameters
            for name in ("max_panels", "on_error", "name"):
                assert each["init_args"][name] == signature[name].default


def parts(value):
    """All mappings inside."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(each)


def test_misspelt_argument_is_reported(project, capsys):
    misspelt = project / "audit.yaml"
    misspelt.write_text(CONFIG.read_text().replace("every_n_epochs:", "every_n_epoch:"))
    with pytest.raises(SystemExit):
        cli("pytorch_lightning", config=misspelt, run=False)
    assert "every_n_epoch'" in capsys.readouterr().err


@pytest.mark.slow
def test_command_in_the_first_line_runs(project):
    words = [sys.executable, *command(CONFIG)[1:], *QUIET, "--trainer.max_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    assert "audit/confidence" in read_events(project / "lightning_logs" / "version_0").Tags()["scalars"]


def test_hydra_config_trains_and_audits(project, monkeypatch):
    config = (REPOSITORY / "configs" / "hydra.yaml").read_text()
    words = shlex.split(config.splitlines()[0].removeprefix("# "))
    assert words[:2] == ["python", "-c"]
    config = config.replace("my_project.My", "tests.callbacks.cli_parts.Old")
    quick = ["max_epochs: 1", *(word.removeprefix("--trainer.").replace("=", ": ") for word in QUIET)]
    config = config.replace("max_epochs: 10", "\n  ".join(word for word in quick if word != "max_epochs: 2"))
    (project / "configs").mkdir()
    (project / "configs" / "hydra.yaml").write_text(config)
    (project / "run.py").write_text(words[2])
    run = runpy.run_path(str(project / "run.py"))["run"]
    (audit,) = (each for each in run["trainer"].callbacks if isinstance(each, AuditCallback))
    assert [record.epoch for record in audit.history] == [0, 0]
    assert audit.auditor.questions == (Why(), WhyRatherThan(), WhyNotCertain())
    assert type(audit.auditor.questions) is tuple
    assert audit.rules == (Expectation("accuracy > 0.5 from epoch 5"),)


def test_sweep_config_audits_checkpoints(tmp_path, monkeypatch, capsys):
    """With nets as the demo leaves them, but untrained, so that both fail the expectation."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((REPOSITORY / "configs" / "sweep.yaml").read_text())
    given = config["auditor"]["trials"][0]["init_args"]["cue"]["init_args"]["colours"]
    assert given == [[pytest.approx(value / 255, abs=1e-3) for value in colour] for colour in CUE_COLOURS]
    for path in config["checkpoints"]:
        weights = {"state_dict": SmallCNN().state_dict(), "pytorch-lightning_version": "2.5", "hyper_parameters": {}}
        Path(path).parent.mkdir(parents=True)
        torch.save({**weights, "epoch": 6, "global_step": 276}, path)
    probes = ProbeSet.from_dataset(make_splits(0.5, train_images=20, held_out=100)[2], fields=PROBE_FIELDS)
    probes.save(config["probes"])

    first = (REPOSITORY / "configs" / "sweep.yaml").read_text().splitlines()[0]
    words = shlex.split(first.removeprefix("# ").replace("configs/", f"{REPOSITORY}/configs/"))
    assert words[:2] == ["xai-audit", "audit"]
    assert main(words[1:]) == 0
    assert "strength-0.95: step 276, epoch 6, 40 probes" in capsys.readouterr().out
    for name in ("strength-0.1", "strength-0.95"):
        record = History(f"audits/{name}/history")[-1]
        assert {"cue/patch/effect", "gradcam/why/relevance_mass/core"} <= set(record.metrics)
        assert [each.state for each in record.findings if each.key.startswith("expectation/right")] == ["fail"]
    assert main(["check", "audits", "--expect", "accuracy > 0.8"]) == 1


def test_every_config_begins_with_its_command():
    configs = sorted((REPOSITORY / "configs").iterdir())
    assert [each.name for each in configs] == ["audit.yaml", "hydra.yaml", "monitor.yaml", "novelty.yaml", "sweep.yaml"]
    for config in configs:
        first = config.read_text().splitlines()[0]
        assert f"configs/{config.name}" in first
        assert first.startswith(("# python -c ", "# xai-audit "))
