"""The manifest of a folder: order, labels, names and groups, and what is refused by row."""

from __future__ import annotations

import pytest
import torch

from tests.probes.folders import manifest, noise
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


def test_the_manifest_gives_order_labels_names_and_groups(animals):
    manifest(
        animals,
        'file,label,name,group\ndog/1.png,dog,"rex, the dog",indoor\n\ncat/2.png,cat,,outdoor\ncat/1.png, cat ,tom,\n',
    )
    probes = ProbeSet.from_folder(animals, size=8)
    assert probes.names == ("rex, the dog", "cat/2", "tom")
    assert probes.labels.tolist() == [1, 0, 0]
    assert probes.class_names == ("cat", "dog")
    assert probes.groups.tolist() == [0, 1, -1]
    assert probes.group_names == ("indoor", "outdoor")
    assert torch.equal(probes.pixels[1], torch.from_numpy(noise(seed=1)))
    assert probes.masks["core"].any(dim=(1, 2)).tolist() == [False, True, False]


def test_labels_and_groups_may_be_indexes(animals):
    manifest(animals, "file,label,group\ncat/1.png,3,0\ncat/2.png,0,-1\ndog/1.png,1,2\n")
    probes = ProbeSet.from_folder(animals, size=8)
    assert probes.labels.tolist() == [3, 0, 1]
    assert probes.class_names is None
    assert probes.groups.tolist() == [0, -1, 2]
    assert probes.group_names is None


def test_labels_of_given_class_names_may_be_names_or_indexes(animals):
    manifest(animals, "file,label\ncat/1.png,cat\ncat/2.png,2\ndog/1.png,dog\n")
    assert ProbeSet.from_folder(animals, size=8, class_names=["emu", "dog", "cat"]).labels.tolist() == [2, 2, 1]


def test_class_names_that_are_digits_are_names_first(animals):
    manifest(animals, "file,label\ncat/1.png,1\ncat/2.png,0\n")
    assert ProbeSet.from_folder(animals, size=8, class_names=["1", "0"]).labels.tolist() == [0, 1]


def test_a_target_column_gives_a_regression_set(animals):
    manifest(animals, "file,target\ncat/1.png,0.5\ncat/2.png,-1e3\n")
    probes = ProbeSet.from_folder(animals, size=8)
    assert probes.task.kind == "regression"
    assert probes.targets.tolist() == [0.5, -1000.0]


def test_a_manifest_from_a_spreadsheet_is_read(animals):
    (animals / "probes.csv").write_bytes(b"\xef\xbb\xbffile,label\r\ncat/2.png,cat\r\n")
    assert ProbeSet.from_folder(str(animals), size=8).names == ("cat/2",)


def test_the_same_folder_gives_the_same_fingerprint(animals):
    assert ProbeSet.from_folder(animals, size=8).fingerprint == ProbeSet.from_folder(animals, size=8).fingerprint


HEAD = "file,label,name,group\ncat/1.png,cat,,\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column 'file'"),
        ("file,label\n", "at least one probe"),
        ("file,lable\ncat/1.png,cat\n", "'label' .*'lable'"),
        ("file;label\ncat/1.png;cat\n", "file;label"),
        ("file,file,label\na,b,c\n", "once each"),
        ("label\ncat\n", "column 'file'"),
        ("file\ncat/1.png\n", "'label'.*'target'"),
        ("file,label,target\ncat/1.png,cat,1\n", "'label'.*'target'"),
        (HEAD + "cat/2.png,cat\n", "line 3 .*4 cells.*got 2"),
        (HEAD + "cat/2.png,cat,a,b,c\n", "line 3 .*got 5"),
        (HEAD + ",cat,x,\n", "line 3 .*file.*empty"),
        (HEAD + "cat/2.png,,x,\n", r"line 3 \('cat/2.png'\).*label.*empty"),
        (HEAD + "cat/2.png,3,x,\n", r"line 3 \('cat/2.png'\) has '3'"),
        (HEAD + "cat/9.png,cat,x,\n", "'cat/9.png'.*no such file"),
        (HEAD.replace("1", "2") + "cat/2.png,cat,,\n", "2 probes are named 'cat/2.png'"),
        ("file,label,name\ncat/1.png,cat,a\ncat/2.png,cat,a\n", "2 probes are named 'a'"),
        ("file,label,group\ncat/1.png,cat,1\ncat/2.png,cat,x\n", r"line 3 \('cat/2.png'\) has 'x'"),
        ("file,target\ncat/1.png,high\n", r"line 2 \('cat/1.png'\).*'high'"),
        ("file,target\ncat/1.png,nan\n", r"line 2 \('cat/1.png'\).*'nan'"),
        ("file,target\ncat/1.png,\n", r"line 2 \('cat/1.png'\).*target.*empty"),
        ('file,label\n"cat/1.png,cat\n', "CSV"),
    ],
)
def test_a_malformed_manifest_is_refused_by_row(animals, text, said):
    manifest(animals, text)
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_folder(animals, size=8)


def test_a_manifest_that_is_no_text_is_refused(animals):
    (animals / "probes.csv").write_bytes(b"file,label\n\xff\xfe,cat\n")
    with pytest.raises(ProbeSetError, match=r"probes\.csv.*UTF-8"):
        ProbeSet.from_folder(animals, size=8)


def test_an_unknown_class_is_refused_with_those_that_are_known(animals):
    manifest(animals, "file,label\ncat/1.png,catt\n")
    with pytest.raises(ProbeSetError, match=r"line 2 \('cat/1.png'\).*one of cat, dog, but got 'catt'"):
        ProbeSet.from_folder(animals, size=8, class_names=["cat", "dog"])


def test_an_index_beyond_the_class_names_is_refused(animals):
    manifest(animals, "file,label\ncat/1.png,2\n")
    with pytest.raises(ProbeSetError, match=r"line 2 \('cat/1.png'\).*'2'"):
        ProbeSet.from_folder(animals, size=8, class_names=["cat", "dog"])
