"""Offline audits of checkpoints."""

from __future__ import annotations

import gc
import os
import weakref
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from tests.callbacks.checkpoint_runs import alike, audited, checkpoints, records_of
from tests.callbacks.processes import run_apart
from tests.callbacks.runs import PACKAGES, trainer
from tests.record.samples import same
from tests.tiny import CLASSES, pictures, tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    AuditRecord,
    Checkpoint,
    ConfigurationError,
    CueTrial,
    GradCAM,
    History,
    Localization,
    PatchCue,
    ProbeSet,
    Why,
    audit_checkpoints,
)
from xai_callbacks.checkpoints.names import names_of
from xai_callbacks.compare import compare, read_models


@pytest.fixture
def nets(tmp_path):
    return checkpoints(tmp_path / "nets", 3)


def quiet(folder, **options):
    return trainer(folder, [], logger=False, **options)


def looks(folder):
    return len((folder / "looks").read_bytes())


def test_each_checkpoint_has_a_history_of_one_record_as_an_auditor_gives_it(tmp_path, nets):
    histories = audited(nets, tmp_path / "out")
    assert list(histories) == ["net_0", "net_1", "net_2"]
    assert ProbeSet.load(tmp_path / "out" / "probes.safetensors").fingerprint == tiny_probes(12).fingerprint
    for place, (name, history) in enumerate(histories.items()):
        assert history.folder == tmp_path / "out" / name / "history"
        assert [path.name for path in history.folder.iterdir()] == ["audit_000000.safetensors"]
        (record,) = history
        assert (record.epoch, record.step) == (place, 10 * place)
        assert record.checkpoint == str(tmp_path / "nets" / f"{place}.pt")
        assert [each.state for each in record.findings] == ["not enough evidence"]
        assert record.metrics["expectation/undecided"].value == 1
        Auditor(tiny_probes(12)).audit(nets[name].load(), epoch=place, step=10 * place).save(tmp_path / "alone")
        alone = AuditRecord.load(tmp_path / "alone")
        assert {key: record.metrics[key] for key in alone.metrics} == alone.metrics
        assert "never enough evidence" in record.notes[0]
        assert record.notes[1:] == alone.notes
        told = ("checkpoint", "findings", "metrics", "keys", "notes", "time", "seconds")
        assert same(record, replace(alone, **{each: getattr(record, each) for each in told}))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precision_is_the_trainers(tmp_path, nets, package, precision):
    one = trainer(tmp_path, [], package, logger=False, precision=precision)
    histories = audit_checkpoints({"net_0": nets["net_0"]}, Auditor(tiny_probes()), tmp_path / "out", trainer=one)
    model = nets["net_0"].load()
    if precision == "bf16-true":
        model.to(torch.bfloat16)
    assert torch.equal(histories["net_0"].last.outputs, Auditor(tiny_probes()).audit(model).outputs)


def test_the_default_trainer_writes_nothing_of_its_own(tmp_path, nets, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    audit_checkpoints({"net_0": nets["net_0"]}, Auditor(tiny_probes()), "out")
    assert {path.name for path in tmp_path.iterdir()} == {"nets", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"net_0", "probes.safetensors"}
    said = "".join(capfd.readouterr())
    assert "1/1" in said
    assert "GPU" not in said


def test_mixed_architectures_are_explained_each_in_its_own_way(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.save(squeezenet1_1(num_classes=3).state_dict(), tmp_path / "squeeze.pt")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, patch_size=8)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}
    config = transformers.ConvNextConfig(**sizes, image_size=32, num_labels=3)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "hub")
    sized = {"img_size": 32, "depth": 2, "patch_size": 8}
    given = {
        "squeeze": Checkpoint(tmp_path / "squeeze.pt", model="torchvision/squeezenet1_1"),
        "vit": Checkpoint(tmp_path / "vit.pt", model="timm/vit_tiny_patch16_224", hparams=sized),
        "hub": Checkpoint(f"hf/{tmp_path / 'hub'}"),
        "again": Checkpoint(tmp_path / "squeeze.pt", model="torchvision/squeezenet1_1"),
    }
    probes = ProbeSet.from_tensors(pictures(6, 32), torch.arange(6) % 3, class_names=CLASSES)
    found = audit_checkpoints(given, Auditor(probes), tmp_path / "out", trainer=quiet(tmp_path))
    layers = {name: history.last.layer for name, history in found.items()}
    assert len(set(layers.values())) == 3
    assert layers["squeeze"] == layers["again"]
    for name, history in found.items():
        record = Auditor(probes).audit(given[name].load())
        assert torch.equal(history.last.heatmaps, record.heatmaps), name


def test_one_model_is_in_memory_at_a_time(tmp_path):
    alive, most = [], []

    class Circular(nn.Module):
        """Refers to itself, so that only the collector frees it."""

        def __init__(self):
            super().__init__()
            self.net = tiny_net()
            self.whole = [self]
            alive.append(weakref.ref(self))
            most.append(sum(each() is not None for each in alive))

        def forward(self, images):
            return self.net(images)

    torch.save(Circular().state_dict(), tmp_path / "a.pt")
    gc.collect()
    given = {f"net_{place}": Checkpoint(tmp_path / "a.pt", model=Circular) for place in range(6)}
    gc.disable()
    try:
        audit_checkpoints(given, Auditor(tiny_probes()), tmp_path / "out", trainer=quiet(tmp_path))
    finally:
        gc.enable()
    assert most == [1] * 7


# ---- what is there already, and what fails


def test_what_is_there_is_not_audited_again(tmp_path, nets):
    audited(nets, tmp_path / "out")
    before = records_of(tmp_path / "out")
    (tmp_path / "out" / "net_1" / "history" / "audit_000000.safetensors").unlink()
    audited(nets, tmp_path / "out")
    assert looks(tmp_path / "out") == 4
    assert all(same(record, before[name]) for name, record in records_of(tmp_path / "out").items())


@pytest.mark.parametrize(
    "change",
    [
        {"questions": [Why()]},
        {"explainers": [GradCAM("2", name="mine")]},
        {"measures": [Localization(["soft_iou"])]},
        {"chunk_size": 2},
        {"trials": [CueTrial(PatchCue([1.0, 0.0, 0.0], points_to=0, size=0.5))]},
        {"probes": tiny_probes(seed=3)},
        {"rules": ["accuracy > 0.1"]},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_of_another_audit_is_replaced(tmp_path, change):
    trials = [CueTrial(PatchCue([1.0, 0.0, 0.0], points_to=0, size=0.25))]
    given = {"probes": tiny_probes(), "rules": ["accuracy > 0.9"], "seed": 0, "trials": trials}
    histories = []
    for settings in (given, {**given, **change}, {**given, **change}):
        torch.save(tiny_net(seed=settings.pop("seed")).state_dict(), tmp_path / "a.pt")
        rules, net = settings.pop("rules"), Checkpoint(tmp_path / "a.pt", model=tiny_net)
        options = {"rules": rules, "trainer": quiet(tmp_path)}
        (history,) = audit_checkpoints({"a": net}, Auditor(**settings), tmp_path / "out", **options).values()
        histories.append(history)
    records = [history.last for history in histories]
    assert [len(history) for history in histories] == [1, 1, 1]
    assert records[0].time < records[1].time == records[2].time
    saved = ProbeSet.load(tmp_path / "out" / "probes.safetensors")
    assert saved.fingerprint == records[2].fingerprint


def test_one_that_cannot_be_audited_costs_itself_alone_and_is_named(tmp_path, nets):
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "wrong.pt")
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "linear.pt")
    bad = {
        "none": Checkpoint(tmp_path / "none.pt", model=tiny_net),
        "wrong": Checkpoint(tmp_path / "wrong.pt", model=tiny_net),
        "linear": Checkpoint(tmp_path / "linear.pt", model=lambda: nn.Linear(3, 3)),
    }
    with pytest.raises(AuditError) as caught:
        audited({**bad, **nets}, tmp_path / "out")
    told = str(caught.value)
    assert told.startswith("Expected 6 checkpoints to be audited, but 3 could not be. 'none': Expected `source`")
    for part in ("is not there", "'wrong': Expected weights of TinyNet", "'linear': Expected", "The others are in"):
        assert part in told
    audited(nets, tmp_path / "whole")
    assert alike(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 2])
def test_where_none_can_be_audited_there_are_no_others(tmp_path, count):
    bad = {f"net_{place}": Checkpoint(tmp_path / f"{place}.pt", model=tiny_net) for place in range(count)}
    with pytest.raises(AuditError) as caught:
        audited(bad, tmp_path / "out")
    told = str(caught.value)
    expected = ("checkpoint to be audited, but it could not be.", "checkpoints to be audited, but none could be.")
    assert told.startswith(f"Expected {count} {expected[count - 1]} 'net_0': Expected `source`")
    assert "The other" not in told


def test_an_audit_of_another_source_is_refused_before_anything_is_written(tmp_path, nets):
    given = {"auditor": Auditor(tiny_probes()), "folder": tmp_path / "out", "trainer": quiet(tmp_path)}
    (history,) = audit_checkpoints({"a": nets["net_0"]}, **given).values()
    given["auditor"] = Auditor(tiny_probes(seed=3))
    with pytest.raises(ConfigurationError, match=r"an audit of '.*1.pt' or nothing, but it holds one of '.*0.pt'"):
        audit_checkpoints({"b": nets["net_2"], "a": nets["net_1"]}, **given)
    assert not (tmp_path / "out" / "b").exists()
    assert ProbeSet.load(tmp_path / "out" / "probes.safetensors").fingerprint == history[-1].fingerprint
    AuditRecord.load(history.folder / "audit_000000.safetensors")


def test_a_folder_holds_audits_of_one_probe_set(tmp_path, nets):
    given, more = {"folder": tmp_path / "out", "trainer": quiet(tmp_path)}, Auditor(tiny_probes(seed=3))
    both = {name: nets[name] for name in ("net_0", "net_1")}
    audit_checkpoints(both, Auditor(tiny_probes()), **given)
    before = (tmp_path / "out" / "probes.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match=r"audits of one probe set in .*, but 'net_1' is of the probes"):
        audit_checkpoints({name: nets[name] for name in ("net_0", "net_2")}, more, **given)
    assert (tmp_path / "out" / "probes.safetensors").read_bytes() == before
    found = audit_checkpoints({**both, "net_2": nets["net_2"]}, more, **given)
    assert {history[-1].fingerprint for history in found.values()} == {more.probes.fingerprint}


def test_changed_familiar_images_are_seen(tmp_path, nets):
    times = []
    for seed in (1, 1, 2):
        auditor = Auditor(tiny_probes(), inliers=tiny_probes(seed=seed))
        (history,) = audit_checkpoints(
            {"net_0": nets["net_0"]}, auditor, tmp_path / "out", trainer=quiet(tmp_path)
        ).values()
        times.append(history[-1].time)
    assert times[0] == times[1] < times[2]


def test_expectations_that_no_audit_can_meet_are_told(tmp_path, nets):
    given = {"net_0": nets["net_0"]}
    options = {"rules": ["cue/patch/effect < 0.1"], "trainer": quiet(tmp_path)}
    with pytest.raises(AuditError, match=r"'net_0': Expected .*'cue/patch/effect'"):
        audit_checkpoints(given, Auditor(tiny_probes()), tmp_path / "out", **options)


def test_what_the_trainer_leaves_out_is_told(tmp_path, nets):
    with pytest.raises(AuditError, match=r"1 could not be. 'net_2': The trainer left it out, see its `limit"):
        audited(nets, tmp_path / "out", limit_val_batches=2)


def test_a_damaged_or_newer_record_is_left_alone_and_audited_beside(tmp_path, nets):
    given = {"net_0": nets["net_0"]}
    path = tmp_path / "out" / "net_0" / "history" / "audit_000000.safetensors"
    audited(given, tmp_path / "out")
    path.write_bytes(damaged := path.read_bytes()[:-9])
    for _ in range(2):
        history = audited(given, tmp_path / "out")["net_0"]
        assert len(history) == 1
        assert list(history.unreadable) == [0]
    assert path.read_bytes() == damaged
    assert looks(tmp_path / "out") == 2


@pytest.mark.parametrize("name", ["../a", "..", ".", "", "a/b", "<script>alert(1)</script>", "a b", "a\nb", "C:\\a", 7])
def test_names_that_are_no_folders_are_refused_before_anything_is_written(tmp_path, nets, name):
    with pytest.raises(ConfigurationError, match="Expected the name of a checkpoint to be letters, digits"):
        audit_checkpoints({name: nets["net_0"]}, Auditor(tiny_probes()), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_the_name_of_any_file_is_that_of_a_folder(tmp_path, nets):
    names = names_of(["..", "<script>.ckpt", "epoch=3-step=40.ckpt", ".hidden", "a b.pt", "ä.pt", "..pt"])
    given, options = dict.fromkeys(names, nets["net_0"]), {"folder": tmp_path / "out", "trainer": quiet(tmp_path)}
    histories = audit_checkpoints(given, Auditor(tiny_probes()), **options)
    assert [history.folder.parent for history in histories.values()] == [tmp_path / "out" / name for name in names]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Expected `checkpoints` to be checkpoints by name"),
        ({}, "Expected `checkpoints` to audit, but got none"),
        ({"a": "a.pt"}, r"Expected `checkpoints\['a'\]` to be a Checkpoint, but got str 'a.pt'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, given, message):
    with pytest.raises(ConfigurationError, match=message):
        audit_checkpoints(given, Auditor(tiny_probes()), tmp_path)


def test_an_auditor_is_needed(tmp_path, nets):
    with pytest.raises(ConfigurationError, match="Expected `auditor` to be an Auditor"):
        audit_checkpoints(nets, tiny_probes(), tmp_path)


# ---- several processes, and processes that are killed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes made."""
    folder = tmp_path_factory.mktemp("ranks")
    run_apart("checkpoint_runs.py", "ranks", folder, cwd=folder)
    return folder


@pytest.mark.slow
def test_two_processes_give_the_same_as_one_and_none_twice(ranks, tmp_path):
    given = checkpoints(ranks / "nets")
    audited(given, tmp_path / "five")
    assert alike(ranks / "five", tmp_path / "five")
    assert len(records_of(tmp_path / "five")) == looks(ranks / "five") == 5
    one, two = (compare(read_models([folder / "five"])).as_dict() for folder in (tmp_path, ranks))
    assert len(one["differences"]) == 4
    assert one == two
    assert list(records_of(ranks / "one")) == ["net_0"]
    assert looks(ranks / "one") == 1


@pytest.mark.slow
def test_both_processes_tell_what_failed_in_one(ranks):
    told = [(ranks / "broken" / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "1 could not be. 'net_1': Expected `source` to be a file" in told[0]
    assert list(records_of(ranks / "broken")) == ["net_0", "net_2", "net_3", "net_4"]


@pytest.mark.slow
def test_two_processes_that_validate_audit_as_one(ranks):
    folder = ranks / "validated"
    first, second = (torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    keys = [key for key in first if key.startswith("audit/")]
    assert "audit/confidence" in keys
    for key in keys:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True)
    (record,) = History(folder / "csv" / "audit" / "history")
    assert record.metrics["confidence"].value == pytest.approx(float(first["audit/confidence"]))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_50_random_moments_leave_whole_records_and_a_rerun_finishes(tmp_path):
    run_apart("checkpoint_runs.py", "kill", tmp_path, cwd=tmp_path)
    assert len(records_of(tmp_path / "audits")) == 5
