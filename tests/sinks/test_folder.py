"""Pictures as files: names, thinning, what was there before; and the encoding of pictures."""

from __future__ import annotations

import math
import os
import re

import numpy as np
import pytest

from tests.sinks.given import a_picture, a_record, alike, decoded
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import evenly_spaced
from xai_callbacks.record import Finding
from xai_callbacks.sinks import FolderSink
from xai_callbacks.sinks.base import tag_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_are_named_by_tag_and_step_and_show_the_picture(tmp_path):
    sink = FolderSink(tmp_path / "new")
    for step in (3, 20):
        picture = a_picture(step=step)
        sink.write(a_record(step), [picture])
    assert files(tmp_path / "new") == [
        "audit_panel/003_cat/step_00000003.jpg",
        "audit_panel/003_cat/step_00000020.jpg",
        "findings.md",
    ]
    path = tmp_path / "new/audit_panel/003_cat/step_00000020.jpg"
    assert path.read_bytes() == picture.encoded
    assert alike(path.read_bytes(), picture)


def test_findings_are_the_latest(tmp_path):
    sink = FolderSink(tmp_path)
    for step in (3, 20):
        sink.write(a_record(step), [])
    text = (tmp_path / "findings.md").read_text()
    assert text.startswith("# Step 20\n\n- **alarm** The cue patch is")


def test_the_most_alarming_finding_comes_first(tmp_path):
    given = (
        ("no evidence", 0.0),
        ("untested", math.nan),
        ("watch", 1.0),
        ("fail", None),
        ("alarm", 2.0),
        ("pass", None),
    )
    findings = tuple(Finding(f"key/{state}", state, value, f"It is {state}.") for state, value in given)
    FolderSink(tmp_path).write(a_record(findings=findings), [])
    states = re.findall(r"\*\*(.+?)\*\*", (tmp_path / "findings.md").read_text())
    assert states == ["alarm", "fail", "watch", "no evidence", "untested", "pass"]
    assert [each.state for each in findings if each.serious] == ["fail", "alarm"]


def test_of_each_tag_evenly_spaced_steps_stay(tmp_path):
    sink, expected = FolderSink(tmp_path, keep=4), []
    for step in range(0, 200, 10):
        sink.write(a_record(step), [a_picture(step=step), *([a_picture("rare", step)] if step < 20 else [])])
        expected.append(step)
        expected = [expected[index] for index in evenly_spaced(expected, 4)]
    assert [name for name in files(tmp_path) if "panel" in name] == [
        f"audit_panel/003_cat/step_{step:08d}.jpg" for step in expected
    ]
    assert (len(expected), expected[0], expected[-1]) == (4, 0, 190)
    assert len([name for name in files(tmp_path) if "rare" in name]) == 2


def test_a_step_that_is_written_again_replaces_the_old_one_in_whatever_format(tmp_path):
    sink = FolderSink(tmp_path)
    for colour in (None, (9, 9, 9), None):
        sink.write(a_record(findings=()), [a_picture(colour=colour)])
        (name,) = files(tmp_path)
        assert name.endswith(".jpg" if colour is None else ".png")


def test_what_else_lies_there_is_left_alone(tmp_path):
    place = tmp_path / "audit_panel/003_cat"
    place.mkdir(parents=True)
    for name in ("notes.txt", "step_1.jpg.bak", "mine.jpg"):
        (place / name).touch()
    sink = FolderSink(tmp_path, keep=2)
    for step in range(5):
        sink.write(a_record(step, findings=()), [a_picture(step=step)])
    assert {"notes.txt", "step_1.jpg.bak", "mine.jpg"} < set(os.listdir(place))
    assert len(os.listdir(place)) == 5


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("audit_panel/003_cat", "audit_panel/003_cat"),
        ("audit_panel/003_Eisbär 1.5", "audit_panel/003_Eisbär 1.5"),
    ],
)
def test_plain_tags_are_paths_as_they_are(tag, path):
    assert tag_path(tag) == path


ODD = ["", ".", "..", "../../etc/passwd", "/etc", "a//b", "a:b", "a?b", "a\\b", "C:\\x", "x" * 500, "ä" * 500,
       "/".join("abcdefgh" * 99), "a\nb", "a\0b", " a", "a ", "猫" * 300, "a/b/c/d/e", "a/b/c/d_e",
       "\ud800"]  # fmt: skip


def test_odd_tags_stay_in_the_folder_and_apart(tmp_path):
    root = tmp_path.resolve()
    paths = [tag_path(tag) for tag in ODD]
    assert len(set(paths)) == len(ODD)
    for path in paths:
        place = (root / path).resolve()
        assert root in place.parents
        place.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("wrong", [{"keep": 1}, {"keep": "9"}, {"folder": 5}, {"folder": None}, {"folder": __file__}])
def test_wrong_arguments_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match=f"Expected `{next(iter(wrong))}`"):
        FolderSink(**({"folder": tmp_path} | wrong))


def test_a_drawing_is_kept_exactly_and_a_photograph_nearly():
    drawing, photograph = a_picture(colour=(12, 200, 99), size=(50, 60)), a_picture(size=(200, 300))
    assert (drawing.mime, drawing.suffix) == ("image/png", ".png")
    assert np.array_equal(decoded(drawing.encoded), drawing.pixels)
    assert (photograph.mime, photograph.suffix) == ("image/jpeg", ".jpg")
    assert alike(photograph.encoded, photograph)
    assert photograph.encoded is photograph.encoded


def test_a_red_line_keeps_its_colour():
    """Colours at half the resolution would wash out outlines."""
    pixels = np.random.default_rng(0).integers(90, 110, (64, 64, 3), dtype=np.uint8)
    pixels[31] = (255, 0, 0)
    picture = a_picture(size=(64, 64), step=0)
    object.__setattr__(picture, "pixels", pixels)
    shown = decoded(picture.encoded)
    assert picture.mime == "image/jpeg"
    assert np.abs(shown[31].astype(int) - (255, 0, 0)).mean() < 20


def test_a_picture_longer_than_a_jpeg_can_be():
    picture = a_picture(size=(1, 65501))
    assert picture.mime == "image/png"
    assert decoded(picture.encoded).shape == (1, 65501, 3)
