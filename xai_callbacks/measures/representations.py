"""`Representations`: what the stages of a model make of the probes, kept so that models can be compared later."""

from collections.abc import Sequence
from typing import ClassVar

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure
from xai_callbacks.metrics.representations import centred_gram, linear_cka
from xai_callbacks.record import AuditRecord, Estimate, Key, Measured


class Representations(Measure):
    """Keeps Gram matrices of the stages of the model in the record, for `compare`, and how much they changed.

    `representation/<layer>/cka` is the linear CKA with the previous audit in [0, 1], 1: nothing changed. Stages are at
    most twelve parts that follow each other, such as `layer1` to `layer4`. Of more than 128 probes, 128 evenly spaced
    ones. Costs nothing beyond the shared forward pass; a record grows by some 16 kB a stage with 64 probes.
    """

    needs_features: ClassVar[bool] = True

    def keys(self, context: Context) -> Sequence[Key]:
        """One for each stage."""
        words = "similarity (linear CKA) of a stage with the previous audit"
        return [Key("representation/*", words, 0.0, 1.0, of="nothing")]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Keep the matrices, and compare them with the latest that are of the same probes."""
        if context.model is None:
            raise ConfigurationError("Expected a model to look at, but got a record alone.")
        before = {} if past.last is None or past.last.fingerprint != record.fingerprint else past.last.grams
        found = {}
        for layer, features in context.model.features().items():
            gram = context.grams[layer] = centred_gram(features)
            if layer in before and before[layer].shape == gram.shape:
                value = linear_cka(before[layer], gram)
                found[f"representation/{layer}/cka"] = Estimate(value, valid=len(record.names))
        return found
