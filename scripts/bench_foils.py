"""What many foils cost: a hundred contrasts, the uncertainty over a hundred foils, and eight explainers in one audit.

    python scripts/bench_foils.py --json docs/results/foils.json

Ratios to a plain forward pass of the same images, of paired repeats in one process; medians. MobileNetV2 of torchvision
with random weights at 224 pixels, which change no time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from _provenance import provenance, write_json
from bench_cam import explained, plain_forward, seconds

from xai_callbacks import (
    CAM,
    VOICE,
    Energy,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    ImplicitSaliency,
    LayerCAM,
    NoveltyMap,
    Why,
    WhyRatherThan,
)
from xai_callbacks.explainers import Explainer
from xai_callbacks.questions import Question

SIZE, FOILS = 224, 100
CONTRASTS: list[Question] = [WhyRatherThan(foil=index) for index in range(FOILS)]
EIGHT: list[Explainer] = [
    *(GradCAM(), GradCAMPlusPlus(), HiResCAM(), LayerCAM(), CAM()),
    *(NoveltyMap(Energy()), VOICE(foils=10), ImplicitSaliency(foils=10)),
]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=8, help="at a time; eight explainers see twice as many")
    parser.add_argument("--size", type=int, default=SIZE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    many = torch.randn(2 * options.images, 3, options.size, options.size)
    images = many[: options.images]
    contenders: dict[str, Callable[[], object]] = {
        "forward": plain_forward(model, images),
        "contrasts_100": explained(model, images, CONTRASTS, [GradCAM()]),
        "voice_100": explained(model, images, [Why()], [VOICE(foils=FOILS)]),
        "implicit_saliency_100": explained(model, images, [Why()], [ImplicitSaliency(foils=FOILS)]),
        "voice_all": explained(model, images, [Why()], [VOICE(foils=None)]),
        "forward_twice_as_many": plain_forward(model, many),
        "eight_explainers": explained(model, many, [Why(), WhyRatherThan()], EIGHT),
    }
    for call in contenders.values():
        call()
    times = [{name: seconds(call) for name, call in contenders.items()} for _ in range(options.repeats)]
    below = dict.fromkeys(contenders, "forward") | {"eight_explainers": "forward_twice_as_many"}
    ratios = {name: [row[name] / row[below[name]] for row in times] for name in contenders if "forward" not in name}
    result: dict[str, Any] = {
        "ratio_to_forward": {name: round(statistics.median(each), 3) for name, each in ratios.items()},
        "lowest_and_highest": {name: [round(min(each), 3), round(max(each), 3)] for name, each in ratios.items()},
        "eight": [repr(each) for each in EIGHT],
        "images": options.images,
        "size": options.size,
        "repeats": options.repeats,
    }
    for name, value in result["ratio_to_forward"].items():
        print(f"  {name}: {value:.2f} forward passes")
    if options.json:
        write_json(options.json, {**result, **provenance()})
    return result


if __name__ == "__main__":
    main()
