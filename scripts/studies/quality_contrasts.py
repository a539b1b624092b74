"""A contrast of values, patch by patch: does "why y, rather than q?" point to the half of a photo that was corrupted?

The net is CNNIQA (Kang et al. 2014), which scores patches of 32 x 32; a photo scores their mean. The score is DMOS:
higher is worse. One half of each photo, left and right in turn, is blurred, made noisy or compressed, and `Patchwise`
HiResCAM answers. With R the map of a patch's score y, "why y, rather than q?" is `2 (y - q) R`, so that its positive
part should lie

* on what speaks for badness, for q = 0, which no patch falls below: in the corrupted half;
* on what speaks against it, for q = 100, the worst: in the clean half.

`mass` is the share of positive relevance in the half that was corrupted (chance .5), `difference` that for q = 0 less
that for q = 100. `none` is the same of photos left as they are. `change` is what a corruption does to the score of a
window that lies beside it, half in it, or in it. Intervals (95 %) are over photos.

    python scripts/studies/quality_contrasts.py --json docs/results/quality.json

Takes two minutes on one CPU thread. Needs COCO photos and the weights, see `--data`. `--picture` draws one photo with
a map for each of five values.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _provenance import provenance, write_json
from _quality_net import CORRUPTIONS, PATCH, PatchQuality, corrupted, photos

from xai_callbacks import (
    Auditor,
    AuditRecord,
    Explainer,
    HiResCAM,
    Patchwise,
    ProbeSet,
    Question,
    Why,
    WhyValueRatherThan,
)
from xai_callbacks.explainers import Windows, window_scores
from xai_callbacks.gallery.pages import panel
from xai_callbacks.metrics import relevance, relevance_mass, summarize
from xai_callbacks.render import ColorScale

SIDE, STRIDE, CHUNK = 192, 16, 64
GOOD, BAD = 0.0, 100.0
QUESTIONS: dict[str, Question] = {
    "why": Why(),
    "rather_than_0": WhyValueRatherThan(GOOD),
    "rather_than_100": WhyValueRatherThan(BAD),
}
SHOWN = (0.0, 25.0, 50.0, 75.0, 100.0)

Figures = dict[str, Any]


def halves(count: int) -> Tensor:
    """The left half of every other photo, the right half of the rest, `(N, 1, H, W)` bool."""
    found = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    found[::2, ..., : SIDE // 2] = True
    found[1::2, ..., SIDE // 2 :] = True
    return found


def probes_of(images: Tensor, clean: Tensor, half: Tensor) -> ProbeSet:
    """Photos as probes; their targets are the scores of the clean ones."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return ProbeSet.from_tensors(images, targets=clean, pixels=pixels, masks={"corrupted": half[:, 0]})


def audited(model: nn.Module, probes: ProbeSet, values: Sequence[float] = (), stride: int = STRIDE) -> AuditRecord:
    """Maps of the contrasts; with the `QUESTIONS` of the study, or those of other values."""
    questions: list[Question] = [WhyValueRatherThan(each) for each in values] or list(QUESTIONS.values())
    explainers: list[Explainer] = [Patchwise(HiResCAM(), PATCH, stride)]
    return Auditor(probes, questions, explainers=explainers, novelty=[], measures=[], chunk_size=CHUNK).audit(model)


def estimate(values: Tensor, low: float | None = None, high: float | None = None) -> list[float | None]:
    """Mean with its interval, rounded."""
    found = summarize(values, bounds=(low, high))
    return [None if each is None else round(each, 3) for each in found[:3]]


def contrasts(record: AuditRecord, half: Tensor) -> Figures:
    """Where the positive relevance of each question lies."""
    maps = relevance(record.heatmaps, (SIDE, SIDE))
    mass = dict(zip(QUESTIONS, relevance_mass(maps, half[:, 0]), strict=True))
    difference = mass["rather_than_0"] - mass["rather_than_100"]
    return {
        "mass": {name: estimate(each, 0.0, 1.0) for name, each in mass.items()},
        "difference": estimate(difference, -1.0, 1.0),
        "share_of_photos_with_a_difference_above_0": estimate((difference > 0).double(), 0.0, 1.0),
    }


@torch.no_grad()
def changes(model: nn.Module, clean: Tensor, worse: Tensor) -> dict[str, Tensor]:
    """What a corruption does to scores of windows `(N,)`, by where they lie: means over windows."""
    windows = Windows.over((SIDE, SIDE), PATCH, PATCH // 2)
    before, after = (
        window_scores(lambda parts, _rows: model(parts)[:, 0], each, windows, chunk_size=CHUNK)
        for each in (clean, worse)
    )
    moved = after - before
    moved[1::2] = moved[1::2].flip(-1)  # the corruption is on the left of all
    middle, begins = SIDE // 2, torch.tensor(windows.lefts)
    groups = {"beside": begins == middle, "half_in": begins == middle - PATCH // 2, "in": begins + PATCH <= middle}
    return {name: moved[..., where].mean(dim=(1, 2)) for name, where in groups.items()}


def study(model: nn.Module, images: Tensor) -> Figures:
    """Figures of each corruption."""
    half, found = halves(len(images)), {}
    with torch.no_grad():
        clean = model(images)[:, 0]
    for kind in ("none", *CORRUPTIONS):
        worse = images if kind == "none" else corrupted(images, kind, half)
        record = audited(model, probes_of(worse, clean, half))
        assert record.outputs is not None  # narrows the type
        assert not record.failed
        moved = {name: estimate(each) for name, each in changes(model, images, worse).items()}
        found[kind] = {"score": estimate(record.outputs[:, 0]), **contrasts(record, half)}
        found[kind] |= {} if kind == "none" else {"change": moved}
        print(kind, json.dumps(found[kind]))
    return found


def picture(model: nn.Module, clean: Tensor, kind: str, half: Tensor) -> np.ndarray:
    """A photo `(1, 1, H, W)` with half of it corrupted, and its maps for several values; as the gallery draws it."""
    with torch.no_grad():
        probes = probes_of(corrupted(clean, kind, half), model(clean)[:, 0], half)
    # A map of some hundreds in density is weighed by 2 (y - q), up to 200.
    return panel(probes, audited(model, probes, SHOWN, stride=4), 0, ColorScale(20000.0, "DMOS²"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Corrupt, explain, sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with coco and weights")
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--picture", type=Path, help="file for a picture")
    parser.add_argument("--drawn", type=int, default=1, help="number of the photo in it")
    parser.add_argument("--kind", choices=CORRUPTIONS, default="blur", help="what is done to its left half")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, images = PatchQuality(options.data / "weights").eval(), photos(options.data, options.photos, SIDE)
    if options.picture is not None:
        drawn = picture(model, images[options.drawn][None], options.kind, halves(1))
        Image.fromarray(drawn).save(options.picture)
    if options.json is not None:
        setup = {"photos": len(images), "side": SIDE, "window": PATCH, "stride": STRIDE, "explainer": "HiResCAM()"}
        result = {"provenance": provenance("pillow"), "setup": setup, "conditions": study(model, images)}
        write_json(options.json, result)


if __name__ == "__main__":
    main()
