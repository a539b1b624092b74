"""Which questions an audit asks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.questions.base import Question
from xai_callbacks.questions.classes import Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.questions.values import WhyValueRatherThan
from xai_callbacks.tasks import Task

__all__ = ["check_questions", "default_questions"]

# A net of very many values gets questions about the first few.
_VALUES = 4


def default_questions(task: Task) -> tuple[Question, ...]:
    """The questions an audit asks unless told otherwise."""
    if task.classifies:
        return (Why(), WhyNotCertain()) if task.width == 1 else (Why(), WhyRatherThan(), WhyNotCertain())
    if task.width in (None, 1):
        return (Why(), WhyValueRatherThan("target"))
    values = (task.names or range(task.width or 1))[:_VALUES]
    return tuple(question for value in values for question in (Why(value), WhyValueRatherThan("target", of=value)))


def check_questions(questions: Sequence[Question], task: Task, *, labelled: bool) -> None:
    """Check a list of questions against what is known.

    Raises:
        ConfigurationError: The list is empty, holds something else, asks the same twice, or one question cannot be
            answered.
    """
    if not questions:
        raise ConfigurationError(
            "Expected `questions` to hold at least one question, but got none. Leave it out for the defaults."
        )
    seen: set[str] = set()
    for question in questions:
        if not isinstance(question, Question):
            raise ConfigurationError(
                f"Expected `questions` to be a list of questions such as Why(), but got {question!r} of type "
                f"{type(question).__name__}."
            )
        if not re.fullmatch(r"[\w.-]+", question.key):
            raise ConfigurationError(
                f"Expected the key of a question to be letters, digits, '_', '-' and '.', but {question!r} has "
                f"{question.key!r}. Change its `key`."
            )
        if question.key in seen:
            raise ConfigurationError(
                f"Expected `questions` to differ, but got {question!r}, whose key {question.key!r} another has too. "
                "Remove one."
            )
        seen.add(question.key)
        question.check(task, labelled=labelled)
