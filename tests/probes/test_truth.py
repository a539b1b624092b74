"""Labels of several columns, several values, and their names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

IMAGES = torch.linspace(0, 1, 3 * 2 * 4).view(3, 1, 2, 4)
SEVERAL = [[1, 0, -1], [0, 0, 0], [1, 1, 0]]
VALUES = [[0.5, 2.0], [1.0, -3.0], [0.0, 0.0]]


def made(*labels, **given):
    return ProbeSet.from_tensors(IMAGES, *labels, names=["ant", "bee", "cow"], **given)


@pytest.mark.parametrize(
    "labels",
    [
        SEVERAL,
        [tuple(row) for row in SEVERAL],
        torch.tensor(SEVERAL),
        torch.tensor(SEVERAL).float(),
        torch.tensor(SEVERAL, dtype=torch.int8),
        np.array(SEVERAL),
        np.array(SEVERAL, dtype=np.float64),
        [torch.tensor(row) for row in SEVERAL],
        [np.array(row, dtype=np.float32) for row in SEVERAL],
    ],
)
def test_labels_of_several_columns_are_kept_as_int64(labels):
    probes = made(labels, class_names=["x", "y", "z"])
    assert probes.labels.dtype == torch.int64
    assert probes.labels.tolist() == SEVERAL
    assert probes.truth is probes.labels
    assert isinstance(probes.task, MultiLabel)
    assert (probes.task.width, probes.task.names) == (3, ("x", "y", "z"))
    assert probes.class_name(2) == "z"
    assert "; multi-label of 3;" in repr(probes)


def test_bools_of_several_columns_are_labels():
    assert made(torch.tensor(SEVERAL) == 1).labels.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]


def test_one_column_is_one_label_that_an_image_has_or_has_not():
    probes = made([[1], [0], [-1]], class_names=["ill"])
    assert probes.labels.shape == (3, 1)
    assert isinstance(probes.task, MultiLabel)
    assert "; multi-label of 1;" in repr(probes)


def test_class_indexes_are_a_single_label_task():
    assert isinstance(made([0, 2, 1]).task, SingleLabel)
    assert isinstance(made(class_names=["x", "y"]).task, SingleLabel)


@pytest.mark.parametrize(
    ("targets", "kept"),
    [
        (VALUES, VALUES),
        (torch.tensor(VALUES, dtype=torch.float64), VALUES),
        (np.array(VALUES), VALUES),
        ([torch.tensor(row) for row in VALUES], VALUES),
        ([[1], [2], [3]], [1.0, 2.0, 3.0]),
        (torch.tensor([[1.0], [2.0], [3.0]]), [1.0, 2.0, 3.0]),
    ],
)
def test_targets_may_be_several_values_of_which_one_alone_is_a_vector(targets, kept):
    probes = made(targets=targets)
    assert probes.targets.dtype == torch.float32
    assert probes.targets.tolist() == kept
    assert probes.truth is probes.targets
    assert isinstance(probes.task, Regression)
    assert probes.task.width == (2 if isinstance(kept[0], list) else 1)


def test_values_have_names_that_are_part_of_the_fingerprint():
    probes = made(targets=VALUES, target_names=["blur", "noise"])
    assert probes.target_names == probes.task.names == ("blur", "noise")
    assert "; regression of 2;" in repr(probes)
    prints = {made(targets=VALUES, target_names=names).fingerprint for names in (None, ["blur", "noise"], ["a", "b"])}
    assert len(prints) == 3
    assert made(targets=[1, 2, 3], target_names=["age"]).target_names == ("age",)


@pytest.mark.parametrize(
    ("given", "rows"), [({"labels": SEVERAL, "class_names": list("xyz")}, SEVERAL), ({"targets": VALUES}, VALUES)]
)
def test_select_and_files_keep_several_columns(tmp_path, given, rows):
    probes = made(**given)
    assert probes.select([2, 0]).truth.tolist() == [rows[2], rows[0]]
    assert probes.select(range(3)).fingerprint == probes.fingerprint
    probes.save(tmp_path / "set")
    loaded = ProbeSet.load(tmp_path / "set")
    assert torch.equal(loaded.truth, probes.truth)
    assert (loaded.task, loaded.fingerprint) == (probes.task, probes.fingerprint)


def test_select_and_files_keep_names_of_values(tmp_path):
    probes = made(targets=VALUES, target_names=["blur", "noise"])
    probes.save(tmp_path / "set")
    assert ProbeSet.load(tmp_path / "set").target_names == probes.select([1]).target_names == ("blur", "noise")


BEE = r"probe 1 \('bee'\)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": [[1, 0], [2, 0], [0, 0]]}, BEE + r" has \[2, 0\].*shape \(N,\)"),
        ({"labels": [[1, 0], [0, 0.3], [0, 0]]}, BEE + r" has \[0.0, 0.3"),
        ({"labels": [[1, 0], [0, float("nan")], [0, 0]]}, BEE + r" has \[0.0, nan\]"),
        ({"labels": [[1, 0], [0], [0, 0]]}, BEE + r" has \(1,\)"),
        ({"labels": [[1, 0], [0, "x"], [0, 0]]}, BEE + r".* got list \[0, 'x'\]"),
        ({"labels": [[1, 0], None, [0, 0]]}, BEE + ".* got NoneType"),
        ({"labels": [[1, 0], [[0], 1], [0, 0]]}, BEE),
        ({"labels": torch.tensor([[0], [3], [1]])}, r"probe 1 .* has \[3\].*`labels\[:, 0\]`"),
        ({"labels": torch.zeros(3, 0)}, r"probe 0 .* has \(0,\)"),
        ({"labels": torch.zeros(3, 2, 2)}, r"probe 0 .* has \(2, 2\)"),
        ({"labels": torch.zeros(2, 3)}, r"\(3, columns\), but got 2 rows"),
        ({"labels": SEVERAL, "class_names": ["x", "y"]}, "`class_names` to name each of 3 labels.* got 2"),
        ({"labels": SEVERAL, "class_names": list("wxyz")}, "`class_names` to name each of 3 labels.* got 4"),
        ({"labels": [2**70, 0, 1]}, "labels"),
        ({"labels": [[2**70, 0], [0, 1], [1, 0]]}, "labels"),
        ({"labels": ["cat", "dog", "cat"]}, "got str 'cat'"),
        ({"targets": [[1.0, 2.0], [1.0, float("nan")], [0.0, 0.0]]}, BEE + r" has target \[1.0, nan\]"),
        ({"targets": [[1.0, 2.0], [1.0], [0.0, 0.0]]}, BEE),
        ({"targets": torch.zeros(3, 2, 1)}, r"probe 0 .* has \(2, 1\)"),
        ({"targets": VALUES, "target_names": ["blur"]}, "`target_names` to name each of 2 values.* got 1"),
        ({"targets": [1, 2, 3], "target_names": ["a", "b"]}, "`target_names` to name each of 1 values.* got 2"),
        ({"targets": VALUES, "target_names": "ab"}, "sequence of strings"),
        ({"targets": VALUES, "class_names": ["a", "b"]}, "`target_names` names values"),
        ({"groups": [[0], [1], [1]]}, r"`groups` to be \(3,\)"),
    ],
)
def test_malformed_truth_is_refused_and_never_answered_by_argmax(given, said):
    with pytest.raises(ProbeSetError, match=said) as error:
        made(**given)
    assert "argmax" not in str(error.value)
