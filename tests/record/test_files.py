"""Records on disk: what is written is read, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import pickle
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from tests.record.samples import frozen, same, small, usual
from xai_callbacks.errors import AuditError
from xai_callbacks.record import SCHEMA, AuditRecord, Estimate, Finding, Key, MapSet, Onset, versions

FIXTURE = Path(__file__).with_name("schema_1.safetensors")

numbers = st.floats(allow_nan=True, allow_infinity=True)
maybe = st.none() | numbers
texts = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates too, as of names of files
dtypes = st.sampled_from(
    [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))), dtype=torch.float64)
    special = draw(st.sampled_from([0.0, -0.0, float("nan"), float("inf")]))
    found = torch.where(values > 1, special, values)
    dtype = draw(dtypes)
    return (found if dtype.is_floating_point else values * 3).to(dtype)


def mappings(values):
    return st.dictionaries(texts, values, max_size=3)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts | tensors(),
    lambda some: (
        st.lists(some, max_size=3).map(tuple)
        | st.dictionaries(texts | st.just("$") | st.integers() | st.tuples(st.integers()), some, max_size=3)
    ),
    max_leaves=6,
)
estimates = st.builds(Estimate, numbers, maybe, maybe, maybe, st.integers(), st.integers())
onsets = st.builds(Onset, *[st.integers()] * 3, st.none() | st.integers(), st.booleans(), st.none() | texts)
findings = st.builds(
    Finding, texts, texts, maybe, texts, texts, maybe, st.none() | estimates, st.none() | onsets, *[st.booleans()] * 2
)
map_sets = st.builds(
    MapSet,
    heatmaps=tensors(),
    explainer=texts,
    reason=texts,
    units=st.sampled_from(["score", "relative"]),
    about=st.sampled_from(["question", "image"]),
    verified=st.booleans(),
    peaks=st.lists(numbers, max_size=2).map(tuple),
    stamps=mappings(tensors()),
)
names = st.lists(texts, max_size=3).map(tuple)
records = st.builds(
    AuditRecord,
    run=texts,
    step=st.integers(),
    time=numbers,
    untrained=st.booleans(),
    names=names,
    settings=mappings(plain),
    checkpoint=st.none() | texts,
    titles=st.lists(names, max_size=2).map(tuple),
    outputs=st.none() | tensors(),
    predictions=st.none() | tensors(),
    maps=mappings(map_sets),
    scores=mappings(tensors()),
    metrics=mappings(estimates),
    keys=st.lists(st.builds(Key, texts, texts, maybe, maybe, texts), max_size=2).map(tuple),
    per_probe=mappings(tensors()),
    findings=st.lists(findings, max_size=2).map(tuple),
    thinned=st.booleans(),
    trust=mappings(texts),
)


@given(records)
def test_what_is_saved_is_loaded_to_the_bit(tmp_path_factory, record):
    path = tmp_path_factory.getbasetemp() / "record.safetensors"
    record.save(path)
    assert same(AuditRecord.load(path), record)


def test_any_layout_and_graph_of_a_tensor_can_be_saved(tmp_path):
    scores = torch.rand(4, 6, requires_grad=True).t()[::2]
    record = small(1, outputs=scores, per_probe={"a": scores[0], "b": scores[0]})
    record.save(tmp_path / "a")

    found = AuditRecord.load(tmp_path / "a")
    assert torch.equal(found.outputs, scores.detach())
    assert torch.equal(found.per_probe["a"], found.per_probe["b"])
    assert not found.outputs.requires_grad
    found.outputs.add_(1)  # it is writable, and its own
    assert not torch.equal(found.outputs[0], found.per_probe["a"])


def test_names_with_dots_do_not_get_into_each_others_way(tmp_path):
    one, other = torch.ones(1), torch.zeros(2)
    record = AuditRecord(settings={"a.b": one, "a": {"b": other}})
    record.save(tmp_path / "a")
    assert same(AuditRecord.load(tmp_path / "a").settings, record.settings)


def test_scalars_of_numpy_and_torch_become_numbers_and_the_rest_text(tmp_path):
    metrics = {"a": Estimate(np.float32(0.5), valid=np.int64(3)), "b": Estimate(torch.tensor(0.25))}
    AuditRecord(metrics=metrics, settings={"path": Path("/a"), "list": [1, [2]]}).save(tmp_path / "a")

    found = AuditRecord.load(tmp_path / "a")
    assert same(dict(found.metrics), {"a": Estimate(0.5, valid=3), "b": Estimate(0.25)})
    assert found.settings == {"path": "/a", "list": (1, (2,))}


def test_a_file_is_plain_safetensors_with_json_and_no_pickle(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("false",)

        def __str__(self):
            return "evil"

    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(torch, "load", None)
    record = replace(usual(3), settings={"evil": Evil()})
    record.save(tmp_path / "a")

    with safe_open(tmp_path / "a", "pt") as file:
        text = json.loads(file.metadata()["xai_callbacks.record"])
        assert torch.equal(file.get_tensor("maps.gradcam.heatmaps"), record.heatmaps)
    assert (text["schema"], text["record"]["step"], text["record"]["settings"]) == (SCHEMA, 3, {"evil": "evil"})
    assert AuditRecord.load(tmp_path / "a").settings == {"evil": "evil"}


def test_a_file_of_schema_1_stays_loadable():
    assert same(AuditRecord.load(FIXTURE), frozen())


def rewritten(path: Path, change) -> Path:
    """The fixture with another content, changed in place."""
    content = {"schema": SCHEMA, "record": {"step": 5}}
    change(content)
    path.write_bytes(save({}, {"xai_callbacks.record": json.dumps(content)}))
    return path


def test_a_newer_version_is_refused_with_the_way_out(tmp_path):
    path = rewritten(tmp_path / "a", lambda content: content.update(schema=SCHEMA + 1))
    with pytest.raises(AuditError, match=f"version {SCHEMA + 1}, newer than {SCHEMA}. Update xai_callbacks"):
        AuditRecord.load(path)


def test_fields_that_are_not_known_are_left_out_and_missing_ones_are_as_by_default(tmp_path):
    def change(content):
        content["record"] |= {"mood": "good", "metrics": {"a": {"$": ["Estimate", 0.5, 0, 1, None, 7, 0, "new"]}}}
        content["record"]["keys"] = [{"$": ["Key", "a", "words"]}]

    found = AuditRecord.load(rewritten(tmp_path / "a", change))
    assert (found.step, found.metrics, found.keys) == (5, {"a": Estimate(0.5, 0, 1, None, 7)}, (Key("a", "words"),))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "x"),
        ("step", None),
        ("names", "abc"),
        ("names", [1, 2]),
        ("metrics", {"accuracy": "high"}),
        ("metrics", {"accuracy": {"$": ["Estimate", "high"]}}),
        ("metrics", ["accuracy"]),
        ("maps", {"gradcam": {"$": ["MapSet", {"$": ["tensor", "gone"]}, "GradCAM()"]}}),
        ("findings", [{"$": ["Estimate", 1.0]}]),
        ("findings", [{"$": ["Finding", "a", "alarm", "high", "Words."]}]),
        ("findings", [{"$": ["Finding", "a", "alarm", 1.0, "Words.", "", None, 3]}]),
        ("keys", ["accuracy"]),
        ("outputs", [1.0]),
        ("scores", {"gradnorm": 3}),
        ("titles", ["Why?"]),
        ("thinned", "no"),
        ("notes", 3),
    ],
)
def test_values_of_another_kind_are_told_as_damage(tmp_path, field, value):
    path = rewritten(tmp_path / "a", lambda content: content["record"].update({field: value}))
    with pytest.raises(AuditError, match=rf"a' is none\. It is damaged: `{field}` is of another kind"):
        AuditRecord.load(path)


def test_what_rules_of_users_leave_out_is_no_damage(tmp_path):
    finding = Finding("a", "pass", None, "Words.", about=None)
    small(1, findings=(finding,), logged={"loss": 1}).save(tmp_path / "a")
    assert AuditRecord.load(tmp_path / "a").findings == (finding,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\xff" * 64,
        pickle.dumps({"a": 1}),
        save({"a": torch.ones(2)}),
        save({"a": torch.ones(2)}, {"format": "pt"}),
        save({}, {"xai_callbacks.record": "no json"}),
        save({}, {"xai_callbacks.record": "[]"}),
        save({}, {"xai_callbacks.record": '{"schema": "1", "record": {}}'}),
        save({}, {"xai_callbacks.record": '{"schema": 1, "record": {"a": {"$": ["Popen", "ls"]}}}'}),
        save({}, {"xai_callbacks.record": '{"schema": 1, "record": {"a": {"$": 3}}}'}),
        save({}, {"xai_callbacks.record": '{"schema": 1, "record": {"a": ' + "[" * 99999 + "]" * 99999 + "}}"}),
    ],
    ids=["empty", "text", "bytes", "pickle", "tensors", "other", "no json", "list", "schema", "class", "form", "deep"],
)
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(AuditError, match=r"Expected a file of `AuditRecord.save`, but .*a' is none\. ."):
        AuditRecord.load(path)


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path):
    data, path = FIXTURE.read_bytes(), tmp_path / "a"
    for length in [*range(0, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(AuditError):
            AuditRecord.load(path)


@given(st.integers(0, FIXTURE.stat().st_size - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_gives_a_record(tmp_path_factory, place, flip):
    data, path = bytearray(FIXTURE.read_bytes()), tmp_path_factory.getbasetemp() / "flipped"
    data[place] ^= flip
    path.write_bytes(data)
    with suppress(AuditError):  # and no other error
        assert isinstance(AuditRecord.load(path), AuditRecord)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(AuditError, match="is none"):
            AuditRecord.load(path)


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    small(1).save(tmp_path / "a")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AuditError, match=r"Expected to write a record to .*, but got OSError: .*No space left"):
        small(2).save(tmp_path / "a")
    assert AuditRecord.load(tmp_path / "a").step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="Expected to write a record to"):
        small(1).save(tmp_path / "file" / "a")
    with pytest.raises(AuditError, match="Expected to write a record to"):
        AuditRecord(outputs=torch.zeros(2, dtype=torch.complex128)).save(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_thin_records_keep_metrics_findings_keys_and_identity_and_no_tensors():
    record = usual(7)
    thin = record.thin()

    assert thin.thinned
    assert thin.thin() is thin
    kept = {
        "run", "step", "epoch", "time", "untrained", "fingerprint", "explainers", "asked", "versions", "weights",
        "checkpoint", "settings", "questions", "headings", "metrics", "keys", "cue_regions", "findings", "seconds",
        "notes", "useless", "failed",
    }  # fmt: skip
    for name in kept:
        assert same(getattr(thin, name), getattr(record, name)), name
    blank = AuditRecord()
    dropped = {each.name for each in fields(AuditRecord)} - kept - {"thinned"}
    assert all(getattr(thin, name) == getattr(blank, name) for name in dropped)
    assert not any(isinstance(getattr(record, name), torch.Tensor) for name in kept)


def test_a_usual_record_takes_as_much_disk_as_promised(tmp_path):
    usual(1).save(tmp_path / "whole")
    usual(1).thin().save(tmp_path / "thin")
    assert (tmp_path / "whole").stat().st_size < 250_000
    assert (tmp_path / "thin").stat().st_size < 25_000


def test_keys_of_records_are_held_once(tmp_path):
    for name in "ab":
        usual(1).save(tmp_path / name)
    one, other = (AuditRecord.load(tmp_path / name).keys for name in "ab")
    assert all(a is b for a, b in zip(one, other, strict=True))


def test_versions_name_python_and_what_is_imported():
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert {"python", "xai_callbacks"} <= found.keys()
    assert all(type(each) is str for each in found.values())
