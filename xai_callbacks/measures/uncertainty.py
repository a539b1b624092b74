"""`ExplanationUncertainty`: how uncertain an explanation is, from a map of its variance over foils."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance, require_name, require_number
from xai_callbacks.explainers.foils import scaled_to_peak
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, keys_of_maps
from xai_callbacks.record import AuditRecord, Key, Measured, PerProbe


class ExplanationUncertainty(Measure):
    """Reads the uncertainty map of `VOICE` beside the explanation it is about (Prabhushankar and AlRegib, 2024).

    | key | meaning | range | chance |
    |---|---|---|---|
    | `<uncertainty>/snr` | mean over standard deviation of the cells of the uncertainty map | (0, inf) | - |
    | `<uncertainty>/iou` | overlap of what is uncertain with what explains, above the threshold | [0, 1] | of areas |

    Neither says by itself whether a model is wrong, and in which direction they go with errors depends on the net: see
    `docs/results/explanation_uncertainty.json`, where the confidence tells far more. Maps that are empty have no value,
    and are counted.

    Args:
        uncertainty: Name of the explainer whose maps are of uncertainty.
        explanation: Heatmaps that are explanations, as in keys; at the same layer, else the audit says so.
        threshold: Cells count that are above it, of maps scaled to [0, 1].
    """

    def __init__(self, uncertainty: str = "voice", explanation: str = "gradcam/why", threshold: float = 0.1) -> None:
        require_name("`uncertainty`", uncertainty)
        require_instance("explanation", explanation, str, "what keys of heatmaps begin with, such as 'gradcam/why'")
        self.uncertainty, self.explanation = uncertainty, explanation
        self.threshold = require_number("threshold", threshold, 0, 1)

    def keys(self, context: Context) -> Sequence[Key]:
        """Both; raises a `ConfigurationError` if an explainer is missing."""
        for argument in ("uncertainty", "explanation"):
            name = getattr(self, argument)
            if name not in context.maps:
                raise ConfigurationError(
                    f"Expected `{argument}` to be one of the heatmaps {', '.join(context.maps)}, but got {name!r}. Add "
                    "its explainer, as in `explainers=[GradCAM(), VOICE()]`."
                )
        return [
            Key(f"{self.uncertainty}/snr", "mean over deviation of the uncertainty of heatmaps", 0.0),
            Key(f"{self.uncertainty}/iou", "overlap of uncertainty and explanation", 0.0, 1.0, "of areas"),
        ]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge the maps, if both explainers answered."""
        rows: dict[str, Tensor] = {}
        for name, given in record.maps.items():
            rows |= zip(keys_of_maps(record, name), given.heatmaps, strict=True)
        if not {self.uncertainty, self.explanation} <= rows.keys():
            return {}
        uncertain, explained = rows[self.uncertainty], rows[self.explanation]
        if uncertain.shape != explained.shape:
            raise ConfigurationError(
                f"Expected `{self.uncertainty}` and `{self.explanation}` to have one grid, but got "
                f"{tuple(uncertain.shape[1:])} and {tuple(explained.shape[1:])}. Explain at one layer."
            )
        return {
            f"{self.uncertainty}/snr": PerProbe(signal_to_noise(uncertain)),
            f"{self.uncertainty}/iou": PerProbe(*overlap(uncertain, explained, self.threshold)),
        }

    def __repr__(self) -> str:
        return f"ExplanationUncertainty({self.uncertainty!r}, {self.explanation!r}, threshold={self.threshold})"


def signal_to_noise(maps: Tensor) -> Tensor:
    """Mean over standard deviation of the cells of uncertainty maps `(N, h, w)`, each scaled to [0, 1]; `(N,)` float64.

    In (0, inf), larger for what is spread out; NaN for maps without a positive cell, or all alike.
    """
    scaled, sound = scaled_to_peak(maps.double())
    return (scaled.mean(dim=(1, 2)) / scaled.std(dim=(1, 2), correction=0)).where(sound, torch.nan)


def overlap(uncertainty: Tensor, explanation: Tensor, threshold: float = 0.1) -> tuple[Tensor, Tensor]:
    """Intersection over union of the cells above a threshold of maps `(N, h, w)`, each scaled to [0, 1], and chance.

    Both `(N,)` float64 in [0, 1]; NaN, and 0, where either map has no positive cell, or is all alike. The chance is
    that of areas a and b laid at random, `ab / (a + b - ab)`.
    """
    (first, sound), (second, known) = (scaled_to_peak(each.double()) for each in (uncertainty, explanation))
    one, other = first > threshold, second > threshold
    share = (one & other).double().sum(dim=(1, 2)) / (one | other).double().sum(dim=(1, 2))
    a, b = (each.double().mean(dim=(1, 2)) for each in (one, other))
    valid = sound & known
    return share.where(valid, torch.nan), (a * b / (a + b - a * b)).where(valid, 0)
