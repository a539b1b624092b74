"""Folders that hold what no one expects: refused by the package's own error, at once, within little memory."""

from __future__ import annotations

import os
import signal
import socket
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.probes.folders import manifest
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


@pytest.fixture(autouse=True)
def _no_waiting():
    """A pipe that is read waits without end."""

    def late(*_):
        raise TimeoutError("waits without end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (10, 10), (200, 100, 50)).save(tmp_path / "cat" / "1.png")
    return tmp_path


def read(root, **options):
    return ProbeSet.from_folder(root, **({"size": 8} | options))


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # addresses of sockets are short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


def nothing(path):
    path.symlink_to(path.with_name("gone"))


KINDS = [pipe, unix_socket, folder, loop, nothing]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_that_is_no_file_is_refused(root, kind):
    kind(root / "probes.csv")
    with pytest.raises(ProbeSetError, match=r"probes\.csv"):
        read(root)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("listed", [True, False])
def test_an_image_that_is_no_file_is_refused(root, kind, listed):
    kind(root / "cat" / "2.png")
    if listed:
        manifest(root, "file,label\ncat/2.png,cat\n")
    if kind is folder and not listed:
        assert len(read(root)) == 1  # `ImageFolder` passes it over as well
        return
    with pytest.raises(ProbeSetError, match=r"cat/2\.png"):
        read(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_is_no_file_is_refused(root, kind):
    (root / "masks" / "core" / "cat").mkdir(parents=True)
    kind(root / "masks" / "core" / "cat" / "1.png")
    with pytest.raises(ProbeSetError, match=r"masks/core/cat/1\.png"):
        read(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_probes_that_is_none_is_refused(root, kind):
    kind(root / "set")
    with pytest.raises(ProbeSetError, match="is no file"):
        ProbeSet.load(root / "set")
    if kind not in (loop, nothing):
        with pytest.raises(ProbeSetError, match="a folder, a pipe or a device"):
            read(root).save(root / "set")


def test_a_device_is_no_file_of_probes_and_is_not_replaced():
    with pytest.raises(ProbeSetError, match="is no file"):
        ProbeSet.load("/dev/zero")
    with pytest.raises(ProbeSetError, match="a folder, a pipe or a device"):
        ProbeSet.from_tensors(torch.zeros(1, 1, 2, 2)).save("/dev/null")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (".", r"'\.' to be a file.* a folder"),
        ("./", "a folder"),
        ("././.", "a folder"),
        ("..", "outside"),
        ("cat/..", "a folder"),
        ("/", "outside"),
        ("cat", "a folder"),
        ("cat/.", "a folder"),
        ("cat/1.png/", "a folder|no such file|both"),
        ("cat/1.png/2.png", "no such file"),
        ("a" * 300 + ".png", "no such file"),
        ("a" * 5000 + ".png", "no such file"),
        ("a/" * 2000 + "b.png", "no such file"),
        ("cat\x00.png", "outside"),
        ("~/1.png", "no such file"),
    ],
)
def test_odd_names_of_files_are_refused(root, file, said):
    manifest(root, f"file,label\n{file},cat\n")
    if file == "cat/1.png/":
        assert len(read(root)) == 1  # a slash too many does no harm
        return
    with pytest.raises(ProbeSetError, match=said) as error:
        read(root)
    assert len(str(error.value)) < 5000


def of_mode(monkeypatch, mode):
    """Make Pillow read a picture of this mode; not every mode can be written to a file."""
    picture = Image.new(mode, (10, 10))
    monkeypatch.setattr(Image, "open", lambda *_, **__: picture)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize(("options", "channels"), [({}, 3), ({"mean": [0.5], "std": [0.5]}, 1)])
def test_every_mode_of_8_bits_is_read(root, monkeypatch, mode, options, channels):
    of_mode(monkeypatch, mode)
    assert read(root, **options).images.shape == (1, channels, 8, 8)


@pytest.mark.parametrize("mode", ["La", "LAB", "I", "F", "I;16", "I;16B", "I;16L"])
def test_every_other_mode_is_refused_by_file(root, monkeypatch, mode):
    of_mode(monkeypatch, mode)
    with pytest.raises(ProbeSetError, match=rf"'cat/1\.png'.*\b{mode}\b"):
        read(root, mean=[0.5], std=[0.5])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 60_000), {"size": 224}),
        ((40_000, 2), {"size": 224}),
        ((2, 40_000), {"size": (10, 224)}),
        ((10, 10), {"size": 100_000}),
        ((10, 10), {"size": 8, "resize": 10**9}),
        ((10, 10), {"size": 10**30}),
    ],
)
def test_pictures_that_would_become_huge_are_refused_by_file_before_memory_is_taken(root, shape, options):
    resource = pytest.importorskip("resource")
    Image.new("L", shape).save(root / "cat" / "1.png")
    sizes = Path("/proc/self/statm")
    used = int(sizes.read_text().split()[0]) * resource.getpagesize() if sizes.exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    try:
        with pytest.raises(ProbeSetError, match=r"'cat/1\.png'.*Crop it"):
            read(root, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_long_picture_is_read_where_that_is_cheap(root):
    Image.new("L", (1, 5000), 200).save(root / "cat" / "1.png")
    assert (read(root).pixels == 200).all()


def test_a_picture_beyond_what_pillow_thinks_safe_is_refused_and_the_user_may_raise_that(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow itself warns from here, and refuses from twice as many
    with pytest.raises(ProbeSetError, match=r"'cat/1\.png'.*MAX_IMAGE_PIXELS.*DecompressionBomb"):
        read(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(read(root)) == 1


def test_a_picture_of_another_format_is_not_opened_whatever_its_name(root):
    # Pillow hands EPS to a program.
    (root / "cat" / "1.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ProbeSetError, match=r"'cat/1\.png'.*Unidentified"):
        read(root)


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_damaged_pictures_end_in_the_error_of_the_package(root, position):
    path = root / "cat" / "1.png"
    whole = bytearray(path.read_bytes())
    whole[position % len(whole)] ^= 0xFF
    path.write_bytes(bytes(whole))
    with warnings.catch_warnings(), suppress(ProbeSetError):  # not all bits matter
        warnings.simplefilter("ignore")
        read(root)


# --- several labels and several values


def several(root, text, **options):
    for number in (1, 2, 3):
        Image.new("RGB", (10, 10), (60 * number,) * 3).save(root / "cat" / f"{number}.png")
    manifest(root, text)
    return read(root, **options)


def test_a_cell_of_several_labels_makes_a_multi_label_set(root):
    probes = several(root, "file,label\ncat/1.png,sea | sun\ncat/2.png,sun\ncat/3.png,dog|sea\n")
    assert probes.task.kind == "multi-label"
    assert probes.class_names == ("dog", "sea", "sun")
    assert probes.labels.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 0]]


def test_a_column_of_labels_is_multi_label_and_may_be_empty(root):
    probes = several(root, "file,labels\ncat/1.png,sun\ncat/2.png,\ncat/3.png,sea\n")
    assert probes.labels.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_labels_may_be_indexes_or_of_given_names(root):
    text = "file,labels\ncat/1.png,0|2\ncat/2.png,2\ncat/3.png,\n"
    assert several(root, text).labels.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    probes = several(root, text.replace("2\n", "sun\n"), class_names=["dog", "sea", "sun", "owl"])
    assert probes.labels.tolist() == [[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_columns_of_named_values_make_several_targets(root):
    probes = several(root, "file,target:blur,target: noise\ncat/1.png,0.5,1\ncat/2.png,-1,2\n")
    assert probes.target_names == ("blur", "noise")
    assert probes.targets.tolist() == [[0.5, 1.0], [-1.0, 2.0]]
    probes = several(root, "file,target:age\ncat/1.png,0.5\n")
    assert (probes.target_names, probes.targets.tolist()) == (("age",), [0.5])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\ncat/1.png,a||b\n", r"line 2 \('cat/1.png'\).*both sides of each '\|'"),
        ("file,labels\ncat/1.png,|\n", r"line 2 \('cat/1.png'\)"),
        ("file,label\ncat/1.png,a|b\ncat/2.png,\n", r"line 3 \('cat/2.png'\).*empty.*column 'labels'"),
        ("file,labels\ncat/1.png,a|1\n", r"name, or every one an index.*line 2 \('cat/1.png'\) has '1'"),
        ("file,labels\ncat/1.png,\n", "tells 0"),
        ("file,labels\ncat/1.png,999999999\n", "tells 1,000,000,000.*class_names"),
        ("file,label\ncat/1.png," + "9" * 30 + "\n", "`labels` of probe 0 .*9999"),
        ("file,label,labels\ncat/1.png,a,a\n", "one of the columns"),
        ("file,labels,target:a\ncat/1.png,a,1\n", "one of the columns"),
        ("file,target,target:a\ncat/1.png,1,1\n", "one of the columns"),
        ("file,target:\ncat/1.png,1\n", "'target:'"),
        ("file,target:a,target:a\ncat/1.png,1,1\n", "once each"),
        ("file,target:a,target:b\ncat/1.png,1,x\n", r"target:b of probes.csv line 2 \('cat/1.png'\).*'x'"),
        ("file,target:a,target:b\ncat/1.png,1,1e400\n", "target:b"),
        ("file,target:a\ncat/1.png,1e300\n", "targets"),
        ("file,label,group\ncat/1.png,a," + "9" * 30 + "\n", "`groups` of probe 0 .*9999"),
    ],
)
def test_malformed_labels_and_values_are_refused_by_row(root, text, said):
    with pytest.raises(ProbeSetError, match=said):
        several(root, text)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"root": value} for value in (None, 3, 2.5, ["a"], b"folder", "a\0b", "a" * 5000, object(), torch.zeros(1))),
        *({"size": value} for value in (None, "8", "ab", 8.0, [8], (8, None), {}, -8)),
        *({"resize": value} for value in ("8", 8.5, [8], (8, 8), True)),
        *({"mean": value, "std": [1.0]} for value in (None, "0", 0.5, 5, {}, [None], [], object())),
        *({"class_names": value} for value in ("cat", 5, [1], {}, [], object())),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(root, arguments):
    with pytest.raises(ProbeSetError, match="Expected"):
        ProbeSet.from_folder(**({"root": root, "size": 8} | arguments))


@pytest.mark.parametrize("path", [None, 3, ["a"], b"set", "a\0b", object()])
def test_paths_of_a_wrong_type_are_refused(path):
    with pytest.raises(ProbeSetError, match="`path` to be a path"):
        ProbeSet.load(path)
    with pytest.raises(ProbeSetError, match="`path` to be a path"):
        ProbeSet.from_tensors(torch.zeros(1, 1, 2, 2)).save(path)


def test_a_file_name_that_is_too_long_is_no_file():
    with pytest.raises(ProbeSetError, match="is no file"):
        ProbeSet.load("a" * 5000)


IMAGES = torch.zeros(3, 1, 4, 4)
ODD = [
    5,
    "abc",
    ["a"] * 3,
    [None] * 3,
    {"a": 1},
    object(),
    [object()] * 3,
    np.array(["a", "b", "c"]),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
@pytest.mark.parametrize(
    "argument", ["images", "labels", "targets", "pixels", "groups", "masks", "names", "class_names", "mean"]
)
def test_tensors_of_a_wrong_type_are_refused(argument, odd):
    given = {"images": IMAGES, argument: odd}
    if argument == "class_names" and isinstance(odd, list) and odd[0] == "a":
        pytest.skip("these are names")
    with pytest.raises(ProbeSetError, match="Expected"):
        ProbeSet.from_tensors(**given)
