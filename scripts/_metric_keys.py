"""All keys of metrics as Markdown, from what measures, trials, watches and rules declare."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from xai_callbacks import (
    VOICE,
    AlarmRule,
    Auditor,
    AuditRecord,
    BackgroundTrial,
    Baselines,
    Conditions,
    CueTrial,
    Explainer,
    ExplanationUncertainty,
    FoundRegions,
    GradCAM,
    GradNorm,
    GroupAccuracy,
    HalfTrial,
    History,
    Key,
    Localization,
    MapClusters,
    Measure,
    PatchCue,
    ProbeSet,
    RegionTrial,
    Representations,
    Separation,
    Trial,
    Trust,
    ValidationNovelty,
    Watch,
    Why,
)
from xai_callbacks.novelty import NoveltyScore
from xai_callbacks.rules import as_rules, conclude

__all__ = ["keys_table"]

# Names that are chosen below, and what stands for them on the page. Questions of an explainer make a map.
_NAMES = {
    r"\bgradcam/why\w*": "<map>",
    r"\bregion_0\b": "<region>",
    r"\bcue_0\b": "<cue>",
    r"\bvalue_0\b": "<value>",
    r"\bgradnorm\b": "<score>",
    r"\bblur_\d\b": "<condition>_<level>",
    r"\bblur \d\b": "a condition",
    r"\bdrop/blur\b": "drop/<fill>",
    r"\bfilled by blur\b": "filled in one way",
    r"(?<=^group/)(\w+)/\*": r"\1/<label>_<cue>",
    r"^representation/\*": "representation/<stage>/cka",
    r"^alarm/cue/\*": "alarm/cue/<cue>",
    r"^alarm/attribution/\*": "alarm/attribution/<region>",
}
_HEAD = "| key | meaning | range | chance | of |\n|---|---|---|---|---|"


def keys_table() -> str:
    """A table for each class that declares keys."""
    parts, rows = [], dict[str, str]()
    for title, keys in _sections():
        new = {_row(key): title for key in keys}
        parts.append("\n".join([f"### {title}", "", _HEAD, *(row for row in new if row not in rows)]))
        rows |= new
    return "\n\n".join(parts)


def _sections() -> Iterator[tuple[str, Sequence[Key]]]:
    single = _probes(labels=torch.arange(2))
    yield "Always, one label each", _auditor(single).keys
    for what, probes in (
        ("Always, several labels each", _probes(labels=torch.eye(2, dtype=torch.int64))),
        ("Always, values", _probes(targets=torch.rand(2, 2), target_names=["value_0", "value_1"])),
    ):
        yield what, [key for key in _auditor(probes).keys if "value_1" not in key.key]
    everywhere = ["relevance_mass", "relevance_lift", "relevance_rank", "soft_iou"]
    measures: list[Measure] = [
        Localization(everywhere),
        Baselines(),
        FoundRegions(),
        MapClusters(),
        Trust(),
        Representations(),
        Separation(single),
        Conditions(["blur"]),
    ]
    for measure in measures:
        yield _named(measure), _added(single, _auditor(single, measures=[measure]))
    spread: list[Explainer] = [GradCAM(), VOICE()]
    uncertain = Auditor(single, [Why()], explainers=spread, novelty=[GradNorm()], measures=[ExplanationUncertainty()])
    told = ("voice/snr", "voice/iou")
    yield _named(ExplanationUncertainty()), [key for key in uncertain.keys if key.key in told]
    trials: list[Trial] = [
        CueTrial(PatchCue([1.0, 0.0, 0.0], 0, name="cue_0")),
        RegionTrial("region_0", fills=["blur"]),
        BackgroundTrial("region_0"),
        HalfTrial("left"),
    ]
    for trial in trials:
        yield _named(trial), _added(single, _auditor(single, trials=[trial]))
    groups = GroupAccuracy(2, num_cues=2, aligned=[0, 1], train_counts=[[9, 1], [1, 9]])
    watches: list[Watch] = [groups, ValidationNovelty()]
    for watch in watches:
        yield _named(watch), watch.keys(_auditor(single))
    yield _named(AlarmRule()), AlarmRule.keys
    yield "`Expectation`", conclude(as_rules(["accuracy > 0"]), History(), AuditRecord()).record.keys


def _probes(**truth: object) -> ProbeSet:
    region = torch.zeros(2, 32, 32, dtype=torch.bool)
    region[:, 8:24, 8:24] = True
    return ProbeSet.from_tensors(torch.rand(2, 3, 32, 32), masks={"region_0": region}, **truth)  # type: ignore[arg-type]


def _auditor(probes: ProbeSet, *, trials: list[Trial] | None = None, measures: list[Measure] | None = None) -> Auditor:
    question = Why("value_0") if probes.targets is not None else Why()
    scores: list[NoveltyScore] = [] if probes.labels is None or probes.labels.ndim > 1 else [GradNorm()]
    return Auditor(probes, [question], novelty=scores, trials=trials, measures=measures or [])


def _added(probes: ProbeSet, auditor: Auditor) -> list[Key]:
    always = _auditor(probes).keys
    return [key for key in auditor.keys if key not in always]


def _named(thing: object) -> str:
    return f"`{type(thing).__name__}`"


def _row(key: Key) -> str:
    ends = "" if key.low is None else f"{key.low:g}", "" if key.high is None else f"{key.high:g}"
    bounds = "any" if not any(ends) else f"[{ends[0]}, {ends[1]}]" if all(ends) else f"[{ends[0]}, ∞)"
    unit = {"": "", "share": "", "label": ", of each probe, not logged"}.get(key.unit, f" {key.unit}")
    cells = [f"`{_general(key.key)}`", _words(key.words), f"{bounds}{unit}", key.chance]
    return f"| {' | '.join([*cells, '' if key.of == 'nothing' else key.of])} |"


def _general(text: str) -> str:
    for name, general in _NAMES.items():
        text = re.sub(name, general, text)
    return text


def _words(text: str) -> str:
    return re.sub(r"<(\w+)>", r"*\1*", _general(text))
