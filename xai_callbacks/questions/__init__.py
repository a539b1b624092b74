"""What is asked of a model."""

from xai_callbacks.questions.base import Posed, Question
from xai_callbacks.questions.classes import WhatIfNot, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.questions.lists import check_questions, default_questions
from xai_callbacks.questions.values import WhyValueRatherThan

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
