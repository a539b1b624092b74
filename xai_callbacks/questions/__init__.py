"""Questions asked of a model: "Why P?", "Why P, rather than Q?", "Why not P with 100 % confidence?"."""

from xai_callbacks.questions.base import Posed, Question, check_questions
from xai_callbacks.questions.kinds import (
    WhatHinders,
    WhatIfNot,
    Why,
    WhyNotCertain,
    WhyRatherThan,
    WhyValueRatherThan,
    default_questions,
)

__all__ = [
    "Posed", "Question", "WhatHinders", "WhatIfNot", "Why", "WhyNotCertain", "WhyRatherThan", "WhyValueRatherThan",
    "check_questions", "default_questions",
]  # fmt: skip
