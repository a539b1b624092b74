"""`AuditRecord`: the result of one audit as plain data."""

from __future__ import annotations

import os
import platform
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from xai_callbacks.errors import AuditError, in_words
from xai_callbacks.record.values import Estimate, Finding, Key, MapSet

__all__ = ["AuditRecord", "versions"]

# All that is only drawn, or judged once.
_DROPPED = (
    "outputs", "predictions", "confidences", "correct", "truth", "facts", "foils", "maps", "scores", "per_probe",
    "chances", "names", "class_names", "groups", "titles",
)  # fmt: skip
_PACKAGES = ("xai_callbacks", "torch", "torchvision", "numpy", "captum", "lightning", "pytorch_lightning")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, by name, as far as they are imported."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: str(each) for name, each in found.items() if each}}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AuditRecord:
    """Result of one look at one model state. All tensors are on the CPU and detached.

    Letters: Q questions, N probes, K outputs, `h w` an explainer's grid.

    Attributes:
        run: Identity of the training run; empty outside one.
        step: Position on the x-axis of the run's own metrics.
        epoch: Epoch in which the audit took place, from 0.
        time: When it took place, in seconds since 1970 (UTC).
        untrained: Whether it looked at the model before training.
        fingerprint: Fingerprint of the probe set; records with equal fingerprints can be compared.
        names: Names of the probes, length N.
        class_names: Names of the classes or labels; empty if they have none.
        groups: Group of each probe by name, length N; empty if they have none.
        explainers: All explainers with their settings, by name, also those that did not answer at this audit.
        asked: The questions with their settings, length Q.
        versions: Version of each package that matters, by name.
        weights: SHA-256 of parameters and buffers, as 64 hexadecimal digits; empty if unknown.
        checkpoint: Path of a checkpoint with these weights; None if none is known.
        settings: Other settings of the audit, as plain values.
        logged: Metrics that the run itself had logged when the audit took place, by name, such as `val_loss`.
        questions: Keys of the questions, length Q.
        headings: The questions in words, with P for the fact and Q for the foil, length Q.
        titles: The questions in words for each probe, Q tuples of length N.
        outputs: Logits `(N, K)`, or predicted values `(N, V)`; float32. None where nothing is asked of the outputs, as
            of an autoencoder; likewise the next three.
        predictions: Classes `(N,)` int64, labels `(N, K)` bool, or values `(N,)` or `(N, V)` float32.
        confidences: Largest probability `(N,)` in [0, 1]; NaN for regression.
        correct: Share of what the model says of each probe that is right, `(N,)` float64; NaN where that is unknown,
            and for regression.
        truth: Labels or target values, as the probes have them; None for unlabelled probes.
        facts: Outputs asked about, `(Q, N)` int64; -1 where a question has none. None without questions.
        foils: Outputs held against them, `(Q, N)` int64; -1 where a question has none. None without questions.
        maps: Heatmaps by name of the explainer; empty where there are none, see `notes`.
        scores: Novelty scores by name, each `(N,)` float64; larger = more novel.
        metrics: Estimates by key, such as `gradcam/why/relevance_mass/core`.
        keys: Declarations of these keys.
        per_probe: What each metric that is a mean over probes says of each, `(N,)` float64 under its key; NaN where a
            probe has no value.
        chances: Chance level of each probe, `(N,)` float64 by key, of the metrics that have one.
        cue_regions: Region in which the probes themselves carry a cue that was tried, by name of the cue.
        findings: Conclusions of the rules.
        seconds: Wall time of each stage.
        notes: Sentences about what was left out or assumed.
        useless: Sentences about novelty scores that were left out because they failed or say nothing.
        failed: Sentences about explainers, trials, measures and rules that failed and were left out.
        thinned: Whether tensors and names were dropped to save space, see `thin`; metrics and findings stay.
    """

    run: str = ""
    step: int = 0
    epoch: int = 0
    time: float = 0.0
    untrained: bool = False
    fingerprint: str = ""
    names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    explainers: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""
    checkpoint: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    logged: Mapping[str, float] = field(default_factory=dict)
    questions: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    titles: tuple[tuple[str, ...], ...] = ()
    outputs: Tensor | None = None
    predictions: Tensor | None = None
    confidences: Tensor | None = None
    correct: Tensor | None = None
    truth: Tensor | None = None
    facts: Tensor | None = None
    foils: Tensor | None = None
    maps: Mapping[str, MapSet] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    keys: tuple[Key, ...] = ()
    per_probe: Mapping[str, Tensor] = field(default_factory=dict)
    chances: Mapping[str, Tensor] = field(default_factory=dict)
    cue_regions: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    useless: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    thinned: bool = False

    @property
    def heatmaps(self) -> Tensor:
        """Heatmaps of the first explainer, `(Q, N, h, w)`.

        Raises:
            AuditError: There are none; the message says why. Likewise the next two, but for `layer_reason`.
        """
        return self._first.heatmaps

    @property
    def layer(self) -> str:
        """Layer of the first explainer."""
        return self._first.layer

    @property
    def layer_reason(self) -> str:
        """Why the first explainer explains there, or why there are no heatmaps."""
        return self._first.reason if self.maps else " ".join([*self.failed, *self.notes])

    @property
    def _first(self) -> MapSet:
        if not self.maps:
            raise AuditError(f"Expected heatmaps in this record, but there are none. {self.layer_reason}".rstrip())
        return next(iter(self.maps.values()))

    def key(self, key: str) -> Key | None:
        """Declaration of a key; None if it was not declared."""
        return next((each for each in self.keys if each.matches(key)), None)

    def thin(self) -> AuditRecord:
        """The same record without tensors and names of probes and classes: some 20 kB instead of up to some MB."""
        if self.thinned:
            return self
        blank = vars(AuditRecord())
        return replace(self, **{name: blank[name] for name in _DROPPED}, thinned=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, by way of a temporary one beside it, so that no reader ever sees half a record.

        Lists are read back as tuples, and what is neither plain nor a tensor as its text.

        Raises:
            AuditError: The file cannot be written.
        """
        from xai_callbacks.record.files import to_bytes

        path = Path(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            data = to_bytes(self)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except Exception as error:
            raise AuditError(f"Expected to write a record to {str(path)!r}, but got {in_words(error)}") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AuditRecord:
        """Read what `save` wrote.

        Raises:
            AuditError: There is no such file, it is damaged or none of ours, or it is of a newer version.
        """
        from xai_callbacks.record.files import from_bytes

        try:
            return from_bytes(Path(path).read_bytes())  # not mapped: on Windows a mapped file cannot be replaced
        except Exception as error:  # damage may raise anything
            told = f"Expected a file of `AuditRecord.save`, but {str(path)!r} is none. {in_words(error)}"
            raise AuditError(told) from error

    def __repr__(self) -> str:
        probes = () if self.thinned else (f"{len(self.names)} probes",)
        parts = [f"step {self.step}", f"epoch {self.epoch}", *probes]
        if (accuracy := self.metrics.get("accuracy")) is not None:
            parts.append(f"accuracy {accuracy.value:.3g}")
        parts += [f"{len(self.metrics)} metrics", f"heatmaps by {', '.join(self.maps) or 'none'}"]
        parts += [f"{finding.key}: {finding.state}" for finding in self.findings if finding.value]
        return f"AuditRecord({', '.join(parts)})"
