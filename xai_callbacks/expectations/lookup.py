"""From a list of sentences to expectations that are known to mean something: every mistake shows before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations.expectation import Expectation, Target
from xai_callbacks.expectations.language import BARE, Metric, advice, nearest, parse_metric, parse_sentence, refusal
from xai_callbacks.expectations.members import who
from xai_callbacks.expectations.names import NAMES, NEEDS, SLOTS, Named, keys_of, row_of_key
from xai_callbacks.expectations.vocabulary import Vocabulary

__all__ = ["parse_expectations"]

_STABLE = "top1_stable"
_FIELDS = ("name", "expect")


def parse_expectations(
    given: Sequence[str | Mapping[str, str] | Expectation], vocabulary: Vocabulary
) -> tuple[Expectation, ...]:
    """Understand expectations and look up what they are about.

    Args:
        given: Sentences in the language of `xai_callbacks.expectations.language`, `{"name": ..., "expect": sentence}`,
            or `Expectation`s, in any mixture.
        vocabulary: What there is to be named.

    Raises:
        ConfigurationError: A sentence is not of the language, names what there is not, asks for what cannot be told, or
            stands there twice. The message suggests what may have been meant.
    """
    if isinstance(given, str | Mapping | Expectation) or not isinstance(given, Sequence):
        raise ConfigurationError(
            f"Expected `expectations` to be a list, but got {type(given).__name__}. Write [...] around it."
        )
    found = tuple(_look_up(_understood(each, place), vocabulary) for place, each in enumerate(given))
    seen: set[str] = set()
    for expectation in found:
        if expectation.label in seen:
            raise ConfigurationError(
                f"Expected `expectations` to differ, but got {expectation.label!r} twice. Remove or rename one."
            )
        seen.add(expectation.label)
    return found


def _understood(given: object, place: int) -> Expectation:
    if isinstance(given, Expectation):
        return given
    if isinstance(given, str):
        return parse_sentence(given)
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"Expected `expectations[{place}]` to be a sentence such as 'accuracy > 0.9', but got "
            f"{type(given).__name__} {given!r}."
        )
    for key in given:
        if key not in _FIELDS:
            raise ConfigurationError(
                f"Expected `expectations[{place}]` to have the keys 'name' and 'expect', but got {key!r}. "
                f"{advice(str(key), _FIELDS)}"
            )
    name, sentence = given.get("name"), given.get("expect")
    if not isinstance(sentence, str) or not isinstance(name, str):
        missing = "expect" if not isinstance(sentence, str) else "name"
        raise ConfigurationError(
            f"Expected `expectations[{place}]` to have text under {missing!r}, but got {given.get(missing)!r}."
        )
    return parse_sentence(sentence, name)


def _look_up(expectation: Expectation, vocabulary: Vocabulary) -> Expectation:
    return expectation.at(_Search(expectation, vocabulary).target())


class _Search:
    """Looks up one expectation."""

    def __init__(self, expectation: Expectation, vocabulary: Vocabulary) -> None:
        self.expectation = expectation
        self.vocabulary = vocabulary
        self.metric = parse_metric(expectation.metric)
        self.shown = f"`{self.metric}`" if self.metric.key is None else f"`{self.metric.key}`"

    def target(self) -> Target:
        complement = self.metric.name == _STABLE
        if self.metric.key is not None:
            row, key = self.of_key(self.metric.key)
        elif complement:
            row, key, complement = self.stable()
        else:
            row, key = self.of_name()
        if row.key == "accuracy" and self.vocabulary.several_labels:
            row = row._replace(share=False)  # some of the labels of a probe may be right
        self.check_clauses(row)
        self.check_bound(row)
        self.check_members(row, key)
        return Target(key, complement, row.share, row.unit, *who(self.expectation, self.vocabulary))

    def of_key(self, key: str) -> tuple[Named, str]:
        row = row_of_key(key, self.vocabulary)
        if row is None:
            raise self.error("a key of a metric", repr(key), advice(key, list(dict.fromkeys(keys_of(self.vocabulary)))))
        self.check_needs(row)
        return row, self.existing(key)

    def of_name(self) -> tuple[Named, str]:
        name, metric, vocabulary = self.full_name(), self.metric, self.vocabulary
        row = NAMES[name]
        self.check_needs(row)
        key = row.key
        if "{question}" in key:
            key = key.replace("{question}", self.question())
        if row.slot is None and metric.argument is not None:
            raise self.error(f"`{name}` without brackets", f"`[{metric.argument}]`")
        if row.slot is not None:
            slot = SLOTS[row.slot]
            known: tuple[str, ...] = getattr(vocabulary, slot.known)
            if metric.argument is None:
                example = known[0] if known else "..."
                raise self.error(f"`{name}` to name {slot.what}", "none", f"Write `{metric.name}[{example}]`.")
            if metric.argument not in known:
                raise self.error(
                    f"`{name}` to name {slot.what}", repr(metric.argument), advice(metric.argument, known, slot.way_out)
                )
            key = key.replace(f"{{{row.slot}}}", metric.argument)
        return row, self.existing(key)

    def full_name(self) -> str:
        metric = self.metric
        name = metric.name if metric.field is None else f"{metric.name}.{metric.field}"
        if name in NAMES:
            return name
        firsts = [*dict.fromkeys(known.partition(".")[0] for known in NAMES), _STABLE]
        if metric.name not in firsts:
            raise self.error("the name of a metric", repr(metric.name), self.other_name(metric, firsts))
        fields = [known.partition(".")[2] for known in NAMES if known.startswith(f"{metric.name}.")]
        if not fields:
            raise self.error(f"`{metric.name}` without a point", f"`.{metric.field}`")
        raise self.error(f"what there is of `{metric.name}`", f"`.{metric.field}`", advice(str(metric.field), fields))

    def other_name(self, metric: Metric, firsts: list[str]) -> str:
        """A name close to the one given, or a key that is the one given, or the list of names."""
        if nearest(metric.name, firsts) is None and row_of_key(metric.name, self.vocabulary) is not None:
            return "Put the key of an audit in backquotes."
        return advice(metric.name, firsts)

    def question(self) -> str:
        given, known = self.expectation.of, self.vocabulary.questions
        if not known:
            raise self.error("a question whose heatmaps are judged", "none", "Ask the model one by `questions=`.")
        if given is None:
            return known[0]
        found = [key for key in known if given in (key, key.partition("/")[2])]
        if not found:
            words = known if "/" in given else tuple(dict.fromkeys(key.partition("/")[2] for key in known))
            raise self.error(
                "a question that is asked after `of`", repr(given), advice(given, words, "Ask it by `questions=`.")
            )
        return found[0]

    def stable(self) -> tuple[Named, str, bool]:
        """Whether the answer stays the same: under the half fills, or with and without a cue."""
        metric, under = self.metric, self.expectation.under
        if metric.argument is not None or metric.field is not None:
            raise self.error(f"`{_STABLE}` without brackets and point", self.shown, f"Write `{_STABLE} under ...`.")
        known = (*(("half_fill",) if self.vocabulary.half_fill else ()), *self.vocabulary.cues)
        if under is None:
            example = known[0] if known else "half_fill"
            raise self.error(f"`{_STABLE}` to say under what", "nothing", f"Write `{_STABLE} under {example}`.")
        if under == "half_fill":
            row = NAMES["fill_disagree"]
            self.check_needs(row)
            return row, self.existing(row.key), True
        if under not in known:
            raise self.error(
                "a trial after `under`", repr(under), advice(under, known, "Add a HalfTrial or CueTrial to the trials.")
            )
        row = NAMES["cue_consistency"]
        return row, self.existing(row.key.replace("{cue}", under)), False

    def existing(self, key: str) -> str:
        """The key, unless a record is at hand that does not have it."""
        keys = self.vocabulary.keys
        if keys is not None and key not in keys:
            raise self.error("a metric of the record", repr(key), "It was not measured at that audit.")
        return key

    def check_needs(self, row: Named) -> None:
        for name in row.needs:
            need = NEEDS[name]
            if not getattr(self.vocabulary, need.told_by):
                raise self.error(f"what {self.shown} needs", need.missing, need.way_out)

    def check_clauses(self, row: Named) -> None:
        expectation = self.expectation
        if expectation.under is not None and self.metric.name not in BARE:
            raise self.error(f"{self.shown} without `under`", f"`under {expectation.under}`")
        if expectation.of is not None and (self.metric.key is not None or "{question}" not in row.key):
            raise self.error(f"{self.shown} without `of`", f"`of {expectation.of}`", "It is of no question.")

    def check_bound(self, row: Named) -> None:
        bound, operator, low, high = self.expectation.bound, self.expectation.operator, row.low, row.high
        if not low <= bound <= high:
            percent = high == 1 and 1 < bound <= 100
            way_out = f"Did you mean {bound:g} %?" if percent else ""
            raise self.error(f"the bound of {self.shown} to be from {low:g} to {high:g}", f"{bound:g}", way_out)
        got, end = f"`{self.expectation.comparison}`", f"Its values end at {bound:g}."
        if (bound == high and operator == ">") or (bound == low and operator == "<"):
            raise self.error(f"a bound that {self.shown} can meet", got, end)
        if (bound == high and operator == "<=") or (bound == low and operator == ">="):
            raise self.error(f"a bound that {self.shown} can miss", got, end)
        if row.share and bound in (low, high):
            raise self.error(
                f"a bound that evidence for {self.shown} can reach", got, f"No number of {row.unit} shows that."
            )

    def check_members(self, row: Named, key: str) -> None:
        """Only what each probe has a value of can be asked of some of them."""
        if self.expectation.for_class is None and self.expectation.for_group is None:
            return
        listed = self.vocabulary.per_probe
        if not row.per_probe if listed is None else key not in listed:
            word = "class" if self.expectation.for_class is not None else "group"
            raise self.error(f"a metric that each probe has a value of before `for {word}`", self.shown)

    def error(self, expected: str, got: str, way_out: str = "") -> ConfigurationError:
        return refusal(self.expectation, expected, got, way_out)
