"""`AuditRecord`: the result of one audit as plain data."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import torch as safetensors
from torch import Tensor

from xai_callbacks.errors import AuditError, in_words
from xai_callbacks.files import write_whole
from xai_callbacks.record.kinds import checks_of
from xai_callbacks.record.values import Estimate, Finding, Key, MapSet, Onset

SCHEMA = 1
"""Version of the file format; raised when an older reader would misread a file, as when fields change their order."""

_HEADER = "xai_callbacks.record"
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Estimate, Finding, Key, MapSet, Onset)}
# Keys are the same at every audit: each is held once, however many records are read.
_shared_key = lru_cache(4096, typed=True)(Key)
# All that is only drawn, or judged once.
_DROPPED = (
    "outputs", "predictions", "confidences", "correct", "truth", "facts", "foils", "maps", "scores", "per_probe",
    "chances", "strata", "grams", "names", "class_names", "groups", "titles",
)  # fmt: skip
_PACKAGES = ("xai_callbacks", "torch", "torchvision", "numpy", "captum", "lightning", "pytorch_lightning")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, by name, as far as they are imported."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: str(each) for name, each in found.items() if each}}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AuditRecord:
    """Result of one look at one model state. All tensors are on the CPU and detached.

    Letters: Q questions, N probes, K outputs, `h w` an explainer's grid. Names, versions and the like are empty where
    there are none. Without questions to the outputs, as of an autoencoder, `outputs`, what is read from them, `facts`
    and `foils` are None.

    Attributes:
        run: Identity of the training run.
        step: Position on the x-axis of the run's own metrics.
        epoch: Epoch in which the audit took place, from 0.
        time: When it took place, in seconds since 1970 (UTC).
        untrained: Whether it looked at the model before training.
        fingerprint: Fingerprint of the probe set; records with equal fingerprints can be compared.
        names: Names of the probes, length N.
        class_names: Names of the classes or labels.
        groups: Group of each probe by name, length N.
        explainers: All explainers with their settings, by name, also those that did not answer at this audit.
        asked: The questions with their settings, length Q.
        versions: Version of each package that matters, by name.
        weights: SHA-256 of parameters and buffers, as 64 hexadecimal digits.
        checkpoint: Path of a checkpoint with these weights; None if none is known.
        settings: Other settings of the audit, as plain values.
        logged: Metrics that the run itself had logged when the audit took place, by name, such as `val_loss`.
        questions: Keys of the questions, length Q.
        headings: The questions in words, with P for the fact and Q for the foil, length Q.
        titles: The questions in words for each probe, Q tuples of length N.
        outputs: Logits `(N, K)`, or predicted values `(N, V)`; float32.
        predictions: Classes `(N,)` int64, labels `(N, K)` bool, or values `(N,)` or `(N, V)` float32.
        confidences: Largest probability `(N,)` in [0, 1]; NaN for regression.
        correct: Share of what the model says of each probe that is right, `(N,)` float64; NaN where that is unknown,
            and for regression.
        truth: Labels or target values, as the probes have them; None for unlabelled probes.
        facts: Outputs asked about, `(Q, N)` int64; -1 where a question has none.
        foils: Outputs held against them, likewise.
        maps: Heatmaps by name of the explainer; empty where there are none, see `notes`.
        scores: Novelty scores by name, each `(N,)` float64; larger = more novel.
        metrics: Estimates by key, such as `gradcam/why/relevance_mass/core`.
        keys: Declarations of these keys.
        per_probe: What each metric that is a mean over probes says of each, `(N,)` float64 under its key, NaN for none.
        chances: Chance level of each probe, `(N,)` float64 by key, of the metrics that have one.
        cue_regions: Region in which the probes themselves carry a cue that was tried, by name of the cue.
        findings: Conclusions of the rules.
        seconds: Wall time of each stage.
        notes: Sentences about what was left out or assumed.
        useless: Sentences about novelty scores that were left out because they failed or say nothing.
        failed: Sentences about explainers, trials, measures and rules that failed and were left out.
        thinned: Whether tensors and names were dropped to save space, see `thin`; metrics and findings stay.
        tried: What was painted as each cue that was tried, in words, by its name.
        trust: Verdicts of tests of the heatmaps, by what their keys begin with, such as `gradcam/why`: "passed", "fails
            the ... test", or "not tested: ..."; empty where no tests were wanted, see `measures.Trust`.
        strata: Stratum of each probe, such as its class, `(N,)` int64 by key, of metrics that are means over strata.
        grams: Inner products of the features of the probes by layer, `(n, n)` float32, centred, see
            `measures.Representations`; what is needed to compare representations.
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
    tried: Mapping[str, str] = field(default_factory=dict)
    trust: Mapping[str, str] = field(default_factory=dict)
    strata: Mapping[str, Tensor] = field(default_factory=dict)
    grams: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def heatmaps(self) -> Tensor:
        """Heatmaps of the first explainer, `(Q, N, h, w)`; like `layer`, an `AuditError` that says why if none is."""
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

    def doubt(self, key: str) -> str:
        """How the heatmaps failed that a key is about, such as "fails the deletion test"; empty if none did.

        The key is that of a metric, or what keys of heatmaps begin with. Results of the tests themselves are not in
        doubt.
        """
        for name, verdict in self.trust.items():
            is_about = key == name or (key.startswith(f"{name}/") and not key.startswith(f"{name}/trust/"))
            if is_about and verdict.startswith("fails"):
                return verdict
        return ""

    def thin(self) -> AuditRecord:
        """The same record without tensors and names of probes and classes: some 20 kB instead of up to some MB."""
        if self.thinned:
            return self
        blank = vars(AuditRecord())
        return replace(self, **{name: blank[name] for name in _DROPPED}, thinned=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, whole or not at all.

        Lists are read back as tuples, and what is neither plain nor a tensor as its text. Raises an `AuditError` if the
        file cannot be written.
        """
        try:
            tensors: dict[str, Tensor] = {}
            text = to_text(self, tensors)
            write_whole(Path(path), safetensors.save(tensors, {_HEADER: text}))
        except Exception as error:
            raise AuditError(f"Expected to write a record to {str(path)!r}, but got {in_words(error)}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AuditRecord:
        """Read what `save` wrote; an `AuditError` if the file is missing, damaged, none of ours, or too new."""
        try:
            data = Path(path).read_bytes()  # not mapped: on Windows a mapped file cannot be replaced
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return from_text(header["__metadata__"][_HEADER], safetensors.load(data))
        except Exception as error:  # damage may raise anything
            raise AuditError(
                f"Expected a file of `AuditRecord.save`, but {str(path)!r} is none. {in_words(error)}"
            ) from error

    def __repr__(self) -> str:
        probes = () if self.thinned else (f"{len(self.names)} probes",)
        parts = [f"step {self.step}", f"epoch {self.epoch}", *probes]
        if (accuracy := self.metrics.get("accuracy")) is not None:
            parts.append(f"accuracy {accuracy.value:.3g}")
        parts += [f"{len(self.metrics)} metrics", f"heatmaps by {', '.join(self.maps) or 'none'}"]
        parts += [f"{finding.key}: {finding.state}" for finding in self.findings if finding.value]
        return f"AuditRecord({', '.join(parts)})"


def to_text(record: AuditRecord, tensors: dict[str, Tensor]) -> str:
    """JSON of a record, in one line of ASCII; its tensors are put aside under the name of their place."""
    content = {each.name: _encoded(getattr(record, each.name), each.name, tensors) for each in fields(record)}
    return json.dumps({"schema": SCHEMA, "record": content}, allow_nan=False, separators=(",", ":"))


def from_text(text: str | bytes, tensors: Mapping[str, Tensor]) -> AuditRecord:
    """Undo `to_text`; damaged text may raise any exception, that of a newer version an `AuditError`."""
    given = json.loads(text)
    if given["schema"] > SCHEMA:
        raise AuditError(f"It is of version {given['schema']}, newer than {SCHEMA}. Update xai_callbacks.")
    content = {name: _decoded(value, tensors) for name, value in given["record"].items()}
    checks = checks_of(AuditRecord)
    if wrong := [name for name, value in content.items() if name in checks and not checks[name](value)]:
        raise AuditError(f"It is damaged: `{wrong[0]}` is of another kind than it should be.")
    return AuditRecord(**{each.name: content[each.name] for each in fields(AuditRecord) if each.name in content})


def _encoded(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, Tensor):
        place = place.encode("utf-8", "backslashreplace").decode()  # such as half of a pair of a name that is no text
        while place in tensors:  # of two names with dots
            place += "_"
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {"$": ["tensor", place]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$": ["float", str(value)]}
    if type(value) in _KINDS.values():
        parts = (_encoded(getattr(value, name), f"{place}.{name}", tensors) for name in type(value).__annotations__)
        return {"$": [type(value).__name__, *parts]}
    if isinstance(value, Mapping):
        if "$" in value or not all(isinstance(key, str) for key in value):
            return {"$": ["mapping", *_encoded(tuple(value.items()), place, tensors)]}
        return {key: _encoded(each, f"{place}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(each, f"{place}.{index}", tensors) for index, each in enumerate(value)]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(each, tensors) for each in value)
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {sys.intern(key): _decoded(each, tensors) for key, each in value.items()}
    kind, *parts = _decoded(value["$"], tensors)
    if kind == "tensor":
        return tensors.get(parts[0])
    if kind == "float":
        return float(parts[0])
    if kind == "mapping":
        return dict(parts)
    given = dict(zip(_KINDS[kind].__annotations__, parts, strict=False))
    return _shared_key(**given) if kind == "Key" else _KINDS[kind](**given)
