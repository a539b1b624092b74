"""`configs/audit.yaml`, `configs/novelty.yaml` and `configs/monitor.yaml` with LightningCLI."""

from __future__ import annotations

import importlib
import inspect
import os
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
    IntegratedGradients,
    PatchCue,
    ProbeSet,
    Schedule,
    ShortcutMonitor,
    Why,
    WhyNotCertain,
    WhyRatherThan,
)

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
