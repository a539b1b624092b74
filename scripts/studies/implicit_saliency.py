"""Do contrasts with many foils light up where people look? Implicit saliency against fixations on photos.

For each of 150 photos of OSIE (15 people, free viewing) and three nets of ImageNet: the variants of `ImplicitSaliency`
at the layer that is chosen (late) and at a middle one, beside Grad-CAM of the prediction, the mean activation, the same
sums without conflict (gradients of the logits of the foils, of no loss), noise, a centred bell, and where people look
in the other photos. Photos are squeezed to 224 x 224 pixels, so that nothing is cut off. Maps are brought to cells
of 4 x 4 pixels, 100 x 75 a photo, and blurred by a fourteenth of the height. Flat maps get the scores of chance.

Half of the photos choose the variant, by its mean NSS over nets at the late layer; the other half gives the figures,
with 95 % intervals over photos, also of paired differences. `noise` is normal, added to pixels in [0, 1].

    python scripts/studies/implicit_saliency.py --json docs/results/implicit_saliency.json

Takes about ten minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _imagenet_nets import deit_tiny, mobilenet_v2, squeezenet
from _provenance import provenance

from xai_callbacks import GradCAM, HiResCAM, ImplicitSaliency, Why
from xai_callbacks.access import Layer, Subject, trace_model, undisturbed
from xai_callbacks.audit.observer import observe
from xai_callbacks.explainers import Observation
from xai_callbacks.explainers.foils import Variant, likely_foils
from xai_callbacks.metrics.fixations import auc_judd, cc, nss
from xai_callbacks.record.summary import interval

NETS = {"mobilenet_v2": mobilenet_v2, "squeezenet": squeezenet, "deit_tiny": deit_tiny}
MIDDLE = {
    "mobilenet_v2": "features.13", "squeezenet": "features.7", "deit_tiny": "encoder.layers.encoder_layer_5"
}  # fmt: skip
VARIANTS: tuple[Variant, ...] = ("weighted", "product", "magnitude")
WITHOUT = {"weighted": "weighted without conflict", "product": "product without conflict"}
PRIORS = ("random", "centre", "other photos")
SCORES = ("nss", "cc", "auc_judd")
NOISES = (0.1, 0.3)
MANY = 100
CELL, GRID = 4, (75, 100)  # pixels a cell, cells of a photo of 400 x 300 pixels
DEGREE = 3.0  # cells in a degree of visual angle, as the authors of OSIE blur fixations
BLUR = GRID[0] / 14
CHUNK = 10
_FLAT = 1e-5

Scores = dict[str, dict[str, list[float]]]


def fixations(path: Path) -> dict[str, Tensor]:
    """How often people looked at each cell, `(75, 100)` by photo."""
    found: dict[str, Tensor] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            counts = found.setdefault(row["image"], torch.zeros(GRID))
            counts[min(int(float(row["y"]) / CELL), GRID[0] - 1), min(int(float(row["x"]) / CELL), GRID[1] - 1)] += 1
    return found


def photo(path: Path) -> Tensor:
    """Pixels `(3, 224, 224)` in [0, 1], of the whole photo."""
    image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def normalised(pixels: Tensor) -> Tensor:
    """As the nets expect them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def layers_of(model: nn.Module, middle: str, images: Tensor) -> dict[str, Layer]:
    """The layer that is chosen, and one in the middle."""
    with undisturbed(model):
        trace = trace_model(Subject(model), images)
        return {
            "late": GradCAM().prepare(trace, None).layers[0],
            "middle": GradCAM(middle).prepare(trace, None).layers[0],
        }


def saliencies(observation: Observation, layer: Layer, foils: int) -> dict[str, Tensor]:
    """All maps `(N, h, w)` at a layer, from the gradients of the foils and of what they are held against."""
    activations = layer.layout.to_nchw(observation.activations[layer.name].detach())
    outputs = observation.outputs.detach()
    classes = torch.cat([outputs.argmax(dim=1)[None], likely_foils(outputs, foils)])
    vectors = [outputs.softmax(dim=1), *one_hot(classes, outputs.shape[1]).float()]
    gradients = (layer.layout.to_nchw(each) for each in observation.gradients(vectors, layer))
    expected, own = next(gradients), next(gradients)
    found = {"gradcam": GradCAM().combine(activations, own).clamp_min(0), "activation": activations.abs().mean(dim=1)}
    sums = dict.fromkeys((*VARIANTS, *WITHOUT.values()), torch.zeros(()))
    for gradient in gradients:
        for variant in VARIANTS:
            sums[variant] = (
                sums[variant] + ImplicitSaliency(variant).contrast.combine(activations, expected - gradient).abs()
            )
        sums[WITHOUT["weighted"]] = sums[WITHOUT["weighted"]] + GradCAM().combine(activations, gradient).abs()
        sums[WITHOUT["product"]] = sums[WITHOUT["product"]] + HiResCAM().combine(activations, gradient).abs()
    return found | sums


def shown(heatmap: Tensor) -> Tensor:
    """A map `(h, w)` on the cells of the photo, blurred; zeros if it is flat."""
    if float(heatmap.max() - heatmap.min()) <= _FLAT * float(heatmap.abs().max()):
        return torch.zeros(GRID, dtype=torch.float64)
    large = interpolate(heatmap[None, None].double(), GRID, mode="bilinear", align_corners=False)[0, 0]
    return torch.from_numpy(gaussian_filter(large.numpy(), BLUR, mode="nearest"))


def judged(heatmap: Tensor, counts: Tensor) -> tuple[float, float, float]:
    """NSS, CC and AUC-Judd of a map on the cells of the photo; those of chance if it is flat."""
    density = torch.from_numpy(gaussian_filter(counts.double().numpy(), DEGREE))
    found = (nss(heatmap, counts > 0), cc(heatmap, density), auc_judd(heatmap, counts > 0))
    values = [float(each.nan_to_num(0.0)) for each in found]
    return values[0], values[1], values[2]


def add(scores: Scores, name: str, values: Sequence[float]) -> None:
    """Append what one photo says of a map."""
    rows = scores.setdefault(name, {score: [] for score in SCORES})
    for score, value in zip(SCORES, values, strict=True):
        rows[score].append(value)


def priors(counts: Sequence[Tensor]) -> Scores:
    """Scores of maps that know no net, for each photo."""
    scores: Scores = {}
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.linspace(-2, 2, side, dtype=torch.float64) for side in GRID)
    centre = torch.exp(-(rows[:, None] ** 2 + columns**2) / 2)  # a standard deviation of a quarter of each side
    every = torch.stack([*counts]).sum(dim=0).double()
    for own in counts:
        others = torch.from_numpy(gaussian_filter((every - own).numpy(), DEGREE))
        maps = {"random": shown(torch.rand(7, 7, generator=generator)), "centre": centre, "other photos": others}
        for name, heatmap in maps.items():
            add(scores, name, judged(heatmap, own))
    return scores


def of_net(model: nn.Module, middle: str, pixels: Tensor, counts: Sequence[Tensor], foils: int) -> dict[str, Scores]:
    """Scores of all maps of a net for each photo, by layer and noise."""
    layers = layers_of(model, middle, normalised(pixels[:2]))
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    found: dict[str, Scores] = {}
    for size in (0.0, *NOISES):
        at = {name: layer for name, layer in layers.items() if name == "late" or size != NOISES[0]}
        for start in range(0, len(pixels), CHUNK):
            part = slice(start, start + CHUNK)
            with undisturbed(model):
                images = normalised(pixels[part] + size * noise[part])
                observation = observe(Subject(model), images, None, [Why()], [*at.values()])
                for name, layer in at.items():
                    maps = saliencies(observation, layer, foils)
                    if name == "late" and size == 0:
                        maps[f"weighted, {MANY} foils"] = saliencies(observation, layer, MANY)["weighted"]
                    scores = found.setdefault(f"{name}, noise {size}", {})
                    for kind, heatmaps in maps.items():
                        for heatmap, own in zip(heatmaps, counts[part], strict=True):
                            add(scores, kind, judged(shown(heatmap), own))
    return found


def mean_of(values: Sequence[float]) -> list[float | None]:
    """Mean over photos, and the ends of its interval."""
    given = torch.tensor([*values], dtype=torch.float64)
    return [None if each is None else round(each, 4) for each in (float(given.mean()), *interval(given))]


def halves(scores: Mapping[str, Sequence[float]], half: int) -> dict[str, Sequence[float]]:
    """Values of every second photo: half 0 chooses, half 1 reports."""
    return {score: values[half::2] for score, values in scores.items()}


def choose(nets: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """Mean NSS over nets on the half that chooses, without noise, and the best variant at the late layer."""
    table = {
        where: {
            variant: round(
                float(np.mean([np.mean(net[f"{where}, noise 0.0"][variant]["nss"][::2]) for net in nets.values()])), 4
            )
            for variant in VARIANTS
        }
        for where in ("late", "middle")
    }
    return {"nss": table, "chosen": max(VARIANTS, key=table["late"].__getitem__)}


def less(scores: Scores, others: Scores) -> dict[str, Any]:
    """How much more NSS maps have than those of the same name elsewhere, on the half that reports."""
    pairs = {
        name: zip(each["nss"][1::2], others[name]["nss"][1::2], strict=True)
        for name, each in scores.items()
        if name in others
    }
    return {name: mean_of([one - other for one, other in pair]) for name, pair in pairs.items()}


def summed_up(scores: Scores, known: Scores, chosen: str) -> dict[str, Any]:
    """Figures of the half that reports, and how much more NSS the chosen variant has than each other map."""
    kept = {name: halves(each, 1) for name, each in (scores | known).items()}
    best = kept[chosen]["nss"]
    return {
        "scores": {name: {score: mean_of(kept[name][score]) for score in SCORES} for name in scores},
        "chosen_less": {
            name: mean_of([one - other for one, other in zip(best, kept[name]["nss"], strict=True)])
            for name in kept
            if name != chosen
        },
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and print the NSS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--photos", type=int, default=150)
    parser.add_argument("--foils", type=int, default=10, help="most probable other classes")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    looked = fixations(options.data / "osie" / "fixations.csv")
    names = sorted(looked)[: options.photos]
    counts = [looked[name] for name in names]
    pixels = torch.stack([photo(options.data / "osie" / "images" / f"{name}.jpg") for name in names])
    known = priors(counts)
    nets: dict[str, dict[str, Scores]] = {}
    for net in options.nets:
        nets[net] = of_net(NETS[net](options.data / "weights"), MIDDLE[net], pixels, counts, options.foils)
        for where, scores in nets[net].items():
            line = ", ".join(f"{name} {np.mean(each['nss']):.2f}" for name, each in scores.items())
            print(f"{net}, {where}: {line}", flush=True)
    choice = choose(nets)
    result: dict[str, Any] = {
        "choice": choice,
        "priors": {name: {score: mean_of(halves(each, 1)[score]) for score in SCORES} for name, each in known.items()},
        "nets": {
            net: {
                **{where: summed_up(scores, known, choice["chosen"]) for where, scores in found.items()},
                "late_less_middle": less(found["late, noise 0.0"], found["middle, noise 0.0"]),
                "late_less_noisy": less(found["late, noise 0.0"], found[f"late, noise {NOISES[-1]}"]),
                "middle_less_noisy": less(found["middle, noise 0.0"], found[f"middle, noise {NOISES[-1]}"]),
            }
            for net, found in nets.items()
        },
        "setup": {
            "photos": len(names), "foils": options.foils, "layers": {"middle": MIDDLE}, "interval": "95 % over photos",
            **provenance("scipy"),
        },
    }  # fmt: skip
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1)
        lists = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)  # a line each
        options.json.write_text(lists + "\n")
    return result


if __name__ == "__main__":
    main()
