"""`Drift`: how much heatmaps changed since the explainer's previous audit."""

from __future__ import annotations

from collections.abc import Sequence

from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, Measured, earlier_row, keys_of_maps
from xai_callbacks.metrics.drift import explanation_drift
from xai_callbacks.record import AuditRecord, Key, PerProbe

__all__ = ["Drift"]


class Drift(Measure):
    """Compares heatmaps with those of the latest audit at which the same explainer answered.

    `<map>/drift` is the cosine distance of each map to the earlier one, in [0, 2]; there is none if the explainer, its
    layer, the shape of the maps, the probes or the question is another.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """One for all heatmaps of a question."""
        return [
            Key(f"{name}/drift", "cosine distance of heatmaps to those of the previous audit", 0.0, 2.0)
            for name in context.maps
        ]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge what can be compared."""
        found = {}
        for name, given in record.maps.items():
            earlier = past.latest_with(name)
            if earlier is None or earlier.fingerprint != record.fingerprint or earlier.maps[name].kind != given.kind:
                continue
            for row, key in enumerate(keys_of_maps(record, name)):
                before = row if given.about == "image" else earlier_row(record, row, earlier)
                if before is not None:
                    drift = explanation_drift(earlier.maps[name].heatmaps[before], given.heatmaps[row])
                    found[f"{key}/drift"] = PerProbe(drift)
        return found
