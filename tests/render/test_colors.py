import colorsys
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render import ColorScale

VALUES = np.array([-80.0, -50.0, -3.0, -0.1, 0.0, 0.1, 3.0, 50.0, 80.0])


@pytest.mark.parametrize("limit", [0.02, 1.0, 50.0, 3e4])
def test_position_follows_the_documented_law(limit):
    width = limit / 25.0
    values = np.array([0.001, 0.1, 0.3, 0.6, 0.99]) * limit
    expected = [math.asinh(value / width) / math.asinh(limit / width) for value in values]
    np.testing.assert_allclose(ColorScale(limit).position(values), expected, rtol=1e-6)


def test_position_of_doubled_values_moves_by_the_law_and_outwards():
    scale = ColorScale(50.0)
    values = np.array([0.05, 0.5, 5.0, 20.0])
    once, twice = scale.position(values), scale.position(2 * values)
    np.testing.assert_allclose(np.sinh(twice * math.asinh(25)), 2 * np.sinh(once * math.asinh(25)), rtol=1e-4)
    assert (twice > once).all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20), st.sampled_from([0.5, 50.0, 1000.0]))
def test_position_is_odd_bounded_and_never_falls(values, limit):
    scale = ColorScale(limit)
    ordered = np.sort(np.array(values))
    position = scale.position(ordered)
    assert (np.diff(position) >= 0).all()
    assert (np.abs(position) <= 1).all()
    np.testing.assert_array_equal(scale.position(-ordered), -position)


def test_position_is_one_at_the_limit_and_beyond_and_zero_at_zero():
    np.testing.assert_array_equal(ColorScale().position(VALUES)[[0, 1, 4, 7, 8]], [-1, -1, 0, 1, 1])


def test_scale_does_not_hang_on_the_other_values():
    scale = ColorScale()
    alone = scale.colorize(np.array([2.0]))
    among = scale.colorize(np.array([2.0, 1e9, -1e9]))
    np.testing.assert_array_equal(alone[0][0], among[0][0])
    assert alone[1][0] == among[1][0]


def test_there_is_no_heat_within_half_a_percent_of_the_limit_and_more_with_distance():
    _, opacity = ColorScale().colorize(np.array([0.0, -0.23, 0.23, 0.25, 1.0, 10.0, 50.0]))
    assert (opacity[:3] == 0.0).all()
    assert (np.diff(opacity[2:]) > 0).all()
    assert opacity[-1] == pytest.approx(0.4)


def test_one_logit_can_be_seen_on_the_fixed_scale():
    _, opacity = ColorScale().colorize(np.array([1.0]))
    assert opacity[0] > 0.15


def test_evidence_for_is_warm_and_evidence_against_is_cold():
    magnitudes = np.array([0.2, 1.0, 5.0, 20.0, 50.0])
    warm, _ = ColorScale().colorize(magnitudes)
    cold, _ = ColorScale().colorize(-magnitudes)
    hues = [[colorsys.rgb_to_hsv(*(color / 255.0))[0] * 360 for color in colors] for colors in (warm, cold)]
    assert all(hue < 50 or hue > 350 for hue in hues[0])
    assert all(200 < hue < 280 for hue in hues[1])


def test_colours_get_darker_outwards_on_both_sides():
    for sign in (1.0, -1.0):
        colors, _ = ColorScale().colorize(sign * np.array([0.1, 1.0, 5.0, 20.0, 50.0]))
        assert (np.diff(colors @ np.array([0.299, 0.587, 0.114])) < 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_get_an_opaque_grey_that_no_finite_value_has(bad):
    scale = ColorScale()
    rgb, opacity = scale.colorize(np.array([bad, 50.0, -50.0]))
    assert rgb[0, 0] == rgb[0, 1] == rgb[0, 2]
    assert opacity[0] == 1.0 > opacity[1:].max()
    assert np.isnan(scale.position(np.array([bad])))[0]


def test_shapes_and_dtypes_are_as_documented():
    rgb, opacity = ColorScale().colorize(np.arange(6).reshape(2, 3))
    assert (rgb.shape, rgb.dtype, opacity.shape, opacity.dtype) == ((2, 3, 3), np.uint8, (2, 3), np.float32)
    assert ColorScale().position(np.array(1.0)).shape == ()


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf, "50", None, True])
def test_limit_that_is_no_finite_positive_number_is_refused(limit):
    with pytest.raises(ConfigurationError, match=r"Expected `limit` to be a finite number above 0, but got"):
        ColorScale(limit)


def test_unit_that_is_not_text_is_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `unit` to be text, but got int"):
        ColorScale(1.0, 3)
