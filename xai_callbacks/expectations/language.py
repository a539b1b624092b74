"""From a sentence such as `relevance_mass[core] > 0.5 for class wolf` to an `Expectation`.

    sentence   = metric, clauses, [operator, number], clauses
    metric     = key in quotes | name, ["[", name, "]"], [".", name]
    operator   = "<" | "<=" | ">" | ">="
    number     = decimal, ["%"]
    clause     = "under" name | "of" name | "for class" name | "for group" name | "from epoch" n | "until epoch" n

Clauses come in any order, each at most once. Names with spaces, keywords, and names that consist of digits stand in
quotes: `'`, `"` or a backquote. Nothing is guessed: what is not understood is an error that says what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations.expectation import KEYWORDS, OPERATORS, WORD, Expectation, Operator

__all__ = ["BARE", "Metric", "advice", "nearest", "parse_metric", "parse_sentence", "refusal"]

BARE: dict[str, tuple[Operator, float]] = {"top1_stable": (">=", 0.95)}
"""Metrics that may stand without a comparison, and what is then meant."""

_CLAUSES = ("under", "of", "for class", "for group", "from epoch", "until epoch")
_QUOTED = r"""`[^`]*`|"[^"]*"|'[^']*'"""
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_ALMOST_OPERATORS = {"=>": ">=", "=<": "<=", "≥": ">=", "≤": "<="}

# As many as one can take in, and as long as a name ever is: an error message is read by people.
_MOST_NAMED, _LONGEST = 12, 100


class Metric(NamedTuple):
    """A metric as it was named: either by `key`, or by `name` with what it is taken of."""

    key: str | None = None
    name: str = ""
    argument: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        if self.key is not None:
            mark = next((mark for mark in "`'\"" if mark not in self.key), "`")
            return f"{mark}{self.key}{mark}"
        argument = "" if self.argument is None else f"[{_in_brackets(self.argument)}]"
        return self.name + argument + ("" if self.field is None else f".{self.field}")


def parse_sentence(sentence: str, name: str | None = None) -> Expectation:
    """One sentence, understood but not yet looked up.

    Raises:
        ConfigurationError: The sentence is not of the language; the message says where and what was expected.
    """
    return _Reader(sentence).expectation(name)


def parse_metric(text: str) -> Metric:
    """A metric alone, as in `Expectation.metric`.

    Raises:
        ConfigurationError: It is none.
    """
    reader = _Reader(text)
    metric = reader.metric()
    if reader.rest:
        raise reader.error("nothing after the metric", reader.ahead())
    return metric


def refusal(sentence: object, expected: str, got: str, way_out: str = "") -> ConfigurationError:
    """The error about a sentence, in the form of all errors."""
    message = f"Expected {expected}, but got {got} in {_shortened(str(sentence))!r}. {way_out}"
    return ConfigurationError(message.rstrip())


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that a wrong one was probably meant to be, if there is any."""
    folded = {name.casefold(): name for name in known}
    near = get_close_matches(given[:_LONGEST].casefold(), folded, n=1)
    return folded[near[0]] if near else None


def advice(given: str, known: Sequence[str], otherwise: str = "") -> str:
    """The known name nearest to a wrong one; or else all there are, and what to do."""
    near = nearest(given, known)
    if near is not None:
        return f"Did you mean {near!r}?"
    more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
    listed = f"Known: {', '.join(known[:_MOST_NAMED])}{more}. " if known else ""
    return (listed + otherwise).rstrip()


class _Reader:
    """Reads a sentence from left to right."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.rest = sentence.strip()

    def expectation(self, name: str | None) -> Expectation:
        if not self.rest:
            raise ConfigurationError(
                "Expected a sentence such as 'relevance_mass[core] > 0.5', but got an empty one. Remove it."
            )
        metric = self.metric()
        comparison: tuple[Operator, float] | None = None
        clauses: dict[str, Any] = {}
        while self.rest:
            if self.rest[0] in "<>=!≤≥":
                if comparison is not None:
                    raise self.error("one comparison", f"another one, {self.ahead()},", "Write two expectations.")
                comparison = self.operator(), self.number()
                continue
            clause, value = self.clause()
            if clause in clauses:
                words = clause.replace("_", " ")
                raise self.error(f"`{words}` once", "it twice", "Write two expectations.")
            clauses[clause] = value
        if comparison is None:
            comparison = self.meant_without(metric)
        try:
            return Expectation(str(metric), *comparison, name=name, **clauses)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error} This is about {_shortened(self.sentence)!r}.") from None

    def metric(self) -> Metric:
        quoted = self.take(_QUOTED)
        if quoted is not None:
            if not quoted[1:-1].strip():
                raise self.error("a key between the quotes", "nothing")
            return Metric(key=quoted[1:-1])
        name = self.take(_NAME)
        if name is None:
            raise self.error("a metric first", self.ahead(), "An example: relevance_mass[core] > 0.5.")
        argument = field = None
        if self.rest.startswith("["):
            argument = self.bracketed(name)
        if self.rest.startswith("."):
            self.rest = self.rest[1:].lstrip()
            field = self.take(_NAME)
            if field is None:
                raise self.error("a name after the point", self.ahead(), "An example: novelty[energy].auroc > 0.8.")
        if self.rest.startswith("/"):
            raise self.error(
                "a metric", f"'{name}{self.rest.split()[0][:_LONGEST]}'", "Put the key of an audit in backquotes."
            )
        return Metric(None, name, argument, field)

    def bracketed(self, name: str) -> str:
        inside = self.take(rf"\[\s*(?:{_QUOTED})\s*\]") or self.take(r"\[[^\[\]]*\]")
        if inside is None:
            raise self.error(f"a closing bracket after `{name}[`", self.ahead())
        text = inside[1:-1].strip()
        text = text[1:-1] if re.fullmatch(_QUOTED, text) else text
        if not text.strip():
            raise self.error(f"a name in the brackets of `{name}`", "nothing")
        return text

    def operator(self) -> Operator:
        given = self.take(r"[<>=!≤≥]+") or ""
        for operator in OPERATORS:
            if given == operator:
                return operator
        meant = _ALMOST_OPERATORS.get(given)
        way_out = f"Did you mean {meant!r}?" if meant else "What is measured is hardly ever equal to a number."
        raise self.error("one of <, <=, >, >=", repr(given[:_LONGEST]), way_out)

    def number(self) -> float:
        text = self.take(rf"{_NUMBER}(?=\s|%|$)")
        if text is None:
            way_out = "Decimals have a point." if re.match(r"[+-]?[0-9]*,[0-9]", self.rest) else ""
            raise self.error("a number such as 0.5 or 5 % after the operator", self.ahead(), way_out)
        value = float(f"{text}e-2" if self.take("%") else text)
        if not math.isfinite(value):
            raise self.error("a number", repr(_shortened(text)))
        return value

    def clause(self) -> tuple[str, str | int]:
        words = ("under", "of", "for", "from", "until")
        expected = f"a comparison or one of {', '.join(_CLAUSES)}"
        word = self.one_of(expected, words, "Names with spaces stand in quotes.")
        if word in ("under", "of"):
            return word, str(self.named(word, "the trial" if word == "under" else "the question"))
        if word == "for":
            kind = self.one_of("`class` or `group` after `for`", ("class", "group"))
            return f"for_{kind}", self.named(f"for {kind}", f"the {kind}")
        self.one_of(f"`epoch` after `{word}`", ("epoch",))
        epoch = self.take(r"[0-9]{1,9}(?=\s|$)")
        if epoch is None:
            raise self.error(f"a whole number after `{word} epoch`", self.ahead())
        return f"{word}_epoch", int(epoch)

    def one_of(self, expected: str, words: tuple[str, ...], way_out: str = "") -> str:
        word = self.take(WORD)
        if word in words:
            return str(word)
        got = self.ahead() if word is None else repr(_shortened(word))
        near = None if word is None else nearest(word, words)
        raise self.error(expected, got, f"Did you mean {near!r}?" if near else way_out)

    def named(self, after: str, what: str) -> str | int:
        quoted = self.take(_QUOTED)
        if quoted is not None:
            return quoted[1:-1]
        word = self.take(WORD)
        if word is None:
            raise self.error(f"{what} after `{after}`", self.ahead())
        if word in KEYWORDS:
            raise self.error(f"{what} after `{after}`", repr(word), "Put it in quotes if that is the name.")
        return int(word) if re.fullmatch("0|[1-9][0-9]{0,8}", word) else word

    def meant_without(self, metric: Metric) -> tuple[Operator, float]:
        if metric.name not in BARE:
            raise self.error(f"a comparison such as `> 0.5` of `{metric}`", "none")
        return BARE[metric.name]

    def take(self, pattern: str) -> str | None:
        """What matches next, without the space around it; None if it does not."""
        found = re.match(pattern, self.rest)
        if found is None:
            return None
        self.rest = self.rest[found.end() :].lstrip()
        return found.group()

    def ahead(self) -> str:
        return repr(_shortened(self.rest)) if self.rest else "the end"

    def error(self, expected: str, got: str, way_out: str = "") -> ConfigurationError:
        return refusal(self.sentence, expected, got, way_out)


def _in_brackets(text: str) -> str:
    if text == text.strip() and not re.search(r"""[\[\]"'`]""", text):
        return text
    mark = next((mark for mark in "'\"`" if mark not in text), "'")
    return f"{mark}{text}{mark}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
