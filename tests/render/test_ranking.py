"""The picture of the most novel probes."""

from __future__ import annotations

import numpy as np
import pytest

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render import Ranked, render_ranking
from xai_callbacks.render.page import HAIRLINE, PAPER
from xai_callbacks.render.ranking import CHART, LINE_COLOR, WIDTH

RED, GREEN = (220, 10, 10), (10, 200, 10)


def plain(color, height=28, width=28):
    return np.full((height, width, 3), color, np.uint8)


def row(color=RED, trend=(), caption="probe", **size):
    return Ranked(plain(color, **size), caption, "-1.5", trend)


def places(picture, color):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((picture == np.array(color, np.uint8)).all(axis=2))


def chart(picture):
    return picture[:, -16 - CHART[0] : -16]


def test_equal_arguments_give_equal_bytes():
    one, two = (render_ranking([row(trend=(0.2, 0.9))], title="t", subtitle="s", steps=(0, 5)) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert one.dtype == np.uint8
    assert one.flags.c_contiguous
    assert one.shape[1] == WIDTH + 32


def test_the_first_is_on_top():
    picture = render_ranking([row(RED), row(GREEN)], title="t")
    assert places(picture, RED)[0].max() < places(picture, GREEN)[0].min()


def test_a_probe_keeps_its_aspect():
    rows, columns = places(render_ranking([row(height=20, width=40)], title="t"), RED)
    assert (np.ptp(columns) + 1) == 2 * (np.ptp(rows) + 1)


@pytest.mark.parametrize(("trend", "rises"), [((0.1, 0.5, 0.9), True), ((0.9, 0.5, 0.1), False)])
def test_a_line_rises_where_the_probe_gets_more_novel(trend, rises):
    picture = render_ranking([row(trend=trend)], title="t", steps=(0, 1, 2))
    rows, columns = places(chart(picture), LINE_COLOR)
    left, right = rows[columns < CHART[0] / 3].mean(), rows[columns > 2 * CHART[0] / 3].mean()
    assert (right < left) == rises


def test_nothing_is_drawn_where_a_share_is_not_known():
    gap = render_ranking([row(trend=(0.5, float("nan"), 0.5))], title="t", steps=(0, 1, 2))
    columns = places(chart(gap), LINE_COLOR)[1]
    assert columns.min() > CHART[0] / 2  # the dot of the latest audit alone
    none = render_ranking([row(trend=(float("nan"),) * 3)], title="t", steps=(0, 1, 2))
    assert len(places(chart(none), LINE_COLOR)[0]) == 0


def test_long_names_stay_on_the_page():
    short, long = (render_ranking([row(caption=text)], title=text) for text in ("a", "long_name_" * 60))
    assert short.shape[1] == long.shape[1]


def test_a_long_name_does_not_cut_off_the_score():
    name = "long_name_" * 60
    one, other = (render_ranking([Ranked(plain(RED), name, value)], title="t") for value in ("-1.5", "-2.5"))
    assert (one != other).any()


def test_a_probe_without_a_trend_has_no_chart():
    with_past, without = row(RED, trend=(0.2, 0.9)), row(GREEN)
    mixed = render_ranking([with_past, without], title="t", steps=(0, 5))
    rows = places(mixed, GREEN)[0]
    assert (chart(mixed)[rows.min() : rows.max()] == np.array(PAPER, np.uint8)).all()
    bare = render_ranking([without], title="t", steps=(0, 5))
    np.testing.assert_array_equal(bare, render_ranking([without], title="t"))


def test_a_single_audit_stands_at_the_last_step():
    picture = render_ranking([row(trend=(0.5,))], title="t", steps=(7,))
    assert places(chart(picture), LINE_COLOR)[1].min() > CHART[0] / 2


def test_the_charts_have_a_head_above_and_their_steps_below():
    picture = chart(render_ranking([row(trend=(0.2, 0.9))], title="", steps=(0, 5)))
    other = chart(render_ranking([row(trend=(0.2, 0.9))], title="", steps=(1, 6)))
    frame = np.nonzero((picture == np.array(HAIRLINE, np.uint8)).all(axis=2).sum(axis=1) == CHART[0])[0]
    changed = np.nonzero((picture != other).any(axis=(1, 2)))[0]
    assert (picture[: frame.min()] != np.array(PAPER, np.uint8)).any()
    assert changed.min() > frame.max()


def test_a_trend_may_be_an_array():
    listed, array = (
        render_ranking([row(trend=trend)], title="t", steps=(0, 5)) for trend in ((0.2, 0.9), np.array([0.2, 0.9]))
    )
    np.testing.assert_array_equal(listed, array)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: render_ranking([], title="t"), "at least one Ranked"),
        (lambda: render_ranking("ab", title="t"), "at least one Ranked"),
        (lambda: render_ranking([row(trend=(0.5,))], title="t"), "each of the 0 `steps`, but got 1"),
        (lambda: render_ranking([row()], title=3), "`title` to be text"),
        (lambda: render_ranking([row()], title="t", steps=None), "`steps` to be a sequence of whole numbers"),
        (lambda: render_ranking([row()], title="t", steps="ab"), "`steps` to be a sequence of whole numbers"),
        (lambda: row(trend=None), "`trend` to be a sequence of numbers, but got NoneType"),
        (lambda: row(trend=("x",)), "`trend` to be a sequence of numbers"),
        (lambda: row(trend="xy"), "`trend` to be a sequence of numbers"),
        (lambda: row(trend=(1.5,)), r"`trend` to hold shares in \[0, 1\] or NaN"),
        (lambda: Ranked(np.zeros((3, 3)), "a", "b"), "`pixels` to be one RGB image"),
        (lambda: Ranked(plain(RED), 3, "b"), "`caption` to be text"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ConfigurationError, match=match):
        make()
