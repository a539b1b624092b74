"""Files that are damaged, or mean harm: each is refused in one line, and nothing in it is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from pytorch_lightning import __version__ as VERSION
from safetensors.torch import save

from tests.checkpoints.modules import PATH, Small, plain
from tests.tiny import tiny_net
from xai_callbacks import Checkpoint, ConfigurationError


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Foreign:
    """A class that torch does not know."""


def refusal(path, model=plain, **given) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Checkpoint(path, model=model, **given).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("entry", ["state_dict", "hyper_parameters", "callbacks"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_is_refused_and_nothing_of_it_is_executed(tmp_path, entry, zipped):
    content = {
        "state_dict": plain().state_dict(),
        "pytorch-lightning_version": VERSION,
        "hyper_parameters": {},
    }
    content[entry] = {"a": Bomb(tmp_path / "marker")}
    torch.save(content, tmp_path / "bomb.ckpt", _use_new_zipfile_serialization=zipped)
    for model in (plain, PATH):
        assert "it refers to posix.mkdir, and to read" in refusal(tmp_path / "bomb.ckpt", model)
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "bomb.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have gone off


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_a_bare_pickle_bomb_is_refused(tmp_path, suffix):
    (tmp_path / f"bomb{suffix}").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    assert str(tmp_path) in refusal(tmp_path / f"bomb{suffix}")
    assert not (tmp_path / "marker").exists()


def test_foreign_classes_are_named_with_the_way_out(tmp_path):
    module = Small()
    content = {
        "state_dict": module.state_dict(), "pytorch-lightning_version": VERSION, "global_step": 9, "epoch": 2,
        "hyper_parameters": {"channels": 4, "options": argparse.Namespace(own=Foreign())},
    }  # fmt: skip
    torch.save(content, tmp_path / "a.ckpt")
    told = refusal(tmp_path / "a.ckpt", PATH)
    assert "it refers to argparse.Namespace, tests.checkpoints.test_hostile.Foreign, and" in told
    assert "Pass trust=True only if you know who wrote the file" in told
    for model in (PATH, plain):
        checkpoint = Checkpoint(tmp_path / "a.ckpt", model=model, trust=True)
        assert torch.equal(next(checkpoint.load().parameters()), module.net[0].weight)
        assert (checkpoint.epoch, checkpoint.step) == (2, 9)


def test_damaged_files_are_refused(tmp_path):
    whole = save(tiny_net().state_dict())
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    torch.save(tiny_net().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-900])
    for name in ("cut.safetensors", "empty.safetensors", "empty.pt", "text.pt", "cut.pt"):
        told = refusal(tmp_path / name)
        assert told.startswith(f"Expected {str(tmp_path / name)!r} to ")
        assert len(told) < 500


def test_a_folder_or_no_file_is_refused(tmp_path):
    assert "is a folder. Pass a .ckpt" in refusal(tmp_path)
    assert "is not there. Pass a .ckpt" in refusal(tmp_path / "a.pt")


def test_headers_that_promise_more_than_there_is_are_refused(tmp_path):
    for size in (2**62, 2**27):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
        assert "cannot be read. SafetensorError" in refusal(tmp_path / "a.safetensors")
    header = b'{"0.weight":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "cannot be read. SafetensorError" in refusal(tmp_path / "a.safetensors")


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain_file, zipfile.ZipFile(tmp_path / "b.pt", "w") as bomb:
        for each in plain_file.infolist():
            bomb.writestr(each.filename, plain_file.read(each))
        bomb.writestr("a/data/99", bytes(10**7), zipfile.ZIP_DEFLATED)
    assert "bytes would unpack to" in refusal(tmp_path / "b.pt")


def test_what_holds_no_weights_is_told(tmp_path):
    torch.save({"epoch": 3, "args": "-x"}, tmp_path / "a.pt")
    assert "Expected weights in the file, but its entries are epoch, args. Save" in refusal(tmp_path / "a.pt")
    torch.save([torch.zeros(3)], tmp_path / "a.pt")
    assert "to hold a state_dict, but it holds a list" in refusal(tmp_path / "a.pt")
    torch.save({1: torch.zeros(3)}, tmp_path / "a.pt")
    assert "Expected weights by name, but the file has 1. Save a state_dict." in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_is_none_of_torch_is_refused_without_advice_of_torch(tmp_path, protocol):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": [1.0]}, protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "cannot be read." in refusal(tmp_path / "a.pt")
