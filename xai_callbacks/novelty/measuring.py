"""`measurer`: one `PerSampleGradients` for all scores, and all chunks, of one audit.

It finds out along which axes images lie by running the model on two and on three of them, which need not be done again
for every chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from xai_callbacks.access import Subject
from xai_callbacks.gradients import PerSampleGradients

__all__ = ["measurer"]

# An audit makes a subject of its own, and lets go of it.
_MADE: WeakKeyDictionary[Subject, list[PerSampleGradients]] = WeakKeyDictionary()


def measurer(subject: Subject, parameters: Sequence[str] | None = None) -> PerSampleGradients:
    """Measures gradients of a model; the one that was made for this subject before, if there is one.

    Args:
        subject: The model.
        parameters: Which parameters, as names or patterns; None for all that require grad.

    Raises:
        ConfigurationError: No such parameter, or none requires grad.
    """
    call = None if subject.call is subject.module else subject.call
    new = PerSampleGradients(subject.module, call, parameters=parameters)
    made = _MADE.setdefault(subject, [])
    # By what it measures, not by how that was asked for: layers may have been frozen or exchanged since.
    for old in made:
        if _same(old, new):
            return old
    made.append(new)
    return new


def _same(one: PerSampleGradients, other: PerSampleGradients) -> bool:
    if one.parameters.keys() != other.parameters.keys():
        return False
    return all(parameter is other.parameters[name] for name, parameter in one.parameters.items())
