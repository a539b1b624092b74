"""`xai-audit probes build`, `inspect` and `verify`, with folders and files that mean harm."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
import torch
from PIL import Image

from tests.cli.audited import HOSTILE, LITERAL
from tests.tiny import tiny_probes
from xai_callbacks import ProbeSet
from xai_callbacks.cli import main


class Digits(torch.utils.data.Dataset):
    """Four classes with four images each."""

    def __init__(self, size: int = 8):
        self.size = size

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((3, self.size, self.size), index / 16), index % 4


def digits():
    return Digits()


FEW = Digits(4)


@pytest.fixture
def photos(tmp_path):
    """A folder with two classes of two photos each."""
    for place, name in enumerate(("cat/a", "cat/b", "dog/a", "dog/b")):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (60 * place, 10, 10)).save(file)
    return tmp_path / "photos"


def refused(words, capsys):
    assert main(words) == 3
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.count("\n") == 1
    return told


def test_a_folder_becomes_a_probe_set(photos, tmp_path, capsys):
    words = ["probes", "build", str(photos), "--size", "8", "--mean", "[.5,.5,.5]", "--std", "[.2,.2,.2]"]
    assert main([*words, "--out", str(tmp_path / "p.safetensors")]) == 0
    made = ProbeSet.load(tmp_path / "p.safetensors")
    expected = ProbeSet.from_folder(photos, size=8, mean=[0.5] * 3, std=[0.2] * 3)
    assert made.fingerprint == expected.fingerprint
    assert made.fingerprint in capsys.readouterr().out
    assert (
        main([*words, "--out", str(tmp_path / "q.safetensors"), "--size", "[8,10]", "--class-names", "[dog,cat]"]) == 0
    )
    other = ProbeSet.load(tmp_path / "q.safetensors")
    assert (other.images.shape[2:], other.class_names) == ((8, 10), ("dog", "cat"))


@pytest.mark.parametrize(
    ("named", "size"),
    [(":Digits", 8), (":digits", 8), (".digits", 8), (":FEW", 4)],
)
def test_a_dataset_is_a_class_a_factory_or_an_object(named, size, tmp_path, capsys):
    out = tmp_path / "p.safetensors"
    words = ["probes", "build", "--dataset", f"{__name__}{named}", "--per-class", "2", "--out", str(out), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["by"]["class"] == [["0", 2], ["1", 2], ["2", 2], ["3", 2]]
    assert ProbeSet.load(out).images.shape == (8, 3, size, size)
    if named == ":Digits":
        assert main([*words, "--dataset-args", "{size: 6}"]) == 0
        assert ProbeSet.load(out).images.shape == (8, 3, 6, 6)


def test_what_to_build_from_is_said_once(photos, capsys):
    for words in ([], [str(photos), "--dataset", "a:b"]):
        assert "Expected a folder or --dataset, one of them" in refused(["probes", "build", *words], capsys)
    assert "Expected 'nowhere:x' to be package.module:name" in refused(
        ["probes", "build", "--dataset", "nowhere:x"], capsys
    )


def test_what_makes_no_dataset_is_told_in_one_line(capsys):
    told = refused(["probes", "build", "--dataset", "json:dumps"], capsys)
    assert "Expected 'json:dumps' to make a dataset, but got TypeError: dumps() missing" in told
    assert told.endswith("Pass its arguments as --dataset-args.\n")


def test_inspect_tells_facts_and_counts_and_draws_a_sheet(tmp_path, capsys):
    probes = tiny_probes(groups=[0, 1, 1, 1, -1, -1], group_names=["day", "night"])
    probes.save(tmp_path / "p.safetensors")
    words = ["probes", "inspect", str(tmp_path / "p.safetensors")]
    assert main([*words, "--json", "--png", str(tmp_path / "new" / "sheet.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["by"] == {
        "class": [["cat", 2], ["dog", 2], ["owl", 2]],
        "group": [["unknown", 2], ["day", 1], ["night", 3]],
        "region": [["core", 6], ["spurious", 6]],
    }
    assert (told["fingerprint"], told["probes"], told["images"]) == (probes.fingerprint, 6, "3 x 8 x 8")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 900
        assert len(sheet.convert("RGB").getcolors(2**20)) > 100
    assert main(words) == 0
    assert "night" in capsys.readouterr().out


def test_labels_and_classes_of_one_name_are_counted_apart(tmp_path, capsys):
    several = torch.tensor([[1, 0], [1, 1], [-1, 0]])
    ProbeSet.from_tensors(torch.rand(3, 3, 8, 8), several, class_names=["x", "x"]).save(tmp_path / "p.safetensors")
    assert main(["probes", "inspect", str(tmp_path / "p.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["by"]["class"] == [["x", 2], ["x", 1]]


def test_verify_reads_and_checks_the_fingerprint(tmp_path, capsys):
    sound = tmp_path / "p.safetensors"
    tiny_probes().save(sound)
    assert main(["probes", "verify", str(sound)]) == 0
    assert tiny_probes().fingerprint in capsys.readouterr().out
    content = bytearray(sound.read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(content)
    assert "it was damaged or changed" in refused(["probes", "verify", str(tmp_path / "changed.safetensors")], capsys)
    (tmp_path / "half.safetensors").write_bytes(content[:-9])
    assert "to be a file of `ProbeSet.save`" in refused(
        ["probes", "verify", str(sound), str(tmp_path / "half.safetensors")], capsys
    )


def test_hostile_names_are_shown_literally(tmp_path, capsys):
    names = [HOSTILE.replace("\x1b", ""), *"abcde"]
    tiny_probes(names=names, class_names=["[bold]cat[/]", "<script>", "owl"]).save(tmp_path / "p.safetensors")
    sheet = tmp_path / "sheet.png"
    assert main(["probes", "inspect", str(tmp_path / "p.safetensors"), "--png", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "[bold]cat[/]" in printed
    assert "<script>" in printed
    assert LITERAL in refused(["probes", "inspect", str(tmp_path / HOSTILE)], capsys)


def test_a_manifest_cannot_reach_outside_its_folder(photos, tmp_path, capsys):
    (tmp_path / "secret.png").write_bytes((photos / "cat/a.png").read_bytes())
    (photos / "probes.csv").write_text("file,label\n../secret.png,cat\n")
    out = tmp_path / "p.safetensors"
    assert "it reaches outside" in refused(["probes", "build", str(photos), "--out", str(out)], capsys)
    assert not out.exists()


def test_a_picture_of_2500_megapixels_is_refused_unread(photos, capsys):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (photos / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    told = refused(["probes", "build", str(photos)], capsys)
    assert "Expected 'cat/bomb.png' to be a readable image" in told
    assert "DecompressionBomb" in told
