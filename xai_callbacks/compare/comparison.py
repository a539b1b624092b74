"""`compare`: two or more models on the same probes, side by side, with uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.compare import agreement
from xai_callbacks.compare.agreement import Agreement, agreements, expected_distances, says
from xai_callbacks.compare.differences import FEWEST_SEEDS, MetricDifference, metric_differences
from xai_callbacks.compare.verdict import conclude, quality_key
from xai_callbacks.errors import ConfigurationError, require_instance, require_number
from xai_callbacks.history import History
from xai_callbacks.metrics import FoundRegion, found_on, rank_correlation
from xai_callbacks.metrics.representations import linear_cka
from xai_callbacks.record import FEWEST_FOR_INTERVAL, AuditRecord, plain

SAME_VALUE = 0.1  # standard deviations of the targets by which values may differ and still be the same answer
_NAMED = 3  # differing questions or explainers that an error names
Model = History | AuditRecord


@dataclass(frozen=True)
class Disagreement:
    """How far the models disagree about one probe: of all models, that which differs most from the baseline."""

    index: int
    name: str
    says: float  # how far answers differ, [0, 1]
    why: float  # cosine distance of the heatmaps, [0, 2]; NaN where they answer different questions
    model: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Difference:
    """A model against the baseline. Probes are given by their places, `(N,)` tensors are float64.

    Attributes:
        metrics: All metrics that both have, most certain differences first.
        gained: Probes that the baseline gets wrong and the model right.
        lost: Negative flips: right before, wrong now.
        changed: Other probes with another answer; of values, one that differs by more than a tenth of the standard
            deviation of the targets.
        agreements: Agreement of heatmaps by what their keys begin with, such as `gradcam/why`.
        says: How far the answers differ, `(N,)` in [0, 1]: total variation of probabilities, see `agreement.says`.
        novelty: Rank correlation of the novelty scores of the probes, in [-1, 1], by score: are the same ones novel?
        cka: Linear CKA of stages of the same name, by name, in [0, 1]; where no name is the same, of each stage of the
            baseline and the most similar one, as `layer1 ~ blocks.2`. Empty without `Representations`.
        identical: Whether the weights are the same.
    """

    metrics: tuple[MetricDifference, ...]
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    changed: tuple[int, ...]
    agreements: Mapping[str, Agreement]
    says: Tensor
    novelty: Mapping[str, float]
    cka: Mapping[str, float]
    identical: bool

    @property
    def distance(self) -> Tensor:
        """Cosine distance of the maps of the first question that can be compared, `(N,)`, NaN where none can."""
        first = next(iter(self.agreements.values()), None)
        return torch.full_like(self.says, torch.nan) if first is None else first.distance

    @property
    def same(self) -> int:
        """Number of probes with the same answer."""
        return len(self.says) - len(self.gained) - len(self.lost) - len(self.changed)

    @property
    def reasons(self) -> tuple[int, ...]:
        """Same answer, different reasons: those of these probes whose maps can be compared, furthest apart first."""
        other = {*self.gained, *self.lost, *self.changed}
        apart = {place: far for place, far in enumerate(self.distance.tolist()) if not math.isnan(far)}
        return tuple(sorted(apart.keys() - other, key=lambda place: (-apart[place], place)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Two or more models on the same probes. Made by `compare`.

    Attributes:
        models: History of each model by its name, oldest audit first; the first model is the baseline.
        differences: Of each other model from the baseline, by its name.
        notes: Sentences about what is to be known of the comparison.
        verdict: Which one to ship and why, in sentences, the most important first.
        noise: What `MetricDifference.beyond` is held against: `seeds` of one training (and the choice of probes), or
            the choice of `probes` alone.
    """

    models: Mapping[str, History]
    differences: Mapping[str, Difference]
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    noise: str = "probes"

    @property
    def baseline(self) -> str:
        """Name of the model that the others are held against."""
        return next(iter(self.models))

    def record(self, name: str) -> AuditRecord:
        """The audit of a model that is compared: its latest, read from where its history is."""
        return self.models[name][-1]

    def difference_maps(self, name: str, key: str) -> Tensor:
        """Signed heatmaps of a model less those of the baseline, `(N, h, w)` float64 on their common grid.

        `key` is one of `differences[name].agreements`. Where cells are parts of a logit this is the heatmap of
        `logit_model - logit_baseline`. NaN where the two were asked about different classes.
        """
        return agreement.difference_maps(self.record(self.baseline), self.record(name), key)

    def mean_difference_map(self, name: str, key: str) -> Tensor:
        """Mean of `difference_maps` over the probes, `(h, w)` float64; NaN if none can be compared, 0 for rounding."""
        return agreement.mean_difference_map(self.record(self.baseline), self.record(name), key)

    def difference_regions(self, name: str, key: str, size: tuple[int, int]) -> tuple[FoundRegion, ...]:
        """Regions of images `size` on which a model finds more evidence than the baseline, over all probes asked alike.

        Of `mean_difference_map`, what exceeds half of its largest value, highest peak first: a cue at one place
        shows itself so, an object that may be anywhere does not. Other places have as much to say where few probes
        carry the cue.
        """
        return found_on(self.mean_difference_map(name, key), size)

    def ranking(self) -> list[Disagreement]:
        """Probes by how far the models disagree about them, in what they say first, then in why."""
        names = self.record(self.baseline).names
        found = []
        for index, probe in enumerate(names):
            each = [
                Disagreement(index, probe, float(other.says[index]), float(other.distance[index]), model)
                for model, other in self.differences.items()
            ]
            found.append(max(each, key=_weight))
        return sorted(found, key=_weight, reverse=True)

    def as_dict(self) -> dict[str, Any]:
        """The comparison in plain values, for JSON; what is not finite is None."""
        latest = {name: history.without_tensors()[-1] for name, history in self.models.items()}
        told = ("epoch", "step", "checkpoint", "weights", "metrics", "findings")
        found: dict[str, Any] = plain({
            "baseline": self.baseline,
            "verdict": self.verdict,
            "noise": self.noise,
            "notes": self.notes,
            "models": {
                name: {"audits": len(self.models[name])} | {part: getattr(record, part) for part in told}
                for name, record in latest.items()
            },
            "differences": {name: _numbers(each) for name, each in self.differences.items()},
            "ranking": self.ranking(),
        })  # fmt: skip
        return found


def compare(models: Mapping[str, Model], *, seeds: Sequence[Model] = (), confidence: float = 0.95) -> Comparison:
    """Compare the latest audits of two or more models.

    Cost: no model is run. Memory: the latest record of each model, as its history holds it, and some numbers a probe.

    Args:
        models: Histories or records by the names of the models; the first is the baseline.
        seeds: Audits of three or more trainings that differ in nothing but their seed: what two of these differ by is
            noise.
        confidence: 1 - the chance that any metric of two equal models is said to be beyond noise.

    Raises a `ConfigurationError` that says what differs if audits are not of the same probes, questions and explainers,
    and for arguments that cannot be used.
    """
    require_number("confidence", confidence, 0.5, 1, ends="()")
    histories = _checked("models", models)
    if len(histories) < 2:
        raise ConfigurationError(f"Expected `models` to be two or more, but got {len(histories)}. Add one to compare.")
    named = {f"seed {place}": each for place, each in enumerate(seeds, start=1)}
    references = [history[-1] for history in _checked("seeds", named).values()]
    if 0 < len(references) < FEWEST_SEEDS:
        raise ConfigurationError(
            f"Expected `seeds` to be audits of {FEWEST_SEEDS} trainings or more, but got {len(references)}. Two or one "
            "say too little of how much trainings differ; leave them out, or add more."
        )
    names = list(histories)
    baseline = histories[names[0]][-1]
    weights = [record.weights for record in references if record.weights]
    if len(set(weights)) < len(weights):
        raise ConfigurationError(
            "Expected `seeds` to be different trainings, but some have the same weights. Leave out what is there twice."
        )
    for name, record in zip(named, references, strict=True):
        _require_comparable(names[0], baseline, name, record)
    found, notes, expected = {}, list[str](), expected_distances(references)
    for name in names[1:]:
        record = histories[name][-1]
        _require_comparable(names[0], baseline, name, record)
        found[name] = _difference(baseline, record, references, expected, confidence)
        notes += _notes(names[0], name, found[name], baseline, record)
    notes += _of_models(histories)
    noise = "seeds" if references else "probes"
    # Each is one of many contests of the best model, at one level together.
    level = 1 - (1 - confidence) / max(1, len(names) - 1)

    def contest(name: str, other: str) -> MetricDifference | None:
        pair = histories[name][-1], histories[other][-1]
        rows = metric_differences(*pair, references, confidence=level)
        return next((row for row in rows if row.key == quality_key(pair)), None)

    latest = {name: history.without_tensors()[-1] for name, history in histories.items()}
    verdict = conclude(latest, found, noise, contest)
    return Comparison(
        models=histories, differences=found, verdict=verdict, notes=tuple(dict.fromkeys(notes)), noise=noise
    )


def _checked(argument: str, models: Mapping[str, Model]) -> dict[str, History]:
    require_instance(argument, models, Mapping, "audits by the names of models")
    found = {}
    for name, model in models.items():
        require_instance(f"{argument}[{name!r}]", model, (History, AuditRecord), "a History or an AuditRecord")
        history = model if isinstance(model, History) else History().with_record(model)
        record = history.last
        if record is None or record.thinned:
            got = "none" if record is None else "one without tensors"
            raise ConfigurationError(f"Expected {argument}[{name!r}] to have a latest audit, but got {got}.")
        found[name] = history
    return found


def _require_comparable(name: str, a: AuditRecord, other: str, b: AuditRecord) -> None:
    """Refuse audits of other probes, questions or explainers, and say what differs."""
    differing = []
    if a.fingerprint != b.fingerprint:
        differing.append(f"probes ({a.fingerprint}, {b.fingerprint})")
    if a.outputs is not None and b.outputs is not None and a.outputs.shape[1] != b.outputs.shape[1]:
        differing.append(f"the number of outputs ({a.outputs.shape[1]}, {b.outputs.shape[1]})")
    pairs = {"questions": (a.asked, b.asked), "explainers": (a.explainers.values(), b.explainers.values())}
    for what, (first, second) in pairs.items():
        apart = [*(each for each in first if each not in second), *(each for each in second if each not in first)]
        if apart:
            differing.append(f"{what} ({', '.join(apart[:_NAMED])} of one alone)")
    if differing:
        raise ConfigurationError(
            f"Expected audits of the same probes, questions and explainers, but {name!r} and {other!r} differ in "
            f"{' and '.join(differing)}. Audit both with one Auditor: xai-audit audit A B --probes P."
        )


def _difference(
    a: AuditRecord, b: AuditRecord, seeds: Sequence[AuditRecord], expected: Mapping[str, float], confidence: float
) -> Difference:
    other = _differs(a, b)
    gained, lost = _flips(a, b, other)
    return Difference(
        metrics=metric_differences(a, b, seeds, confidence=confidence),
        gained=gained,
        lost=lost,
        changed=tuple(place for place in other.nonzero()[:, 0].tolist() if place not in {*gained, *lost}),
        agreements=agreements(a, b, expected),
        says=says(a, b),
        novelty={name: rank_correlation(a.scores[name], b.scores[name]) for name in a.scores if name in b.scores},
        cka=_similarities(a.grams, b.grams),
        identical=bool(a.weights) and a.weights == b.weights,
    )


def _differs(a: AuditRecord, b: AuditRecord) -> Tensor:
    """Whether the answers differ, `(N,)` bool."""
    if a.predictions is None or b.predictions is None or a.predictions.shape != b.predictions.shape:
        return torch.zeros(len(a.names), dtype=torch.bool)
    if a.predictions.is_floating_point():
        first, second = (each.reshape(len(a.names), -1) for each in (a.predictions, b.predictions))
        known = first if a.truth is None else a.truth.reshape(len(a.names), -1)
        return ((second - first).abs() > SAME_VALUE * known.std(dim=0, correction=0)).any(dim=1)
    return (a.predictions != b.predictions).reshape(len(a.names), -1).any(dim=1)


def _similarities(grams: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, float]:
    """CKA of stages of the same name; without any, of each stage and the one that is most like it."""
    found = {name: linear_cka(grams[name], others[name]) for name in grams if name in others}
    if found or not others:
        return found
    for name, gram in grams.items():
        value, nearest = max((linear_cka(gram, each), other) for other, each in others.items())
        found[f"{name} ~ {nearest}"] = value
    return found


def _flips(a: AuditRecord, b: AuditRecord, other: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Probes with another answer that is more right than before, and less right."""
    if a.correct is None or b.correct is None:
        return (), ()
    gained, lost = (other & change for change in (b.correct > a.correct, b.correct < a.correct))
    return tuple(gained.nonzero()[:, 0].tolist()), tuple(lost.nonzero()[:, 0].tolist())


def _notes(name: str, other: str, found: Difference, a: AuditRecord, b: AuditRecord) -> list[str]:
    """What is to be known of a model and the baseline together."""
    notes = []
    if found.identical:
        notes.append(f"{other} has the weights of {name}.")
    elif a.settings != b.settings or a.versions != b.versions:
        # Packages that only one of the two had loaded made no difference.
        changed = [key for key in a.versions if key in b.versions and a.versions[key] != b.versions[key]]
        changed += [key for key in {**a.settings, **b.settings} if a.settings.get(key) != b.settings.get(key)]
        if changed:
            notes.append(f"{name} and {other} were audited with different settings or versions: {', '.join(changed)}.")
    grids = {key.partition("/")[0]: each.grid for key, each in found.agreements.items() if each.resampled}
    notes += [f"Maps of {each} have different grids; compared on {h} x {w}." for each, (h, w) in grids.items()]
    if len(a.names) < FEWEST_FOR_INTERVAL:
        notes.append(f"Of {len(a.names)} probes there are no intervals; {FEWEST_FOR_INTERVAL} are needed.")
    return notes


def _of_models(models: Mapping[str, History]) -> list[str]:
    """What the latest audits say of themselves, with the name of the model; what all say once, without one."""
    said, seen = dict[str, tuple[str, ...]](), dict[str, list[str]]()
    for name, history in models.items():
        record = history[-1]
        said[name] = *record.failed, *record.notes
        seen[name] = _of_maps(record)
    shared = [each for each in next(iter(said.values())) if all(each in others for others in said.values())]
    found = []
    for name in models:
        found += [f"{name}: {each}" for each in [*said[name], *seen[name]] if each not in shared]
    return found + shared


def _of_maps(record: AuditRecord) -> list[str]:
    """Of which probes maps are empty, and which tests they fail where no note says so."""
    empty = {
        explainer: int((given.heatmaps == 0).all(dim=-1).all(dim=-1).any(dim=0).sum())
        for explainer, given in record.maps.items()
    }
    doubts = {key: said for key in record.trust if (said := record.doubt(key))}
    told = [
        f"maps of {each} are empty on {dead} of {len(record.names)} probes." for each, dead in empty.items() if dead
    ]
    return told + [
        f"heat of {key} is in doubt: it {said}."
        for key, said in doubts.items()
        if not any(f"`{key}`" in note for note in record.notes)
    ]


def _weight(each: Disagreement) -> tuple[float, float]:
    return tuple(0.0 if math.isnan(value) else value for value in (each.says, each.why))  # type: ignore[return-value]


def _numbers(each: Difference) -> dict[str, Any]:
    """A difference without what is kept of each probe."""
    parts = ("rank_correlation", "ssim", "overlap", "distance")
    maps = {
        key: {"grid": found.grid, "expected": found.expected}
        | {part: float(getattr(found, part).nanmean()) for part in parts}
        for key, found in each.agreements.items()
    }
    left = {"agreements", "says"}
    kept = {name: value for name, value in vars(each).items() if name not in left}
    return kept | {"maps": maps, "same_answer_different_reasons": each.reasons}
