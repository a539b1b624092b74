"""`Separation` and `Conditions`: how well novelty scores notice what should stand out."""

import math
import os
from collections.abc import Sequence
from itertools import product

from xai_callbacks.errors import ConfigurationError, texts_of
from xai_callbacks.history import History
from xai_callbacks.interventions import CONDITIONS, LEVELS, condition_probes
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.measures.base import Context, Measure
from xai_callbacks.metrics.novelty import SEPARATION, separate, why_useless
from xai_callbacks.probes import ProbeSet
from xai_callbacks.probes.files import loaded
from xai_callbacks.record import AuditRecord, Estimate, Key, Measured

_CHANCES = dict(zip(SEPARATION, ("0.5", "share of novel images", "share of probes", "0.95", "0.95"), strict=True))


class Separation(Measure):
    """Judges novelty scores by images that should stand out.

    `novelty/<score>/auroc`, `aupr_novel`, `aupr_known`, `fpr_at_95tpr_id` and `fpr_at_95tpr_ood`, in [0, 1]: see
    `metrics.novelty`. NaN for a score that is NaN, infinite, or the same for all. Cost: scoring the novel images.

    Args:
        novel: Images known to be novel, of the shape of the probes: a set, or its path; else a `ConfigurationError`.
    """

    def __init__(self, novel: ProbeSet | str | os.PathLike[str]) -> None:
        self.novel = loaded(novel, "novel")

    def keys(self, context: Context) -> Sequence[Key]:
        """Five for each score; raises a `ConfigurationError` for novel images of another shape than the probes."""
        got, wanted = tuple(self.novel.images.shape[1:]), tuple(context.probes.images.shape[1:])
        if got != wanted:
            raise ConfigurationError(
                f"Expected the images of `novel` to have the shape of the probes, {wanted} (C, H, W), but got {got}. "
                "Give them the transform of the probes."
            )
        return [
            Key(f"novelty/{score}/{name}", f"{name} of {score}, novel images against probes", 0.0, 1.0, chance)
            for score, (name, chance) in product(context.novelty, _CHANCES.items())
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


class Conditions(Measure):
    """Judges novelty scores by the probes themselves under conditions such as blur.

    `novelty/<score>/<condition>_<level>/auroc` in [0, 1], chance .5: how often a probe under the condition is ranked
    above one without; NaN if the score is not finite for one. Cost: that of the scores, five times a condition.

    Args:
        names: Some of `interventions.CONDITIONS`; others are a `ConfigurationError`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = texts_of("names", names)
        unknown = [name for name in self.names if name not in CONDITIONS]
        if unknown:
            raise ConfigurationError(f"Expected `names` to be some of {', '.join(CONDITIONS)}, but got {unknown[0]!r}.")

    def keys(self, context: Context) -> Sequence[Key]:
        """One for each score, condition and level."""
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
                noticed = Estimate(math.nan, chance=0.5, valid=0, degenerate=int((~scores[score].isfinite()).sum()))
                if not noticed.degenerate:
                    noticed = separate(record.scores[score], scores[score])["auroc"]
                found[f"novelty/{score}/{name}_{level}/auroc"] = noticed
        return found

    def __repr__(self) -> str:
        return f"Conditions({self.names!r})"
