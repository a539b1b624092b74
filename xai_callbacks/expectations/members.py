"""Whom an expectation is about: the probes of one class, or of one group."""

from __future__ import annotations

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations.expectation import Expectation
from xai_callbacks.expectations.language import advice, refusal
from xai_callbacks.expectations.vocabulary import Vocabulary

__all__ = ["who"]


def who(expectation: Expectation, vocabulary: Vocabulary) -> tuple[int | None, tuple[bool, ...] | None]:
    """Index of the class, and which probes are of the group; None for all.

    Raises:
        ConfigurationError: There is no such class or group, or no probe of it.
    """
    return _class_index(expectation, vocabulary), _members(expectation, vocabulary)


def _class_index(expectation: Expectation, vocabulary: Vocabulary) -> int | None:
    given = expectation.for_class
    if given is None:
        return None
    if vocabulary.regresses or vocabulary.several_labels:
        got = "a regression" if vocabulary.regresses else "several labels a probe"
        raise refusal(expectation, "classes, to ask `for class`", got, "Leave the clause out.")
    if vocabulary.labels is None:
        way_out = "Give the probes `labels=`."
        raise refusal(expectation, "labelled probes, to ask `for class`", "none", way_out)
    index = _index(expectation, "class", given, vocabulary.class_names, vocabulary.num_classes)
    if index not in vocabulary.labels:
        raise refusal(expectation, f"probes of class {given!r}", "none", "Add some to the probe set.")
    return index


def _members(expectation: Expectation, vocabulary: Vocabulary) -> tuple[bool, ...] | None:
    given = expectation.for_group
    if given is None:
        return None
    if vocabulary.groups is None:
        way_out = "Give the probes `groups=`; a record alone does not have them, see `Vocabulary.of_record`."
        raise refusal(expectation, "probes with groups, to ask `for group`", "none", way_out)
    index = _index(expectation, "group", given, vocabulary.group_names, None)
    if index not in vocabulary.groups:
        raise refusal(expectation, f"probes of group {given!r}", "none", "Add some to the probe set.")
    return tuple(group == index for group in vocabulary.groups)


def _index(
    expectation: Expectation, word: str, given: str | int, names: tuple[str, ...] | None, count: int | None
) -> int:
    """A name that consists of digits goes before the index."""
    known, name = names or (), str(given)
    if known.count(name) > 1:
        raise _unknown(expectation, word, f"{known.count(name)} of that name", "Write the index.")
    if name in known:
        return known.index(name)
    most = len(known) if names is not None else count
    if isinstance(given, int):
        if most is None or given < most:
            return given
        raise _unknown(expectation, word, repr(given), f"Indexes go from 0 to {most - 1}.")
    if names is None:
        way_out = f"The probes have no `{word}_names`, and a record has none: write an index."
        raise _unknown(expectation, word, repr(given), way_out)
    raise _unknown(expectation, word, repr(given), advice(given, known))


def _unknown(expectation: Expectation, word: str, got: str, way_out: str) -> ConfigurationError:
    return refusal(expectation, f"the name or index of a {word} after `for {word}`", got, way_out)
