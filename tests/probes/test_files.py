"""Probe sets on disk: exact, checked, atomic, never executable."""

from __future__ import annotations

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet, files

GENERATOR_SEED = 3


def sample_set(**changes):
    noise = torch.Generator().manual_seed(GENERATOR_SEED)
    arguments = {
        "images": torch.randn(4, 3, 6, 5, generator=noise).clamp(-0.2, 1.0),
        "labels": [0, 1, 1, 0],
        "names": ["a", "b/ä", "c d", "e"],
        "groups": [0, -1, 1, 1],
        "masks": {"spurious": torch.rand(4, 6, 5, generator=noise) > 0.5, "core": torch.ones(4, 6, 5)},
        "class_names": ["cat", "chien Ω"],
        "group_names": ["x", "y"],
        "mean": [0.1, 1 / 3, 0.3],
        "std": [0.7, 0.2, 0.9],
    }
    return ProbeSet.from_tensors(**(arguments | changes))


def rewritten(path, *, header=None, tensors=None, drop=()):
    """Write the file anew with changed header entries and tensors, as a careless or hostile hand would."""
    with safe_open(path, "pt") as file:
        content = {name: file.get_tensor(name).clone() for name in file.keys() if name not in drop}  # noqa: SIM118
        old = json.loads(file.metadata()[files.HEADER_KEY])
    save_file(content | (tensors or {}), path, metadata={files.HEADER_KEY: json.dumps(old | (header or {}))})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "probes.safetensors"
    sample_set().save(path)
    return path


@pytest.mark.parametrize(
    "probes",
    [
        sample_set(),
        sample_set(labels=None, class_names=None),
        sample_set(labels=None, class_names=None, targets=[0.1, -2.0, 3.5, 4.0]),
        sample_set(labels=[[1, 0], [0, -1], [1, 1], [0, 0]]),
        sample_set(labels=None, class_names=None, targets=[[0.1, 1.0]] * 4, target_names=["blur", "noise"]),
        sample_set(masks={}, groups=None, group_names=None, names=None),
        ProbeSet.from_tensors(torch.zeros(1, 1, 1, 1)),
    ],
)
def test_what_is_loaded_is_bit_for_bit_what_was_saved(tmp_path, probes):
    probes.save(tmp_path / "set")
    loaded = ProbeSet.load(tmp_path / "set")
    for name in ("images", "pixels", "labels", "targets", "groups"):
        one, two = getattr(probes, name), getattr(loaded, name)
        assert (one is None and two is None) or (one.dtype == two.dtype and torch.equal(one, two)), name
    assert list(loaded.masks) == list(probes.masks)
    assert all(torch.equal(loaded.masks[region], mask) for region, mask in probes.masks.items())
    for name in ("names", "class_names", "target_names", "group_names", "mean", "std", "fingerprint", "task"):
        assert getattr(loaded, name) == getattr(probes, name), name


def test_saving_twice_gives_the_same_bytes(tmp_path):
    sample_set().save(tmp_path / "one")
    sample_set().save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_folders_are_made_and_nothing_else_is_left_behind(tmp_path):
    sample_set().save(str(tmp_path / "new" / "deep" / "set.safetensors"))
    assert [entry.name for entry in (tmp_path / "new" / "deep").iterdir()] == ["set.safetensors"]


def test_a_loaded_set_does_not_depend_on_its_file(saved):
    loaded = ProbeSet.load(saved)
    with saved.open("r+b") as file:
        file.write(b"\xff" * saved.stat().st_size)
    assert torch.equal(loaded.images, sample_set().images)


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_the_file_has_the_usual_mode_of_new_files(saved, tmp_path):
    (tmp_path / "other").touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ProbeSetError, match="no space"):
        sample_set(labels=[1, 1, 1, 1]).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ProbeSetError, match=r"probes\.safetensors.*deserializing"):
        ProbeSet.load(saved)


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_one_flipped_bit_of_content_is_noticed(saved, position):
    whole = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[start + int((len(whole) - start) * position)] ^= 1
    saved.write_bytes(bytes(whole))
    with pytest.raises(ProbeSetError, match=r"probes\.safetensors"):
        ProbeSet.load(saved)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    (tmp_path / "evil").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ProbeSetError, match="evil"):
        ProbeSet.load(tmp_path / "evil")
    assert not (tmp_path / "boom").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ProbeSetError, match="is no file"):
            ProbeSet.load(path)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_says_to_build_the_set_anew_or_to_upgrade(saved, version):
    rewritten(saved, header={"version": version})
    with pytest.raises(ProbeSetError, match=rf"version is {version} and not 2: build the set anew, or upgrade"):
        ProbeSet.load(saved)


def test_another_normalisation_in_the_header_is_noticed(saved):
    rewritten(saved, header={"mean": [0.1, 0.3, 0.3]})
    with pytest.raises(ProbeSetError, match="fingerprint"):
        ProbeSet.load(saved)


def test_a_safetensors_file_of_another_kind_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ProbeSetError, match=r"no entry .xai_callbacks\.probes"):
        ProbeSet.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["{not json", "[" * 100_000, "[]", '{"version": "1"}', '{"version": 0}'])
def test_a_damaged_header_is_refused(saved, text):
    save_file({"images": torch.zeros(1)}, saved, metadata={files.HEADER_KEY: text})
    with pytest.raises(ProbeSetError, match="to be a file of `ProbeSet"):
        ProbeSet.load(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"header": {"fingerprint": "0" * 16}}, "fingerprint"),
        ({"header": {"fingerprint": None}}, "fingerprint"),
        ({"header": {"names": ["a", "b", "c", "d"]}}, "fingerprint"),
        ({"header": {"class_names": ["cat", "dog"]}}, "fingerprint"),
        ({"header": {"names": ["a", "a", "c", "d"]}}, "fingerprint"),
        ({"header": {"names": None}}, "fingerprint"),
        ({"header": {"names": [1, 2, 3, 4]}}, "fingerprint"),
        ({"header": {"regions": ["core"]}}, "fingerprint"),
        ({"header": {"regions": ["core", "spurious", "sky"]}}, "masks/sky"),
        ({"header": {"regions": 5}}, "not iterable"),
        ({"header": {"std": [0.0, 1.0, 1.0]}}, "fingerprint"),
        ({"tensors": {"images": torch.full((4, 3, 6, 5), float("nan"))}}, "fingerprint"),
        ({"tensors": {"labels": torch.tensor([0, 9, 0, 0])}}, "fingerprint"),
        ({"drop": ("images",)}, "to be a file of `ProbeSet.save`"),
        ({"drop": ("labels",)}, "fingerprint"),
    ],
)
def test_a_changed_file_is_refused(saved, change, said):
    rewritten(saved, **change)
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.load(saved)


def test_rewriting_without_a_change_loads(saved):
    rewritten(saved)
    assert ProbeSet.load(saved).fingerprint == sample_set().fingerprint


def test_a_path_that_cannot_be_written_is_told(tmp_path):
    for path in (tmp_path / ("a" * 300), "/proc/none/probes.safetensors"):
        with pytest.raises(ProbeSetError, match="Expected `path` to be where a file can be written, but"):
            sample_set().save(path)
    assert not list(tmp_path.iterdir())
