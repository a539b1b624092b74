"""`Conditions`: how well novelty scores notice that the probes are shown under a condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from torch import Tensor

from xai_callbacks.errors import ConfigurationError, texts_of
from xai_callbacks.history import History
from xai_callbacks.interventions import CONDITIONS, LEVELS, condition_probes
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.measures.base import Context, Measure, Measured
from xai_callbacks.metrics.novelty import separate
from xai_callbacks.record import AuditRecord, Estimate, Key

__all__ = ["Conditions"]


class Conditions(Measure):
    """Judges novelty scores by the probes themselves under conditions such as blur.

    `novelty/<score>/<condition>_<level>/auroc` in [0, 1], chance .5: how often a probe under the condition is ranked
    above one without; NaN if the score is NaN or infinite for one. Cost: that of the scores for the probes, five times
    a condition, at every audit.

    Args:
        names: Names of `interventions.CONDITIONS`.

    Raises:
        ConfigurationError: There is no such condition.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = texts_of("names", names)
        unknown = [name for name in self.names if name not in CONDITIONS]
        if unknown:
            raise ConfigurationError(f"Expected `names` to be some of {', '.join(CONDITIONS)}, but got {unknown[0]!r}.")

    def keys(self, context: Context) -> Sequence[Key]:
        """One for each score, condition and level.

        Raises:
            ConfigurationError: It is unknown which values are black and white in the images of the probes.
        """
        PixelScale.of(context.probes)
        return [
            Key(f"novelty/{score}/{name}_{level}/auroc", f"AUROC of {score} for {name} {level}", 0.0, 1.0, "0.5")
            for score, name, level in product(context.novelty, self.names, LEVELS)
        ]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Score the probes under each condition, and hold them against the same probes without it."""
        found: dict[str, Estimate] = {}
        if context.model is None:
            return found
        for name, level in product(self.names, LEVELS):
            scores = context.model.scores(condition_probes(context.probes, name, level))
            for score in (each for each in scores if each in record.scores):
                key = f"novelty/{score}/{name}_{level}/auroc"
                found[key] = _noticed(record.scores[score], scores[score])
        return found

    def __repr__(self) -> str:
        return f"Conditions({self.names!r})"


def _noticed(known: Tensor, degraded: Tensor) -> Estimate:
    broken = int((~degraded.isfinite()).sum())
    none = Estimate(math.nan, chance=0.5, valid=0, degenerate=broken)
    return none if broken else separate(known, degraded)["auroc"]
