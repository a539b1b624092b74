"""Probes and made-up audits of them, for the tests of the gallery."""

from __future__ import annotations

import numpy as np
import torch

from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.record import AuditRecord, Estimate, MapSet

CLASSES = ("cat", "dog", "owl")
QUESTIONS = (Why(), WhyRatherThan(), WhyNotCertain())


def photos(count, size=(32, 32), seed=3):
    """Smooth colourful pictures (N, H, W, 3) uint8."""
    rough = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(rough, size, mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def probes_of(count=6, *, size=(32, 32), **fields):
    given = {"labels": torch.arange(count) % 3, "class_names": CLASSES, "pixels": photos(count, size), **fields}
    return ProbeSet.from_tensors(torch.rand(count, 3, *size), **given)


def logits_for(classes, width=3, sure=3.0):
    return sure * torch.nn.functional.one_hot(torch.as_tensor(classes), width).float() + torch.arange(width) * 0.01


def titled(probes, question, posed, outputs):
    task = probes.task
    if task.classifies:
        facts = ["no label" if index < 0 else task.name(index) for index in posed.fact.tolist()]
    else:
        facts = [f"{value:.3g}" for value in outputs.gather(1, posed.fact[:, None])[:, 0].tolist()]
    foils = [""] * len(facts)
    if getattr(posed, "foil", None) is not None:
        foils = [task.name(index) for index in posed.foil.tolist()]
    elif getattr(posed, "value", None) is not None:
        foils = [f"{value:.3g}" for value in posed.value.tolist()]
    return tuple(question.title(fact, foil) for fact, foil in zip(facts, foils, strict=True))


def audit_of(probes, outputs=None, questions=QUESTIONS, *, peak=12.0, grid=(7, 7), number=1, **changes):
    """An audit in which the model says `outputs`, with maps of one strong cell each, `peak` logits in density."""
    task, count = probes.task, len(probes)
    if outputs is None:
        outputs = logits_for(torch.arange(count) % 3)
    posed = [each.pose(outputs, probes.truth, task) for each in questions]
    maps = torch.zeros(len(questions), count, *grid)
    maps[:, :, grid[0] // 3, grid[1] // 3] = peak / (grid[0] * grid[1])
    truth = probes.truth
    correct = torch.full((count,), torch.nan, dtype=torch.float64) if truth is None else task.correct(outputs, truth)
    none = torch.full((count,), -1)
    foils = [none if getattr(each, "foil", None) is None else each.foil for each in posed]
    given = {
        "step": 100 * number,
        "epoch": number,
        "fingerprint": probes.fingerprint,
        "names": probes.names,
        "questions": tuple(each.key for each in questions),
        "headings": tuple(each.title("P", "Q") for each in questions),
        "titles": tuple(titled(probes, each, one, outputs) for each, one in zip(questions, posed, strict=True)),
        "outputs": outputs,
        "predictions": task.predictions(outputs),
        "confidences": task.confidences(outputs),
        "correct": correct,
        "truth": truth,
        "facts": torch.stack([each.fact for each in posed]) if posed else None,
        "foils": torch.stack(foils) if posed else None,
        "maps": {"gradcam": MapSet(heatmaps=maps, explainer="GradCAM()", layer="features")} if questions else {},
        "metrics": {"accuracy": Estimate(float(correct.nanmean()), valid=count)},
    }
    return AuditRecord(**(given | changes))


def history_of(*records):
    history = History()
    for record in records:
        history.append(record)
    return history


def said(monkeypatch, draw):
    """Run `draw`; returns what it gives, and the texts it drew, one string for all."""
    from PIL import ImageDraw

    words, last, original = [], [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        if last != [text, xy[0] - 0.5]:  # the second pass of bold type
            words.append(text)
        last[:] = [text, xy[0]]
        return original(self, xy, text, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ImageDraw.ImageDraw, "text", text)
        result = draw()
    return result, " ".join(words)


def places(picture, tile):
    """Left upper corners (y, x) at which a tile stands in a picture, byte for byte."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, (*tile.shape[:2], 1))[..., 0]
    corner = (picture[: windows.shape[0], : windows.shape[1]] == tile[0, 0]).all(axis=-1)
    height, width = tile.shape[:2]
    return [(int(y), int(x)) for y, x in np.argwhere(corner) if (picture[y : y + height, x : x + width] == tile).all()]
