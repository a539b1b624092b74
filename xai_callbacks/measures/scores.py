"""`Scores`: how novel the probes are, and whether the same ones are as before."""

from __future__ import annotations

from collections.abc import Sequence

from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, Measured
from xai_callbacks.metrics.novelty import rank_correlation
from xai_callbacks.metrics.summary import summarize
from xai_callbacks.record import AuditRecord, Estimate, Key

__all__ = ["Scores"]


class Scores(Measure):
    """Judges the novelty scores of the probes.

    `novelty/<score>` is their mean; `novelty/<score>/rank_correlation` in [-1, 1], chance 0, says whether the same
    probes are novel as at the previous audit.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """Two for each score."""
        found = []
        for name in context.novelty:
            words = f"rank correlation of {name} with the previous audit"
            found += [Key(f"novelty/{name}", f"mean {name} of the probes")]
            found += [Key(f"novelty/{name}/rank_correlation", words, -1.0, 1.0, "0")]
        return found

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge all scores of the record."""
        found, before = {}, {} if past.last is None else past.last.scores
        for name, values in record.scores.items():
            found[f"novelty/{name}"] = summarize(values)
            if name in before:
                value = rank_correlation(before[name], values)
                found[f"novelty/{name}/rank_correlation"] = Estimate(value, chance=0.0, valid=len(values))
        return found
