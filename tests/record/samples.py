"""Records for tests, small ones and one of the usual size, and a comparison that looks at every bit."""

from __future__ import annotations

import math
import struct
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.record import AuditRecord, Estimate, Finding, Key, MapSet, Onset

METRICS = ("mass", "lift", "rank", "iou", "drift", "trust", "noise", "hits", "entropy", "spread")
QUESTIONS = ("why", "why_rather_than", "why_not_certain")


def small(step: int, explainers: tuple[str, ...] = ("gradcam",), **fields: Any) -> AuditRecord:
    """A record of two probes whose tensors and metrics tell its step."""
    given: dict[str, Any] = {
        "run": "run-1",
        "step": step,
        "epoch": step,
        "fingerprint": "probes",
        "names": ("a", "b"),
        "outputs": torch.full((2, 3), float(step)),
        "maps": {name: MapSet(heatmaps=torch.full((1, 2, 2, 2), float(step)), explainer=name) for name in explainers},
        "metrics": {"accuracy": Estimate(step / 7, chance=0.5, valid=2)},
        "keys": (Key("accuracy", "share of probes that are right", 0.0, 1.0, "1 / K", "share"),),
        "findings": (Finding("alarm/cue/patch", "watch", 1.0, "Watch the patch."),),
    }
    return AuditRecord(**{**given, **fields})


def usual(step: int, probes: int = 64) -> AuditRecord:
    """A record of 64 probes, three questions, 7 x 7 cells and 60 metrics; the same for the same step."""
    random = torch.Generator().manual_seed(step)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    keys = [f"gradcam/{asked}/{name}/{region}" for asked in QUESTIONS for name in METRICS for region in ("core", "cue")]
    values = some(len(keys), 4).double().tolist()
    return AuditRecord(
        run="2026-01-31T12:00:00-0123456789abcdef",
        step=step,
        epoch=step,
        time=1.7e9 + step,
        fingerprint="0123456789abcdef" * 4,
        names=tuple(f"{index:03d}_class_{index % 10}" for index in range(probes)),
        class_names=tuple(f"class_{index}" for index in range(10)),
        explainers={"gradcam": "GradCAM()"},
        asked=("Why()", "WhyRatherThan()", "WhyNotCertain()"),
        versions={"python": "3.12.3", "torch": "2.8.0", "numpy": "2.3.0", "xai_callbacks": "0.1.0"},
        weights="fedcba9876543210" * 4,
        settings={"chunk_size": 16, "seed": 0},
        questions=QUESTIONS,
        headings=("Why P?", "Why P, rather than Q?", "Why not P with 100 % confidence?"),
        titles=tuple(tuple(f"Why class_{index % 10}?" for index in range(probes)) for _ in QUESTIONS),
        outputs=some(probes, 10),
        predictions=torch.randint(10, (probes,), generator=random),
        confidences=some(probes),
        correct=some(probes).double(),
        truth=torch.randint(10, (probes,), generator=random),
        facts=torch.randint(10, (3, probes), generator=random),
        foils=torch.randint(10, (3, probes), generator=random),
        maps={"gradcam": MapSet(heatmaps=some(3, probes, 7, 7), explainer="GradCAM()", layer="layer4", peaks=(1.0,))},
        scores={"gradnorm": some(probes)},
        metrics={key: Estimate(*each, probes, 0) for key, each in zip(keys, values, strict=True)},
        keys=tuple(Key(key, f"share of the relevance of {key}", 0.0, 1.0, "area") for key in keys),
        per_probe={key: some(probes).double() for key in keys},
        chances={key: some(probes).double() for key in keys},
        findings=tuple(
            Finding(f"alarm/cue/{cue}", "no evidence", 0.0, f"The cue {cue} has an effect of 0.02 (0.01–0.03).")
            for cue in ("patch", "tint", "text")
        ),
        seconds={"explain": 0.2, "try": 0.4, "judge": 0.1},
        notes=("Probabilities were explained by their logarithm.",),
    )


def frozen() -> AuditRecord:
    """What `schema_1.safetensors` holds, all kinds of values among it. Never change it."""
    nan, inf = float("nan"), float("inf")
    onset = Onset(3, 2, 4, 1, False, "/runs/a.ckpt")
    effect = Estimate(0.25, 0.125, 0.5, 0.0, 30, 2)
    maps = MapSet(
        heatmaps=torch.arange(-4.0, 4.0).reshape(1, 2, 2, 2),
        explainer="GradCAM()",
        layer="layer4",
        reason="`layer4`, the last with a grid",
        units="relative",
        about="image",
        verified=False,
        peaks=(3.0, inf),
        stamps={"random": torch.tensor([[0.5, nan]], dtype=torch.float64)},
    )
    return AuditRecord(
        run="r1",
        step=12,
        epoch=3,
        time=1.5,
        untrained=True,
        fingerprint="f",
        names=("ä", "猫"),
        groups=("x", "y"),
        explainers={"gradcam": "GradCAM()"},
        settings={"nested": {"seed": 0, "of": (1, None, "a", {"$": "no marker"})}, "rate": -inf, "by": {1: True}},
        predictions=torch.tensor([[True, False], [False, True]]),
        truth=torch.tensor([1, 0]),
        maps={"gradcam": maps},
        metrics={"cue/patch/effect": effect, "empty": Estimate(nan, valid=0)},
        keys=(Key("cue/*/effect", "effect", -1.0, 1.0, "0", "share", "images"),),
        per_probe={"cue/patch/effect": torch.tensor([0.0, 0.5], dtype=torch.float64)},
        findings=(Finding("alarm", "alarm", 2.0, "It is.", "cue/patch/effect", 0.1, effect, onset, True, True),),
        notes=("a\nb",),
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values, or records, are equal in type and in every bit; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("d", one) == struct.pack("d", other)
    if is_dataclass(one):
        return all(same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
