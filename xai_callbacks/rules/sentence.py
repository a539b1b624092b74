"""Sentences such as `gradcam/why/relevance_mass/core > 0.5 for class wolf from epoch 5`, read and written.

    sentence   = key, operator, number, {clause}
    operator   = "<" | "<=" | ">" | ">="
    number     = decimal, ["%"]
    clause     = "for class" name | "for group" name | "from epoch" n | "until epoch" n

The key is that of a logged metric; `audit/` before it, the name under which it is logged, is dropped. Clauses come in
any order, each at most once. Names and keys with spaces, keywords, and names that consist of digits stand in quotes:
`'`, `"` or a backquote. Nothing is guessed: what is not understood is an error that says what was expected.
"""

import math
import operator
import re
from collections.abc import Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NamedTuple

from xai_callbacks.errors import ConfigurationError, first_of

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
KEYWORDS = ("for", "class", "group", "from", "until", "epoch")

_QUOTED = r"""`[^`]*`|"[^"]*"|'[^']*'"""
_TOKEN = re.compile(rf"{_QUOTED}|[<>=!≤≥]+|[^\s<>=!≤≥]+")
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)%?"
_QUOTES = "Names and keys with spaces stand in quotes."
_ALMOST = {"=>": ">=", "=<": "<=", "≥": ">=", "≤": "<="}

# As many as one can take in, and as long as a name ever is: an error message is read by people.
_MOST_NAMED, _LONGEST = 12, 100


class Sentence(NamedTuple):
    """What must hold of one metric. `str` gives its one way of being written."""

    key: str
    operator: str  # one of `OPERATORS`
    bound: float
    for_class: str | int | None = None  # only probes of this class, by name or index; None for all
    for_group: str | None = None  # only probes of this group, by name; None for all
    from_epoch: int | None = None  # first epoch that counts, from 0; None for the first of all
    until_epoch: int | None = None  # last epoch that counts; None for no end

    @property
    def comparison(self) -> str:
        """Operator and bound, such as `> 0.5`."""
        text = format(Decimal(repr(self.bound)), "f")
        return f"{self.operator} {text.rstrip('0').rstrip('.') if '.' in text else text}"

    def holds(self, value: float) -> bool:
        """Whether a value is on the expected side of the bound."""
        return bool(OPERATORS[self.operator](value, self.bound))

    def __str__(self) -> str:
        clauses = zip(self._fields[3:], self[3:], strict=True)
        after = [f" {name.replace('_', ' ')} {_written(value)}" for name, value in clauses if value is not None]
        return f"{_written(self.key)} {self.comparison}{''.join(after)}"


def parse(text: str) -> Sentence:
    """Read a sentence; a `ConfigurationError` says where it is not of the language, and what was expected."""
    return _Reader(text).sentence()


def refusal(sentence: object, expected: str, got: str, way_out: str = "") -> ConfigurationError:
    """The error about a sentence, in the form of all errors."""
    return ConfigurationError(f"Expected {expected}, but got {got} in {_short(str(sentence))!r}. {way_out}".rstrip())


def advice(given: str, known: Sequence[str], otherwise: str = "") -> str:
    """The known name nearest to a wrong one; or else all there are, and what to do."""
    folded = {name.casefold(): name for name in known}
    near = get_close_matches(given[:_LONGEST].casefold(), folded, n=1)
    if near:
        return f"Did you mean {folded[near[0]]!r}?"
    return (f"Known: {first_of(known, _MOST_NAMED)}. {otherwise}" if known else otherwise).rstrip()


class _Reader:
    """Reads a sentence from left to right, token by token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _TOKEN.findall(text)

    def sentence(self) -> Sentence:
        key = self.name("the key of a metric first, such as cue/patch/effect", keywords=True)
        key = re.sub("^(audit/)+(?=.)", "", key)
        is_equality = self.tokens[:1] in (["="], ["=="], ["!="])
        way_out = "What is measured hardly ever equals a number." if is_equality else _QUOTES
        compared = self.one_of(f"one of {', '.join(OPERATORS)} after the key", tuple(OPERATORS), way_out)
        bound, clauses = self.number(), dict[str, Any]()
        while self.tokens:
            if self.tokens[0][0] in "<>=!≤≥":
                raise self.error("one comparison", f"another one, {self.tokens[0]!r},", "Write two expectations.")
            expected = "for class, for group, from epoch, until epoch or the end"
            word = self.one_of(expected, ("for", "from", "until"), _QUOTES)
            kinds = ("class", "group") if word == "for" else ("epoch",)
            kind = self.one_of(f"`{'` or `'.join(kinds)}` after `{word}`", kinds)
            clause, before = f"{word}_{kind}", f"after `{word} {kind}`"
            if clause in clauses:
                raise self.error(f"`{word} {kind}` once", "it twice", "Write two expectations.")
            if kind == "epoch":
                clauses[clause] = int(self.take(f"a whole number {before}", "[0-9]{1,9}"))
            elif kind == "class" and self.tokens and re.fullmatch("0|[1-9][0-9]{0,8}", self.tokens[0]):
                clauses[clause] = int(self.tokens.pop(0))
            else:
                clauses[clause] = self.name(f"the {kind} {before}")
        first, last = clauses.get("from_epoch", 0), clauses.get("until_epoch", math.inf)
        if last < first:
            raise self.error(f"`until epoch` to be {first} or later, as `from epoch` is", str(last))
        return Sentence(key, compared, bound, **clauses)

    def take(self, expected: str, pattern: str, way_out: str = "") -> str:
        if not self.tokens or not re.fullmatch(pattern, self.tokens[0]):
            raise self.error(expected, repr(_short(self.tokens[0])) if self.tokens else "the end", way_out)
        return str(self.tokens.pop(0))

    def one_of(self, expected: str, words: tuple[str, ...], way_out: str = "") -> str:
        """The next token, which must be one of some; the error suggests what was probably meant."""
        got = self.tokens[0] if self.tokens else ""
        near = [_ALMOST[got]] if got in _ALMOST else get_close_matches(got.casefold()[:_LONGEST], words, n=1)
        return self.take(expected, "|".join(words), f"Did you mean {near[0]!r}?" if near else way_out if got else "")

    def number(self) -> float:
        way_out = "Decimals have a point." if self.tokens and re.match("[+-]?[0-9]*,[0-9]", self.tokens[0]) else ""
        text = self.take("a number such as 0.5 or 5 % after the operator", _NUMBER, way_out)
        if not text.endswith("%") and self.tokens[:1] == ["%"]:
            text += self.tokens.pop(0)
        # 0.0 for -0.0, so that equal sentences are written alike.
        value = float(text.replace("%", "e-2")) + 0.0
        if not math.isfinite(value):
            raise self.error("a number", repr(_short(text)))
        return value

    def name(self, expected: str, keywords: bool = False) -> str:
        """The next token, out of its quotes."""
        word = self.take(expected, rf"(?s:{_QUOTED})|[^<>=!≤≥]+")
        quoted = re.fullmatch(_QUOTED, word) is not None
        if not quoted and word in KEYWORDS and not keywords:
            raise self.error(expected, repr(word), "Put it in quotes if that is the name.")
        text = word[1:-1] if quoted else word
        if not text.strip() or not text.isprintable():
            raise self.error(f"{expected}, readable and on one line", repr(_short(text)))
        return text

    def error(self, expected: str, got: str, way_out: str = "") -> ConfigurationError:
        return refusal(self.text, expected, got, way_out)


def _written(name: str | int) -> str:
    """A name, key or number as the language has it: in quotes where it would be misread."""
    text = str(name)
    is_plain = re.fullmatch(r"""[^\s<>=!≤≥"'`][^\s<>=!≤≥]*""", text) and text not in KEYWORDS and not text.isdigit()
    if isinstance(name, int) or is_plain:
        return text
    mark = next((mark for mark in "'\"`" if mark not in text), "'")
    return f"{mark}{text}{mark}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
