"""`Separation`: how well novelty scores tell images known to be novel from the probes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, Measured
from xai_callbacks.metrics.novelty import SEPARATION, separate, why_useless
from xai_callbacks.probes import ProbeSet
from xai_callbacks.probes.files import loaded
from xai_callbacks.record import AuditRecord, Estimate, Key

__all__ = ["Separation"]

_CHANCES = dict(zip(SEPARATION, ("0.5", "share of novel images", "share of probes", "0.95", "0.95"), strict=True))


class Separation(Measure):
    """Judges novelty scores by images that should stand out.

    `novelty/<score>/auroc`, `aupr_novel`, `aupr_known`, `fpr_at_95tpr_id` and `fpr_at_95tpr_ood`, in [0, 1]: see
    `metrics.novelty`. NaN for a score that is NaN, infinite, or the same for all. Cost: scoring the novel images.

    Args:
        novel: Images known to be novel, of the shape of the probes; a probe set, or the path of a saved one.

    Raises:
        ConfigurationError: `novel` is neither.
    """

    def __init__(self, novel: ProbeSet | str | os.PathLike[str]) -> None:
        self.novel = loaded(novel, "novel")

    def keys(self, context: Context) -> Sequence[Key]:
        """Five for each score.

        Raises:
            ConfigurationError: The novel images have another shape than the probes.
        """
        got, wanted = tuple(self.novel.images.shape[1:]), tuple(context.probes.images.shape[1:])
        if got != wanted:
            raise ConfigurationError(
                f"Expected the images of `novel` to have the shape of the probes, {wanted} (C, H, W), but got {got}. "
                "Give them the transform of the probes."
            )
        return [
            Key(f"novelty/{score}/{name}", f"{name} of {score}, novel images against probes", 0.0, 1.0, chance)
            for score in context.novelty
            for name, chance in _CHANCES.items()
        ]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Score the novel images, and hold them against the probes."""
        found: dict[str, Estimate] = {}
        scores = {} if context.model is None else context.model.scores(self.novel.images)
        for score in (each for each in scores if each in record.scores):
            novel = scores[score]
            why = why_useless(novel, self.novel.names)
            if why is None:
                judged = separate(record.scores[score], novel)
            else:
                context.notes.append(f"The novelty score `{score}` was not judged by novel images: {why}.")
                judged = dict.fromkeys(SEPARATION, Estimate(math.nan, valid=0, degenerate=len(novel)))
            found |= {f"novelty/{score}/{name}": estimate for name, estimate in judged.items()}
        return found

    def __repr__(self) -> str:
        return f"Separation({len(self.novel)} novel images, {self.novel.fingerprint[:12]})"
