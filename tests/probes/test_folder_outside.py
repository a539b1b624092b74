"""Nothing from outside the folder of a probe set: neither by a path nor by a link."""

from __future__ import annotations

import os

import pytest

from tests.probes.folders import manifest, noise, write
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


@pytest.mark.parametrize(
    "file",
    [
        "../secret.png",
        "cat/../../secret.png",
        "ABSOLUTE",
        pytest.param("..\\secret.png", marks=pytest.mark.skipif(os.name != "nt", reason="a name of a file elsewhere")),
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, file):
    outside = write(tmp_path / "secret.png", noise())
    root = tmp_path / "root"
    write(root / "cat" / "1.png", noise())
    file = str(outside) if file == "ABSOLUTE" else file
    manifest(root, f"file,label\n{file},cat\n")
    with pytest.raises(ProbeSetError, match=r"secret\.png.*outside"):
        ProbeSet.from_folder(root, size=8)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path, with_manifest):
    outside = write(tmp_path / "secret.png", noise())
    root = tmp_path / "root"
    write(root / "cat" / "1.png", noise())
    (root / "cat" / "2.png").symlink_to(outside)
    if with_manifest:
        manifest(root, "file,label\ncat/2.png,cat\n")
    with pytest.raises(ProbeSetError, match=r"cat/2\.png.*outside"):
        ProbeSet.from_folder(root, size=8)


@pytest.mark.parametrize("linked", ["cat", "masks", "masks/core", "masks/core/cat/1.png", "probes.csv"])
def test_a_linked_part_that_leaves_the_folder_is_refused(tmp_path, linked):
    root = tmp_path / "root"
    for base in (root, tmp_path / "elsewhere"):
        write(base / "cat" / "1.png", noise())
        write(base / "masks" / "core" / "cat" / "1.png", noise(channels=1))
        manifest(base, "file,label\ncat/1.png,cat\n")
    if linked == "cat":
        (root / "probes.csv").unlink()
    os.rename(root / linked, tmp_path / "aside")
    (root / linked).symlink_to(tmp_path / "elsewhere" / linked)
    with pytest.raises(ProbeSetError, match="outside"):
        ProbeSet.from_folder(root, size=8)


def test_links_within_the_folder_and_to_the_folder_are_fine(animals, tmp_path_factory):
    (animals / "dog" / "2.png").symlink_to(animals / "cat" / "1.png")
    link = tmp_path_factory.mktemp("links") / "root"
    link.symlink_to(animals)
    assert len(ProbeSet.from_folder(link, size=8)) == 4


def test_a_link_to_itself_is_refused(animals):
    (animals / "cat" / "3.png").symlink_to(animals / "cat" / "3.png")
    with pytest.raises(ProbeSetError, match=r"cat/3\.png"):
        ProbeSet.from_folder(animals, size=8)
