"""Questions asked of a model: "Why P?", "Why P, rather than Q?", "Why not P with 100 % confidence?"."""

from __future__ import annotations

from collections.abc import Sequence

from xai_callbacks.errors import ConfigurationError, require_instance, require_name
from xai_callbacks.questions.base import Posed, Question
from xai_callbacks.questions.kinds import WhatIfNot, Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan
from xai_callbacks.tasks import Task

__all__ = [
    "Posed",
    "Question",
    "WhatIfNot",
    "Why",
    "WhyNotCertain",
    "WhyRatherThan",
    "WhyValueRatherThan",
    "check_questions",
    "default_questions",
]

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
    """Check a list of questions, which may be empty, against what is known.

    Raises:
        ConfigurationError: The list holds something else, asks the same twice, or one question cannot be
            answered.
    """
    seen: set[str] = set()
    for question in questions:
        require_instance("questions", question, Question, "a list of questions such as Why()")
        require_name(f"`key` of {question!r}", question.key)
        if question.key in seen:
            raise ConfigurationError(
                f"Expected `questions` to differ, but got {question!r}, whose key {question.key!r} another has too."
            )
        seen.add(question.key)
        question.check(task, labelled=labelled)
