"""Strangers' classes, one of each kind, in the callback, in YAML and in expectations, with nothing of ours edited."""

import sys

import pytest
import yaml
from pytorch_lightning.cli import LightningCLI

from tests.callbacks.runs import TinyModule, loader, rows, trainer
from tests.contract.third_party import (
    Border,
    Brighter,
    Folded,
    Improves,
    InputTimesGradient,
    Notebook,
    Sparsity,
    WhyAnything,
)
from tests.tiny import tiny_probes
from xai_callbacks import AuditCallback, Auditor, CueTrial, GradCAM, Why

SENTENCES = [
    "bright/moved < 1.1",
    "audit/cue/border/effect < 0.9",
    "input_x_gradient/why_anything/sparsity > 0",
    "improves >= 0",
]
KEYS = {
    "audit/bright/moved",
    "audit/cue/border/effect",
    "audit/gradcam/why/sparsity",
    "audit/gradcam/why_anything/sparsity",
    "audit/input_x_gradient/why_anything/sparsity",
    "audit/audits_before",
    "audit/improves",
    "audit/expectation/passed",
}


def everything(probes, sink):
    auditor = Auditor(
        probes,
        [Why(), WhyAnything()],
        explainers=[GradCAM(), InputTimesGradient()],
        trials=[CueTrial(Border()), Brighter()],
        measures=[Sparsity()],
    )
    return AuditCallback(auditor, rules=[Improves(), *SENTENCES[1:]], sinks=[sink], max_panels=2)


def test_all_of_them_work_in_the_callback(tmp_path):
    sink = Notebook()
    callback = everything(tiny_probes(32), sink)

    trainer(tmp_path, [callback]).fit(TinyModule(), loader(), loader(2, seed=6))

    record = callback.last_record
    assert record.failed == ()
    assert {key.removeprefix("audit/") for key in KEYS} <= record.metrics.keys()
    assert record.metrics["audits_before"].value == 2
    assert record.metrics["expectation/passed"].value == 3
    assert {finding.key for finding in record.findings} >= {"improves"}
    assert [page[0] for page in sink.pages] == [each.step for each in callback.history] == [0, 3, 7]
    assert all(any("panel" in tag for tag in tags) for _, _, tags in sink.pages)
    assert sink.closed
    assert {key for row in rows(tmp_path) for key in row} >= KEYS


def test_all_of_them_are_named_in_yaml(tmp_path, monkeypatch):
    tiny_probes(32).save(tmp_path / "probes.safetensors")
    ours, theirs = "xai_callbacks.", "tests.contract.third_party."
    named = {
        "class_path": ours + "AuditCallback",
        "init_args": {
            "probes": {
                "class_path": ours + "Auditor",
                "init_args": {
                    "probes": str(tmp_path / "probes.safetensors"),
                    "questions": [{"class_path": ours + "Why"}, {"class_path": theirs + "WhyAnything"}],
                    "explainers": [{"class_path": ours + "GradCAM"}, {"class_path": theirs + "InputTimesGradient"}],
                    "trials": [
                        {"class_path": ours + "CueTrial", "init_args": {"cue": {"class_path": theirs + "Border"}}},
                        {"class_path": theirs + "Brighter"},
                    ],
                    "measures": [{"class_path": theirs + "Sparsity"}],
                },
            },
            "rules": [{"class_path": theirs + "Improves"}, *SENTENCES],
            "sinks": [{"class_path": theirs + "Folded"}],
            "max_panels": 1,
        },
    }
    settings = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(tmp_path),
        "callbacks": [named],
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": settings}))
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use
    monkeypatch.setattr(sys, "argv", ["cli", "fit", "--config", str(config)])

    cli = LightningCLI(
        __import__("tests.callbacks.cli_parts", fromlist=["OldModule"]).OldModule,
        __import__("tests.callbacks.cli_parts", fromlist=["OldData"]).OldData,
        save_config_callback=None,
    )

    record = cli.trainer.callbacks[0].last_record
    assert record.failed == ()
    assert record.metrics["expectation/passed"].value == 4
    assert len(Folded.made[-1].pages) == 2


@pytest.mark.parametrize("wrong", ["bright/movd < 0.5", "input_x_gradient/why_anything/sparse > 0"])
def test_a_typo_in_the_key_of_a_stranger_is_found_before_training(wrong, tmp_path):
    callback = AuditCallback(
        Auditor(tiny_probes(8), [WhyAnything()], explainers=[InputTimesGradient()], trials=[Brighter()],
                measures=[Sparsity()]),
        rules=[wrong],
    )  # fmt: skip

    with pytest.raises(ValueError, match=r"Did you mean"):
        trainer(tmp_path, [callback]).fit(TinyModule(), loader(), loader(2, seed=6))
    assert callback.last_record is None
