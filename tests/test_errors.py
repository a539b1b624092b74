"""The checks that constructors share."""

from __future__ import annotations

import math

import pytest
import torch

from xai_callbacks.errors import (
    ConfigurationError,
    first_of,
    is_number,
    require_bool,
    require_choice,
    require_different,
    require_instance,
    require_name,
    require_number,
    with_settings,
)


@pytest.mark.parametrize("value", ["false", "no", 0, 1, None, [], 0.0])
def test_what_is_no_switch_is_refused(value):
    with pytest.raises(ConfigurationError, match="Expected `nulls` to be True or False, but got"):
        require_bool("nulls", value)


def test_switches_names_and_instances_pass():
    require_bool("nulls", True)
    require_bool("nulls", False)
    require_name("`name`", "a_b-c.1")
    require_instance("alarm", 1, (int, str), "a number or a text")


@pytest.mark.parametrize("value", [None, 5, "", "a b", "a/b", ["a"], b"a", "a\n"])
def test_what_is_no_name_is_refused(value):
    with pytest.raises(ConfigurationError, match="Expected `name` of a cue to be letters, digits"):
        require_name("`name` of a cue", value)


def test_what_is_of_another_class_is_refused_with_what_it_is():
    with pytest.raises(ConfigurationError, match="Expected `alarm` to be an AlarmRule, but got str 'x'"):
        require_instance("alarm", "x", dict, "an AlarmRule")


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("", "Expected `fill` to be one of white, blur, but got 'fog'."),
        ("the cue 'patch'", "Expected `fill` of the cue 'patch' to be one of white, blur, but got 'fog'."),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_those_there_are(of, said):
    require_choice("fill", "blur", ("white", "blur"), of=of)
    with pytest.raises(ConfigurationError) as caught:
        require_choice("fill", "fog", ("white", "blur"), of=of)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((value, True) for value in (0, 1.5, -3, 10**400)),
        *((value, False) for value in (True, "1", None, math.nan, math.inf, -math.inf, [1])),
    ],
)
def test_a_number_is_finite_and_no_bool(value, number):
    assert is_number(value) is number


@pytest.mark.parametrize(
    ("low", "high", "ends", "inside", "outside", "wanted"),
    [
        (0, 1, "[)", (0, 0.5), (-0.1, 1, math.nan, True, "1"), "a number in [0, 1)"),
        (0, 1, "(]", (0.5, 1), (0, 1.1, math.inf), "a number in (0, 1]"),
        (0.5, 1, "()", (0.6,), (0.5, 1), "a number in (0.5, 1)"),
        (0, math.inf, "[)", (0, 7), (-1, math.inf), "a number of 0 or more"),
        (0, math.inf, "()", (1e-9, 7), (0, math.inf), "a finite number above 0"),
        (-math.inf, math.inf, "[)", (-7, 7), (-math.inf, math.nan, None), "a finite number"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(low, high, ends, inside, outside, wanted):
    for value in inside:
        read = require_number("share", value, low, high, ends=ends)
        assert read == value
        assert isinstance(read, float)
    for value in outside:
        with pytest.raises(ConfigurationError) as caught:
            require_number("share", value, low, high, ends=ends, of="a cue", hint="Take less.")
        assert str(caught.value) == f"Expected `share` of a cue to be {wanted}, but got {value!r}. Take less."


def test_a_name_that_comes_twice_is_refused_with_another():
    require_different("trials", iter("ab"), "Name one.")
    with pytest.raises(ConfigurationError, match=r"different names, but got 'a' twice\. Name one 'a_2'"):
        require_different("trials", iter("aba"), "Name one '{}_2'.")


@pytest.mark.parametrize(
    ("names", "told"), [((), ""), ("a", "a"), ("abc", "a, b, c"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")]
)
def test_the_first_names_are_told_and_the_others_counted(names, told):
    assert first_of(names, 3) == told


def test_settings_in_words_leave_out_what_is_private_or_no_plain_value():
    class Score:
        def __init__(self):
            self.k, self.fills, self.label, self.limit = 3, ("white", "black"), "none", None
            self.module, self.rows, self._learnt = torch.nn.Linear(2, 2), [torch.zeros(2)], 5

    assert with_settings(Score()) == "Score(k=3, fills=('white', 'black'), label='none', limit=None)"
