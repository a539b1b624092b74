"""The picture of what is looked at and what is used."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render.page import HAIRLINE, MARGIN, MUTED, PAPER
from xai_callbacks.render.quadrants import AXIS, CHART, DOT, TINT, Placed, render_quadrants

USED, UNUSED = DOT[True], DOT[False]
LOWEST = -0.25


def image(color=(120, 90, 60), size=(28, 28)):
    return np.full((*size, 3), color, np.uint8)


def drawn(*places, chance=0.09, threshold=0.04, **words):
    """The picture of probes at (looked, used)."""
    placed = [Placed(image(), looked, used) for looked, used in places]
    return render_quadrants(placed, chance=chance, threshold=threshold, **{"title": "t", **words})


def chart(picture):
    """The field of the chart, found by its frame."""
    left = MARGIN + AXIS
    frame = (picture[:, [left, left + CHART[0] - 1]] == np.array(HAIRLINE)).all(axis=2).any(axis=1)
    top = int(np.argmax(frame))
    return picture[top : top + CHART[1], left : left + CHART[0]]


def place(looked, used):
    """Where a dot must lie in the field: (row, column), on scales of the square root."""
    height = 1 + math.sqrt(-LOWEST)
    up = math.copysign(math.sqrt(abs(used)), used) if used > LOWEST else -math.sqrt(-LOWEST)
    return round((1 - up) / height * (CHART[1] - 1)), round(math.sqrt(looked) * (CHART[0] - 1))


def centre(field, color):
    """Centre of all pixels of a colour, and their number."""
    rows, columns = np.nonzero((field == np.array(color)).all(axis=2))
    return (rows.mean(), columns.mean()), len(rows)


@pytest.mark.parametrize(
    ("looked", "used"), [(0.25, 0.25), (0.04, 0.36), (0.49, 0.01), (0.01, 0.0), (0.64, -0.09), (0.3, 0.81)]
)
def test_a_dot_lies_where_its_values_say(looked, used):
    color = USED if used > 0.04 else UNUSED
    middle, count = centre(chart(drawn((looked, used))), color)

    assert middle == pytest.approx(place(looked, used), abs=0.75)
    assert 40 < count < 100  # a disc of radius 5 but for its soft edge


def test_effects_below_the_scale_stand_at_its_lower_edge():
    bottom = chart(drawn((0.5, -0.9)))
    assert np.array_equal(bottom, chart(drawn((0.5, LOWEST))))
    assert (bottom[-6, place(0.5, 0)[1]] == UNUSED).all()


@pytest.mark.parametrize(("looked", "used"), [(0, 1), (1, 1), (0, -1), (1, -1), (0, 0), (0.5, 1)])
def test_dots_at_the_ends_of_the_scales_are_whole(looked, used):
    middle, count = centre(chart(drawn((looked, used))), DOT[used > 0])
    assert middle == pytest.approx(place(looked, used), abs=6)
    assert 40 < count < 60  # as many as elsewhere


def test_what_is_above_the_threshold_is_tinted_and_coloured():
    field = chart(drawn((0.5, 0.5), (0.6, 0.0), threshold=0.25))
    line, column = place(0.0, 0.25)[0], CHART[0] // 2

    assert (field[line, column] == MUTED).all()
    assert (field[line - 3, column] == TINT).all()
    assert (field[line + 3, column] == PAPER).all()
    assert all(centre(field, color)[1] > 40 for color in (USED, UNUSED))


def test_a_line_stands_at_chance():
    field = chart(drawn((0.5, 0.5), chance=0.16))
    column = round(math.sqrt(0.16) * (CHART[0] - 1))
    assert (field[5:-30, column] == MUTED).all(axis=1).all()


def test_a_value_on_the_threshold_is_not_above_it():
    assert centre(chart(drawn((0.5, 0.25), threshold=0.25)), UNUSED)[1] > 40


def test_words_never_hide_a_dot():
    """The dots are the same wherever the words stand below them."""
    for looked in np.linspace(0.02, 0.98, 40):
        for used in (0.07, -0.2):
            field = chart(drawn((looked, used)))
            row, column = place(looked, used)
            assert (field[row - 1 : row + 2, column - 1 : column + 2] == DOT[used > 0.04]).all()


@pytest.mark.parametrize("chance", [0.0, 0.02, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.03, 0.5, 0.99])
def test_words_stand_whole_within_the_field(chance, threshold):
    field = chart(drawn((0.5, -0.25), chance=chance, threshold=threshold))
    letters = (field < 140).all(axis=2)
    # But for the two lines, nothing dark touches the frame.
    letters[:, round(math.sqrt(chance) * (CHART[0] - 1))] = False
    letters[place(0, threshold)[0]] = False
    assert not letters[:, -4:].any()
    assert not letters[:3].any()
    assert letters.any()


def test_scales_are_the_same_whatever_is_drawn():
    """Pictures of several audits can be compared: one more dot changes nothing but where it lies."""
    one, two = chart(drawn((0.2, 0.1))), chart(drawn((0.2, 0.1), (0.8, 0.9)))
    row, column = place(0.8, 0.9)
    changed = np.argwhere((one != two).any(axis=2))
    assert (abs(changed - (row, column)) <= 7).all()
    assert drawn((0.2, 0.1)).shape == drawn((0.8, -0.9), *[(0.1, 0.5)] * 60).shape


def test_equal_arguments_give_equal_bytes():
    one, other = (drawn((0.2, 0.1), (0.7, 0.6), subtitle="s") for _ in range(2))
    assert one.tobytes() == other.tobytes()
    assert one.dtype == np.uint8
    assert one.flags.c_contiguous


def test_examples_stand_in_their_quadrant_and_those_furthest_into_it_are_shown(helpers):
    photos = [helpers.photo(56, 56, seed) for seed in range(9)]
    placed = [Placed(photo, 0.5, 0.1 + seed / 10) for seed, photo in enumerate(photos[:6])]
    placed += [
        Placed(photos[6], 0.01, 0.9),  # used, not looked at
        Placed(photos[7], 0.01, 0.0),  # neither
        Placed(photos[8], 0.9, 0.0),  # looked at, not used
    ]
    picture = render_quadrants(placed, chance=0.1, threshold=0.04, title="t")
    found = [helpers.places(picture, photo) for photo in photos]

    assert found[0] == []  # the sixth of those used and looked at
    (used_looked,), (only_used,), (neither,), (only_looked,) = found[5], found[6], found[7], found[8]
    assert used_looked[0] == only_used[0] < neither[0] == only_looked[0]
    assert only_used[1] == neither[1] < used_looked[1] == only_looked[1]
    assert [found[k][0][1] for k in (5, 4, 3, 2, 1)] == sorted(found[k][0][1] for k in range(1, 6))


def test_examples_of_any_size_fit(helpers):
    for size in ((8, 8), (300, 200), (30, 200)):
        picture = render_quadrants([Placed(helpers.photo(*size), 0.5, 0.5)] * 9, chance=0.1, threshold=0.04, title="t")
        assert picture.shape == drawn((0.5, 0.5)).shape
        # Nothing reaches the margins.
        assert (picture[:, :4] == PAPER).all()
        assert (picture[-MARGIN + 2 :] == PAPER).all()
        assert (picture[:, -MARGIN + 2 :] == PAPER).all()


def test_inputs_stay_as_they_are(helpers):
    photo = helpers.photo(20, 20)
    before = photo.copy()
    render_quadrants([Placed(photo, 0.5, 0.5)], chance=0.1, threshold=0.04, title="t")
    assert np.array_equal(photo, before)


@pytest.mark.parametrize("placed", [[], [image()], None, [Placed(image(), 0.5, 0.5), 3]])
def test_what_is_no_probe_is_refused(placed):
    with pytest.raises(ConfigurationError, match="Expected `placed` to be a sequence of at least one Placed"):
        render_quadrants(placed, chance=0.1, threshold=0.05, title="t")


@pytest.mark.parametrize(
    ("looked", "used", "name"),
    [(-0.1, 0, "looked"), (1.1, 0, "looked"), (math.nan, 0, "looked"), (0, -1.1, "used"), (0, math.nan, "used")],
)
def test_values_out_of_range_are_refused(looked, used, name):
    with pytest.raises(ConfigurationError, match=f"Expected `{name}` to be in"):
        Placed(image(), looked, used)


@pytest.mark.parametrize(
    ("words", "name"), [({"title": 3}, "title"), ({"subtitle": None}, "subtitle"), ({"chance": 1.5}, "chance"),
                        ({"chance": math.nan}, "chance"), ({"threshold": -0.1}, "threshold")],
)  # fmt: skip
def test_wrong_words_and_limits_are_refused(words, name):
    with pytest.raises(ConfigurationError, match=f"Expected `{name}`"):
        drawn((0.5, 0.5), **words)
