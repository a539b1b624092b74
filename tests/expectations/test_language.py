"""The grammar: what is understood, how it is written, and what is said of the rest."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations import Expectation
from xai_callbacks.expectations.expectation import KEYWORDS, OPERATORS
from xai_callbacks.expectations.language import advice, nearest, parse_metric, parse_sentence


@pytest.mark.parametrize(
    ("sentence", "expectation"),
    [
        (
            "relevance_mass[core] > 0.5 for class wolf",
            Expectation("relevance_mass[core]", ">", 0.5, for_class="wolf"),
        ),
        ("cue_effect[snow] < 0.05", Expectation("cue_effect[snow]", "<", 0.05)),
        ("top1_stable under half_fill", Expectation("top1_stable", ">=", 0.95, under="half_fill")),
        ("top1_stable under half_fill > 0.8", Expectation("top1_stable", ">", 0.8, under="half_fill")),
        ("worst_group_accuracy > 0.7 from epoch 5", Expectation("worst_group_accuracy", ">", 0.7, from_epoch=5)),
        (
            "relevance_mass[spurious] of why_rather_than < 0.2",
            Expectation("relevance_mass[spurious]", "<", 0.2, of="why_rather_than"),
        ),
        ("accuracy >= 0.9 for class 3", Expectation("accuracy", ">=", 0.9, for_class=3)),
        ("accuracy >= 0.9 for class '3'", Expectation("accuracy", ">=", 0.9, for_class="3")),
        ("accuracy >= 0.9 for class 03", Expectation("accuracy", ">=", 0.9, for_class="03")),
        ("novelty[energy].auroc > 0.8", Expectation("novelty[energy].auroc", ">", 0.8)),
        ("`gradcam/why/relevance_mass/core` > 0.5", Expectation("`gradcam/why/relevance_mass/core`", ">", 0.5)),
        ('"gradcam/why/relevance_mass/core" > 0.5', Expectation("`gradcam/why/relevance_mass/core`", ">", 0.5)),
        ("'gradcam/why/relevance_mass/core'>.5", Expectation("`gradcam/why/relevance_mass/core`", ">", 0.5)),
        ("accuracy>5%", Expectation("accuracy", ">", 0.05)),
        ("accuracy <= 7 %", Expectation("accuracy", "<=", 0.07)),
        ("accuracy <= 12.5 % until epoch 3", Expectation("accuracy", "<=", 0.125, until_epoch=3)),
        ("background_gap > -0.1", Expectation("background_gap", ">", -0.1)),
        ("relevance_lift[core] > +3.", Expectation("relevance_lift[core]", ">", 3.0)),
        (
            "drift of why_value_rather_than_0.75 < 1",
            Expectation("drift", "<", 1.0, of="why_value_rather_than_0.75"),
        ),
        (
            "accuracy until epoch 9 for class 'great white' from epoch 2 > 0.5 for group land",
            Expectation("accuracy", ">", 0.5, for_class="great white", for_group="land", from_epoch=2, until_epoch=9),
        ),
        ("  accuracy\n  >\t0.5  ", Expectation("accuracy", ">", 0.5)),
        ("relevance_mass [ dog's head ] > 0.5", Expectation('relevance_mass["dog\'s head"]', ">", 0.5)),
        ('relevance_mass["a]b"] > 0.5', Expectation("relevance_mass['a]b']", ">", 0.5)),
        ("accuracy > 0.5 for class 'of'", Expectation("accuracy", ">", 0.5, for_class="of")),
        ("accuracy > 0.5 for class shepherd's_dog", Expectation("accuracy", ">", 0.5, for_class="shepherd's_dog")),
    ],
)
def test_sentence_is_understood_and_written_back(sentence, expectation):
    understood = parse_sentence(sentence)
    assert understood == expectation
    assert parse_sentence(str(understood)) == understood


def test_sentence_has_one_way_of_being_written():
    sentence = "accuracy until epoch 9 for class 'great white' from epoch 2 > 50 % for group land"
    assert str(parse_sentence(sentence)) == (
        "accuracy > 0.5 for class 'great white' for group land from epoch 2 until epoch 9"
    )


words = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1).filter(
    lambda text: text.strip() and text.isprintable() and not {"'", '"', "`"} <= set(text)
)
epochs = st.none() | st.integers(0, 10**9 - 1)


@given(
    name=st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True),
    argument=st.none() | words,
    operator=st.sampled_from(OPERATORS),
    bound=st.floats(-1e30, 1e30),
    clauses=st.fixed_dictionaries(
        {
            "under": st.none() | words | st.sampled_from(KEYWORDS),
            "of": st.none() | words,
            "for_class": st.none() | words | st.integers(0, 10**9 - 1),
            "for_group": st.none() | words | st.integers(0, 10**9 - 1),
        }
    ),
    from_epoch=epochs,
    until_epoch=epochs,
)
def test_every_expectation_is_read_as_it_is_written(name, argument, operator, bound, clauses, from_epoch, until_epoch):
    if from_epoch is not None and until_epoch is not None:
        from_epoch, until_epoch = sorted((from_epoch, until_epoch))
    brackets = "" if argument is None else f"['{argument}']" if "'" not in argument else f"[{_bare(argument)}]"
    metric = str(parse_metric(name + brackets))
    expectation = Expectation(metric, operator, bound, from_epoch=from_epoch, until_epoch=until_epoch, **clauses)
    assert parse_sentence(str(expectation)) == expectation


def _bare(argument):
    return "".join(letter for letter in argument if letter not in "[]'\"`").strip() or "x"


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (" ", "Expected a sentence such as 'relevance_mass[core] > 0.5', but got an empty one. Remove it."),
        ("> 0.5", "Expected a metric first, but got '> 0.5' in '> 0.5'. An example: relevance_mass[core] > 0.5."),
        ("accuracy", "Expected a comparison such as `> 0.5` of `accuracy`, but got none in 'accuracy'."),
        (
            "accuracy >",
            "Expected a number such as 0.5 or 5 % after the operator, but got the end in 'accuracy >'.",
        ),
        (
            "accuracy > 0,5",
            "Expected a number such as 0.5 or 5 % after the operator, but got '0,5' in 'accuracy > 0,5'. "
            "Decimals have a point.",
        ),
        (
            "accuracy > half",
            "Expected a number such as 0.5 or 5 % after the operator, but got 'half' in 'accuracy > half'.",
        ),
        (
            "accuracy > nan",
            "Expected a number such as 0.5 or 5 % after the operator, but got 'nan' in 'accuracy > nan'.",
        ),
        (
            "accuracy > 1e-3",
            "Expected a number such as 0.5 or 5 % after the operator, but got '1e-3' in 'accuracy > 1e-3'.",
        ),
        ("accuracy => 0.5", "Expected one of <, <=, >, >=, but got '=>' in 'accuracy => 0.5'. Did you mean '>='?"),
        ("accuracy ≤ 0.5", "Expected one of <, <=, >, >=, but got '≤' in 'accuracy ≤ 0.5'. Did you mean '<='?"),
        (
            "accuracy == 0.5",
            "Expected one of <, <=, >, >=, but got '==' in 'accuracy == 0.5'. "
            "What is measured is hardly ever equal to a number.",
        ),
        (
            "0.2 < accuracy",
            "Expected a metric first, but got '0.2 < accuracy' in '0.2 < accuracy'. "
            "An example: relevance_mass[core] > 0.5.",
        ),
        (
            "accuracy > 0.2 < 0.5",
            "Expected one comparison, but got another one, '< 0.5', in 'accuracy > 0.2 < 0.5'. Write two expectations.",
        ),
        (
            "accuracy > 0.5 fro epoch 3",
            "Expected a comparison or one of under, of, for class, for group, from epoch, until epoch, but got 'fro' "
            "in 'accuracy > 0.5 fro epoch 3'. Did you mean 'from'?",
        ),
        (
            "accuracy > 0.5 untill epoch 3",
            "Expected a comparison or one of under, of, for class, for group, from epoch, until epoch, but got "
            "'untill' in 'accuracy > 0.5 untill epoch 3'. Did you mean 'until'?",
        ),
        (
            "accuracy > 0.5 for class great white",
            "Expected a comparison or one of under, of, for class, for group, from epoch, until epoch, but got "
            "'white' in 'accuracy > 0.5 for class great white'. Names with spaces stand in quotes.",
        ),
        (
            "accuracy > 0.5 for clas wolf",
            "Expected `class` or `group` after `for`, but got 'clas' in 'accuracy > 0.5 for clas wolf'. "
            "Did you mean 'class'?",
        ),
        (
            "accuracy > 0.5 for class",
            "Expected the class after `for class`, but got the end in 'accuracy > 0.5 for class'.",
        ),
        (
            "accuracy > 0.5 for class from epoch 3",
            "Expected the class after `for class`, but got 'from' in 'accuracy > 0.5 for class from epoch 3'. "
            "Put it in quotes if that is the name.",
        ),
        (
            "accuracy > 0.5 for class wolf for class husky",
            "Expected `for class` once, but got it twice in 'accuracy > 0.5 for class wolf for class husky'. "
            "Write two expectations.",
        ),
        (
            "accuracy > 0.5 from epohc 3",
            "Expected `epoch` after `from`, but got 'epohc' in 'accuracy > 0.5 from epohc 3'. Did you mean 'epoch'?",
        ),
        ("accuracy > 0.5 from 3", "Expected `epoch` after `from`, but got '3' in 'accuracy > 0.5 from 3'."),
        (
            "accuracy > 0.5 from epoch 2.5",
            "Expected a whole number after `from epoch`, but got '2.5' in 'accuracy > 0.5 from epoch 2.5'.",
        ),
        (
            "accuracy > 0.5 from epoch 5 until epoch 3",
            "Expected `until_epoch` to be 5 or later, as `from_epoch` is, but got 3. "
            "This is about 'accuracy > 0.5 from epoch 5 until epoch 3'.",
        ),
        (
            "relevance_mass[core > 0.5",
            "Expected a closing bracket after `relevance_mass[`, but got '[core > 0.5' in 'relevance_mass[core > 0.5'.",
        ),
        (
            "relevance_mass[] > 0.5",
            "Expected a name in the brackets of `relevance_mass`, but got nothing in 'relevance_mass[] > 0.5'.",
        ),
        (
            "novelty[energy]. > 0.5",
            "Expected a name after the point, but got '> 0.5' in 'novelty[energy]. > 0.5'. "
            "An example: novelty[energy].auroc > 0.8.",
        ),
        ("`` > 0.5", "Expected a key between the quotes, but got nothing in '`` > 0.5'."),
        (
            "gradcam/why/relevance_mass/core > 0.5",
            "Expected a metric, but got 'gradcam/why/relevance_mass/core' in 'gradcam/why/relevance_mass/core > 0.5'. "
            "Put the key of an audit in backquotes.",
        ),
    ],
)
def test_what_is_not_understood_is_an_error_that_says_what_was_expected(sentence, message):
    with pytest.raises(ConfigurationError) as error:
        parse_sentence(sentence)
    assert str(error.value) == message


def test_number_beyond_the_floats_is_refused():
    with pytest.raises(ConfigurationError, match="Expected a number, but got '9999"):
        parse_sentence(f"accuracy > {'9' * 400}")


def test_long_sentence_is_cut_in_the_message():
    with pytest.raises(ConfigurationError) as error:
        parse_sentence("accuracy > 0.5 " + "x" * 5000)
    assert len(str(error.value)) < 500


@given(st.text())
def test_any_text_is_understood_or_refused(text):
    understood_or_refused(text)


letters = ("[", "]", ".", "%", "-", "'", '"', "`", "=", "!", "≤", " ", " ", " ", "\n", "/", "\x00", "\ud800", "٣")
phrases = ("accuracy", "relevance_mass", "[core]", "0.5", "5", "1e400", "wolf", "top1_stable")
pieces = st.sampled_from([*KEYWORDS, *OPERATORS, *phrases, *letters])


@given(st.lists(pieces, max_size=14).map("".join))
def test_any_scramble_of_the_language_is_understood_or_refused(text):
    understood_or_refused(text)


@given(st.lists(pieces, max_size=10))
def test_any_words_of_the_language_are_understood_or_refused(given_pieces):
    understood_or_refused(" ".join(["accuracy", *given_pieces]))


def understood_or_refused(text):
    """Any error but a `ConfigurationError` fails the test."""
    with suppress(ConfigurationError):
        expectation = parse_sentence(text)
        assert parse_sentence(str(expectation)) == expectation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": "="}, "Expected `operator` to be one of <, <=, >, >=, but got '='."),
        ({"bound": float("nan")}, "Expected `bound` to be a finite number, but got nan."),
        ({"bound": True}, "Expected `bound` to be a finite number, but got True."),
        ({"bound": "0.5"}, "Expected `bound` to be a finite number, but got '0.5'."),
        ({"bound": 10**400}, "Expected `bound` to be a finite number"),
        ({"metric": ""}, "Expected `metric` to be readable text on one line, but got ''."),
        ({"name": "a\nb"}, r"Expected `name` to be readable text on one line, but got 'a\\nb'."),
        ({"for_class": True}, "Expected `for_class` to be an integer of 0 or more, but got True."),
        ({"for_class": 1.5}, "Expected `for_class` to be readable text on one line, but got 1.5."),
        ({"from_epoch": -1}, "Expected `from_epoch` to be an integer of 0 or more, but got -1."),
        ({"from_epoch": 5, "until_epoch": 4}, "Expected `until_epoch` to be 5 or later"),
    ],
)
def test_expectation_of_wrong_values_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Expectation(**{"metric": "accuracy", "operator": ">", "bound": 0.5, **arguments})


@pytest.mark.parametrize(
    ("epoch", "due"), [(0, False), (1, False), (2, True), (3, True), (4, True), (5, False)], ids=str
)
def test_first_and_last_epoch_are_both_due(epoch, due):
    assert parse_sentence("accuracy > 0.5 from epoch 2 until epoch 4").is_due(epoch) is due


def test_whole_numbers_are_written_whole():
    assert [parse_sentence(f"cluster_count > {text}").comparison for text in ("3", "30.0", "0.10", "-0")] == [
        "> 3",
        "> 30",
        "> 0.1",
        "> 0",
    ]


def test_nearest_name_is_found_whatever_its_case():
    assert nearest("WOLF", ["Wolf", "husky"]) == "Wolf"
    assert nearest("zebra", ["Wolf", "husky"]) is None


def test_advice_lists_what_there_is_where_nothing_is_near():
    assert advice("zebra", ("wolf", "husky"), "Add it.") == "Known: wolf, husky. Add it."
    assert advice("zebra", (), "Add it.") == "Add it."
    assert advice("zebra", tuple("abcdefghijklmn")) == "Known: a, b, c, d, e, f, g, h, i, j, k, l and 2 more."
