"""The grammar: what is understood, how it is written, and what is said of the rest."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.rules.sentence import KEYWORDS, OPERATORS, Sentence, advice, parse


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cue/patch/effect < 0.05", Sentence("cue/patch/effect", "<", 0.05)),
        ("audit/cue/patch/effect < 0.05", Sentence("cue/patch/effect", "<", 0.05)),
        (
            "gradcam/why/relevance_mass/core > 0.5 for class wolf",
            Sentence("gradcam/why/relevance_mass/core", ">", 0.5, for_class="wolf"),
        ),
        (
            "`gradcam/why/relevance_mass/core` > 0.5 for group 'land birds'",
            Sentence("gradcam/why/relevance_mass/core", ">", 0.5, for_group="land birds"),
        ),
        ("'group/accuracy/wolf on snow' >= .5", Sentence("group/accuracy/wolf on snow", ">=", 0.5)),
        (
            "accuracy > 0.7 from epoch 5 until epoch 20",
            Sentence("accuracy", ">", 0.7, from_epoch=5, until_epoch=20),
        ),
        ("accuracy >= 0.9 for class 3", Sentence("accuracy", ">=", 0.9, for_class=3)),
        ("accuracy >= 0.9 for class '3'", Sentence("accuracy", ">=", 0.9, for_class="3")),
        ("accuracy >= 0.9 for class 03", Sentence("accuracy", ">=", 0.9, for_class="03")),
        ("accuracy >= 0.9 for group 3", Sentence("accuracy", ">=", 0.9, for_group="3")),
        ("accuracy>5%", Sentence("accuracy", ">", 0.05)),
        ("accuracy <= 7 %", Sentence("accuracy", "<=", 0.07)),
        ("accuracy <= 12.5 % until epoch 3", Sentence("accuracy", "<=", 0.125, until_epoch=3)),
        ("bg/gap > -0.1", Sentence("bg/gap", ">", -0.1)),
        ("bg/gap<-0", Sentence("bg/gap", "<", 0.0)),
        ("gradcam/why/relevance_lift/core > +3.", Sentence("gradcam/why/relevance_lift/core", ">", 3.0)),
        ("gradcam/why_value_rather_than_0.75/drift < 1", Sentence("gradcam/why_value_rather_than_0.75/drift", "<", 1)),
        (
            "accuracy > 0.5 until epoch 9 for class 'great white' from epoch 2 for group land",
            Sentence("accuracy", ">", 0.5, "great white", "land", 2, 9),
        ),
        ("  accuracy\n  >\t0.5  ", Sentence("accuracy", ">", 0.5)),
        ("accuracy > 0.5 for class 'of'", Sentence("accuracy", ">", 0.5, for_class="of")),
        ("accuracy > 0.5 for class 'for'", Sentence("accuracy", ">", 0.5, for_class="for")),
        ("accuracy > 0.5 for class shepherd's_dog", Sentence("accuracy", ">", 0.5, for_class="shepherd's_dog")),
    ],
)
def test_sentence_is_understood_and_written_back(text, sentence):
    understood = parse(text)
    assert understood == sentence
    assert parse(str(understood)) == understood


def test_sentence_has_one_way_of_being_written():
    text = "`audit/accuracy` > 50 % until epoch 9 for class 'great white' from epoch 2 for group land"
    assert str(parse(text)) == "accuracy > 0.5 for class 'great white' for group land from epoch 2 until epoch 9"


words = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1).filter(
    lambda text: text.strip() and text.isprintable() and not {"'", '"', "`"} <= set(text)
)
epochs = st.none() | st.integers(0, 10**9 - 1)


@given(
    key=st.from_regex("[a-z_]{1,9}(/[A-Za-z0-9_.]{1,9}){0,3}", fullmatch=True) | words | st.sampled_from(KEYWORDS),
    operator=st.sampled_from(sorted(OPERATORS)),
    bound=st.floats(-1e30, 1e30),
    for_class=st.none() | words | st.integers(0, 10**9 - 1) | st.sampled_from(KEYWORDS),
    for_group=st.none() | words | st.from_regex("[0-9]{1,3}", fullmatch=True),
    between=st.tuples(epochs, epochs),
)
def test_every_sentence_is_read_as_it_is_written(key, operator, bound, for_class, for_group, between):
    if None not in between:
        between = sorted(between)
    sentence = Sentence(key.removeprefix("audit/"), operator, bound + 0.0, for_class, for_group, *between)
    assert parse(str(sentence)) == sentence


COMPARED = "Expected one of <, <=, >, >= after the key, but got"
NUMBER = "Expected a number such as 0.5 or 5 % after the operator, but got"
CLAUSE = "Expected for class, for group, from epoch, until epoch or the end, but got"
QUOTES = "Names and keys with spaces stand in quotes."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "Expected the key of a metric first, such as cue/patch/effect, but got the end in ' '."),
        ("> 0.5", "Expected the key of a metric first, such as cue/patch/effect, but got '>' in '> 0.5'."),
        ("accuracy", f"{COMPARED} the end in 'accuracy'."),
        ("wolf on snow > 0.5", f"{COMPARED} 'on' in 'wolf on snow > 0.5'. {QUOTES}"),
        ("accuracy >", f"{NUMBER} the end in 'accuracy >'."),
        ("accuracy > 0,5", f"{NUMBER} '0,5' in 'accuracy > 0,5'. Decimals have a point."),
        ("accuracy > half", f"{NUMBER} 'half' in 'accuracy > half'."),
        ("accuracy > nan", f"{NUMBER} 'nan' in 'accuracy > nan'."),
        ("accuracy > 1e-3", f"{NUMBER} '1e-3' in 'accuracy > 1e-3'."),
        ("0.2 < accuracy", f"{NUMBER} 'accuracy' in '0.2 < accuracy'."),
        ("accuracy => 0.5", f"{COMPARED} '=>' in 'accuracy => 0.5'. Did you mean '>='?"),
        ("accuracy ≤ 0.5", f"{COMPARED} '≤' in 'accuracy ≤ 0.5'. Did you mean '<='?"),
        ("accuracy == 0.5", f"{COMPARED} '==' in 'accuracy == 0.5'. What is measured hardly ever equals a number."),
        (
            "accuracy > 0.2 < 0.5",
            "Expected one comparison, but got another one, '<', in 'accuracy > 0.2 < 0.5'. Write two expectations.",
        ),
        ("accuracy > 0.5 fro epoch 3", f"{CLAUSE} 'fro' in 'accuracy > 0.5 fro epoch 3'. Did you mean 'from'?"),
        (
            "accuracy > 0.5 untill epoch 3",
            f"{CLAUSE} 'untill' in 'accuracy > 0.5 untill epoch 3'. Did you mean 'until'?",
        ),
        (
            "accuracy > 0.5 for class great white",
            f"{CLAUSE} 'white' in 'accuracy > 0.5 for class great white'. {QUOTES}",
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
            "Expected `until epoch` to be 5 or later, as `from epoch` is, but got 3 in "
            "'accuracy > 0.5 from epoch 5 until epoch 3'.",
        ),
        (
            "`` > 0.5",
            "Expected the key of a metric first, such as cue/patch/effect, readable and on one line, but got '' in "
            "'`` > 0.5'.",
        ),
        (
            "accuracy > 0.5 for class 'a\nb'",
            "Expected the class after `for class`, readable and on one line, but got 'a\\nb' in "
            "\"accuracy > 0.5 for class 'a\\nb'\".",
        ),
    ],
)
def test_what_is_not_understood_is_an_error_that_says_what_was_expected(text, message):
    with pytest.raises(ConfigurationError) as error:
        parse(text)
    assert str(error.value) == message


def test_number_beyond_the_floats_is_refused():
    with pytest.raises(ConfigurationError, match="Expected a number, but got '9999"):
        parse(f"accuracy > {'9' * 400}")


def test_long_sentence_is_cut_in_the_message():
    with pytest.raises(ConfigurationError) as error:
        parse("accuracy > 0.5 " + "x" * 5000)
    assert len(str(error.value)) < 500


letters = ("[", "]", ".", "%", "-", "'", '"', "`", "=", "!", "≤", " ", " ", " ", "\n", "/", "\x00", "\ud800", "٣")
phrases = ("accuracy", "audit/", "cue/patch/effect", "0.5", "5", "1e400", "wolf", "for class", "from epoch")
pieces = st.sampled_from([*KEYWORDS, *OPERATORS, *phrases, *letters])


@given(st.text() | st.lists(pieces, max_size=14).map("".join))
def test_any_text_is_understood_or_refused(text):
    understood_or_refused(text)


@given(st.lists(pieces, max_size=10))
def test_any_words_of_the_language_are_understood_or_refused(given_pieces):
    understood_or_refused(" ".join(["accuracy > 0.5", *given_pieces]))


def understood_or_refused(text):
    """Any error but a `ConfigurationError` fails the test."""
    with suppress(ConfigurationError):
        sentence = parse(text)
        assert parse(str(sentence)) == sentence


def test_whole_numbers_are_written_whole():
    assert [parse(f"cluster/count > {text}").comparison for text in ("3", "30.0", "0.10", "-0")] == [
        "> 3",
        "> 30",
        "> 0.1",
        "> 0",
    ]


def test_advice_is_the_nearest_name_whatever_its_case_or_all_there_are():
    assert advice("WOLF", ["Wolf", "husky"]) == "Did you mean 'Wolf'?"
    assert advice("zebra", ("wolf", "husky"), "Add it.") == "Known: wolf, husky. Add it."
    assert advice("zebra", (), "Add it.") == "Add it."
    assert advice("zebra", tuple("abcdefghijklmn")) == "Known: a, b, c, d, e, f, g, h, i, j, k, l and 2 more."
