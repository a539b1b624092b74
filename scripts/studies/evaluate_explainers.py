"""How do explainers compare on real nets? Every explainer on COCO photos, whose objects have masks.

The question is "Why P?" of the answer of the net; photos are those whose object all three nets name. What is measured:

`mass_lift`: share of the positive relevance on the object over its area, with interval over photos; chance 1.
`pointing`: share of photos whose peak lies on the object; beside it the mean area, which is chance.
`deletion_minus_random`: logit of P as the most relevant pixels are hidden, less that in random order, mean over 5, 10,
    20 and 40 % of the pixels, with interval; the lower, the better. All maps are brought to 14 x 14 cells first, so
    that all hide the same kind of parts; the random order is one of these cells. What is hidden is blurred.
`randomisation`: rank correlation of the maps with those of the same net with random weights; near 0 means that the map
    shows what was learnt. Beside it, what maps of different photos have in common, which is no fault of the method.
`cost_forwards`: forward passes an image beyond the shared one, a backward pass counted as one more, as the plan says.

    python scripts/studies/evaluate_explainers.py --json docs/results/explainers.json
    python scripts/update_readme.py

Takes some 20 minutes with two processes, `--nets` names the nets of each; files of several are put together by --merge.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _imagenet_nets import deit_tiny, mobilenet_v2, squeezenet
from _photos import DATA, coco_probes
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from xai_callbacks import Auditor, ProbeSet, Why, explainers
from xai_callbacks.access.randomised import randomised_copy
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import Explainer
from xai_callbacks.metrics.localization import area_fraction, relevance, relevance_lift
from xai_callbacks.metrics.trust import area_under, blurred, chance_similarity, coarse, deletion_curve, map_similarity
from xai_callbacks.record import summarize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _provenance import provenance, write_json

NETS = {"mobilenet_v2": mobilenet_v2, "squeezenet1_0": squeezenet, "deit_tiny": deit_tiny}
SETTINGS: dict[str, dict[str, Any]] = {
    "ExpectedGradients": {"samples": 12},
    "IntegratedGradients": {"steps": 12},
    "Occlusion": {"window": 56, "stride": 28},
    "RISE": {"masks": 60},
    "SmoothGrad": {"samples": 8},
}
# Wrappers of others, and masks of what hinders, which have no positive cell and a study of their own.
LEFT_OUT = {"Every", "Patchwise", "UndesirablePixels"}
CELLS = 14
RANDOMISED = 8  # photos of which maps of random weights are made
ORDERS = 3


def chosen(names: list[str] | None) -> list[Explainer]:
    """All explainers of the package that explain by themselves."""
    found = []
    for name in explainers.__all__:
        kind = getattr(explainers, name)
        alone = isinstance(kind, type) and issubclass(kind, Explainer) and not kind.__abstractmethods__
        if alone and name not in LEFT_OUT and (names is None or name in names):
            found.append(kind(**SETTINGS.get(name, {})))
    return found


def judged(model: nn.Module, copy: nn.Module, deletion: Deletion, explainer: Explainer) -> dict[str, Any]:
    """All figures of one explainer on one net."""
    probes, few = deletion.probes, list(range(RANDOMISED))
    auditor = auditor_of(probes, explainer)
    plan = auditor.prepare(model)[explainer.name]
    maps, mask = answered(auditor, model, explainer), probes.masks["core"]
    large = relevance(maps, (mask.shape[1], mask.shape[2]))
    lift, fall = summarize(relevance_lift(large, mask)), summarize(deletion.less_random(maps))
    same = auditor_of(probes.select(few), explainer)
    same.prepare(model)  # the copy is then explained at the layers of the net
    mine, random = coarse(maps[few]), coarse(answered(same, copy, explainer))
    return {
        "mass_lift": lift.value,
        "mass_lift_ci": [lift.low, lift.high],
        "pointing": float(mask.flatten(1).gather(1, large.flatten(1).argmax(dim=1)[:, None]).double().mean()),
        "deletion_minus_random": fall.value,
        "deletion_ci": [fall.low, fall.high],
        "randomisation": finite(map_similarity(mine, random)),
        "randomisation_chance": finite(chance_similarity(mine, random)),
        "cost_forwards": plan.cost,
        "empty": lift.degenerate,
        "grid": list(maps.shape[1:]),
        "settings": repr(explainer),
    }


def finite(values: Tensor) -> float | None:
    """The mean of what is known; None if nothing is, as where maps of random weights are empty."""
    mean = float(values.nanmean())
    return None if math.isnan(mean) else mean


def auditor_of(probes: ProbeSet, explainer: Explainer) -> Auditor:
    """An auditor that asks one explainer one question."""
    return Auditor(probes, [Why()], explainers=[explainer], novelty=[], measures=[], chunk_size=12)


def answered(auditor: Auditor, model: nn.Module, explainer: Explainer) -> Tensor:
    """Maps `(N, h, w)`."""
    record = auditor.audit(model)
    if explainer.name not in record.maps:
        raise ConfigurationError(" ".join(record.failed))
    return record.maps[explainer.name].heatmaps[0]


class Deletion:
    """The logit of P of each photo as the pixels that maps mark most are hidden."""

    def __init__(self, model: nn.Module, probes: ProbeSet) -> None:
        self.model, self.probes, self.fill = model, probes, blurred(probes.images)
        self.facts = self.logits(probes.images).argmax(dim=1, keepdim=True)
        generator = torch.Generator().manual_seed(0)
        orders = [torch.rand(len(probes), CELLS, CELLS, generator=generator) for _ in range(ORDERS)]
        self.random = torch.stack([self.area(each) for each in orders]).mean(dim=0)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Of some photos at a time."""
        return torch.cat([self.model(chunk) for chunk in torch.split(images, 12)])

    def area(self, maps: Tensor) -> Tensor:
        """The mean logit over the shares that are hidden, `(N,)` float64."""
        curve = deletion_curve(self.score, self.probes.images, maps, fill=self.fill)
        return area_under(curve).double()

    def score(self, images: Tensor) -> Tensor:
        """The logit of P, `(N,)`."""
        return self.logits(images).gather(1, self.facts)[:, 0]

    def less_random(self, maps: Tensor) -> Tensor:
        """What is left of the logit less what random orders leave, `(N,)`."""
        return self.area(on_cells(maps)) - self.random


def on_cells(maps: Tensor) -> Tensor:
    """Maps `(N, h, w)` on 14 x 14 cells: finer ones by means, coarser ones enlarged."""
    if maps.shape[-1] >= CELLS:
        return adaptive_avg_pool2d(maps, (CELLS, CELLS))
    return interpolate(maps[:, None], (CELLS, CELLS), mode="bilinear", align_corners=False)[:, 0]


def main(arguments: list[str] | None = None) -> Mapping[str, Any]:
    """Judge explainers on nets, or put files together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--explainers", nargs="+", help="class names of some explainers; all without it")
    parser.add_argument("--photos", type=int, help="number of photos; all without it")
    parser.add_argument("--merge", nargs="+", type=Path, help="files to put together instead")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.merge:
        parts: list[dict[str, Any]] = [json.loads(path.read_text()) for path in given.merge]
        result = {net: row for part in parts for net, row in part.items()}
    else:
        probes = coco_probes(tuple(NETS), given.photos)
        nets = {net: evaluated(net, probes, given.explainers) for net in given.nets}
        chance = float(area_fraction(probes.masks["core"]).mean())
        setup = {"photos": len(probes), "area": chance} | provenance("xai-callbacks", "captum")
        result = {**nets, "setup": setup}
    if given.json is not None:
        write_json(given.json, result)
    return result


def evaluated(net: str, probes: ProbeSet, names: list[str] | None) -> dict[str, dict[str, Any]]:
    """Figures of one net by name of the explainer; of one that refuses it, what it says."""
    model = NETS[net](DATA / "weights").eval()
    copy, deletion = randomised_copy(model, probes.images, seed=0, chunk_size=12), Deletion(model, probes)
    found: dict[str, dict[str, Any]] = {}
    for explainer in chosen(names):
        try:
            found[explainer.name] = judged(model, copy, deletion, explainer)
        except ConfigurationError as error:
            found[explainer.name] = {"refused": str(error)}
        print(net, explainer.name, json.dumps(found[explainer.name]), flush=True)
    return found


if __name__ == "__main__":
    main()
