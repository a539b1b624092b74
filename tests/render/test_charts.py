import math

import numpy as np
import pytest

from xai_callbacks.render import field_chart, line_chart
from xai_callbacks.render.charts import LINE_COLOR, NOT_USED, USED


def middles(picture, color):
    """Centre (y, x) of what is drawn in a colour."""
    where = np.argwhere((picture == color).all(axis=-1))
    return where.mean(axis=0) if len(where) else None, len(where)


def test_the_last_share_stands_at_the_right_at_its_height():
    for share, row in ((0.0, 57), (0.5, 32), (1.0, 6)):
        (y, x), _ = middles(line_chart([0.5, share], (64, 112))[:, 98:], LINE_COLOR)
        assert y == pytest.approx(row, abs=2)
        assert 98 + x == pytest.approx(105, abs=2)


def test_a_gap_is_not_bridged_and_one_share_is_a_dot():
    bridged, broken = (line_chart([0.0, middle, 0.0], (64, 112)) for middle in (0.5, math.nan))
    assert middles(bridged, LINE_COLOR)[1] > 2 * middles(broken, LINE_COLOR)[1]
    assert middles(line_chart([0.4], (64, 112)), LINE_COLOR)[1] > 20
    assert not (line_chart([math.nan], (64, 112)) == LINE_COLOR).all(axis=-1).any()


def field(points, **changes):
    given = {"chance": 0.1, "threshold": 0.05, "size": (300, 352), "type_size": 15}
    return field_chart(points, **(given | changes))


def test_used_probes_are_orange_and_higher_looked_at_ones_further_right():
    used, other = field([(0.2, 0.9)]), field([(0.8, 0.0)])
    (used_y, used_x), count = middles(used, USED)
    assert count > 10
    assert middles(used, NOT_USED)[1] == 0
    (other_y, other_x), _ = middles(other, NOT_USED)
    assert used_y < other_y
    assert used_x < other_x


def test_both_axes_are_those_of_the_square_root():
    columns = [middles(field([(looked, 1.0)]), USED)[0][1] for looked in (0.0625, 0.25, 0.5625)]
    assert columns[1] - columns[0] == pytest.approx(columns[2] - columns[1], abs=1)


def test_dots_at_the_edge_are_whole():
    inner, corner = (middles(field([point]), USED)[1] for point in ((0.5, 0.5), (1.0, 1.0)))
    assert corner == pytest.approx(inner, abs=6)


def test_effects_beyond_the_field_stand_at_its_edge():
    (low, _), _ = middles(field([(0.5, -0.25)]), NOT_USED)
    assert middles(field([(0.5, -0.9)]), NOT_USED)[0][0] == low
    assert middles(field([(0.5, 1.5)]), USED)[0][0] == middles(field([(0.5, 1.0)]), USED)[0][0]
