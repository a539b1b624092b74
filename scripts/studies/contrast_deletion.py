"""Is a contrast a contrast? What hiding the most relevant tenth of a photo does to the logits of P and Q.

For each photo, P is the answer of the net and Q the runner-up. A tenth of the pixels is hidden: those that a map of
"Why P, rather than Q?" marks most (by cross-entropy, `contrast`, or by the logits, `difference`), those that the map of
"Why P?" by the same explainer marks most, or those of a random map of the same grid, enlarged in the same way. What
counts is the fall of `z_P - z_Q`; hidden pixels get the mean colour of the photo. Differences are paired by photo.

    python scripts/studies/contrast_deletion.py --json docs/results/contrast.json

Takes a quarter of an hour on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _imagenet_nets import deit_tiny, mobilenet_v2, squeezenet
from _photos import DATA, coco_probes, imagenet_probes
from torch import Tensor, nn

from xai_callbacks import Auditor, ProbeSet, Why, WhyRatherThan
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import (
    Explainer,
    GradCAM,
    GuidedBackprop,
    InputXGradient,
)
from xai_callbacks.metrics.trust import marked
from xai_callbacks.record import summarize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _provenance import provenance, write_json

# The contrast of the paper, and its limit for a sure net.
QUESTIONS = {"why": Why(), "contrast": WhyRatherThan(), "difference": WhyRatherThan(fact="predicted")}
NETS = {"mobilenet_v2": mobilenet_v2, "squeezenet1_0": squeezenet, "deit_tiny": deit_tiny}
SHARE, RANDOM_MAPS = 0.1, 2


def explainers() -> list[Explainer]:
    """Those whose maps follow the question."""
    return [GradCAM(), InputXGradient(), GuidedBackprop()]


class Deletion:
    """The fall of `z_P - z_Q` of each photo when pixels are hidden."""

    def __init__(self, model: nn.Module, probes: ProbeSet, facts: Tensor, foils: Tensor) -> None:
        self.model, self.probes, self.facts, self.foils = model, probes, facts, foils
        self.mean = probes.images.mean(dim=(2, 3), keepdim=True)
        self.whole = self.margin(probes.images)

    @torch.no_grad()
    def margin(self, images: Tensor) -> Tensor:
        """`z_P - z_Q` `(N,)`."""
        logits = torch.cat([self.model(chunk) for chunk in torch.split(images, 16)])
        return (logits.gather(1, self.facts[:, None]) - logits.gather(1, self.foils[:, None]))[:, 0]

    def fall(self, maps: Tensor) -> Tensor:
        """What `z_P - z_Q` loses, `(N,)` float64, when the tenth that maps `(N, h, w)` mark most is hidden."""
        images = self.probes.images
        hidden = marked(maps, (images.shape[2], images.shape[3]), SHARE)[:, None]
        return (self.whole - self.margin(torch.where(hidden, self.mean, images))).double()


def falls(model: nn.Module, probes: ProbeSet, explainer: Explainer) -> Tensor:
    """What `z_P - z_Q` loses by the maps of the three questions and by random ones, `(4, N)` float64."""
    auditor = Auditor(probes, list(QUESTIONS.values()), explainers=[explainer], novelty=[], measures=[])
    record = auditor.audit(model)
    maps = record.maps[explainer.name].heatmaps
    assert record.facts is not None
    assert record.foils is not None
    deletion = Deletion(model, probes, record.facts[1], record.foils[1])
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(maps[0].shape, generator=generator) for _ in range(RANDOM_MAPS)]
    chance = torch.stack([deletion.fall(each) for each in noise]).mean(dim=0)
    return torch.stack([*(deletion.fall(each) for each in maps), chance])


def judged(found: Tensor) -> dict[str, Any]:
    """Mean falls, and paired differences with their intervals."""
    by = dict(zip((*QUESTIONS, "random"), found, strict=True))
    differences = {
        f"{name}_minus_{other}": paired(by[name] - by[other])
        for name in ("contrast", "difference")
        for other in ("why", "random")
    }
    return {**{name: float(each.mean()) for name, each in by.items()}, **differences}


def paired(differences: Tensor) -> list[float | None]:
    """Mean and its 95 % interval."""
    estimate = summarize(differences)
    return [estimate.value, estimate.low, estimate.high]


def main(arguments: list[str] | None = None) -> Mapping[str, Any]:
    """Judge all explainers on all nets and photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--explainers", nargs="+", help="names of some explainers; all without it")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    nets: dict[str, Any] = {}
    photos = {"coco": coco_probes(), "imagenet": imagenet_probes()}
    for net in given.nets:
        model = NETS[net](DATA / "weights").eval()
        for explainer in explainers():
            if given.explainers and explainer.name not in given.explainers:
                continue
            try:
                found = {name: falls(model, probes, explainer) for name, probes in photos.items()}
            except ConfigurationError as error:
                entry: Any = {"refused": str(error).partition(". ")[0]}
            else:
                every = {**found, "all": torch.cat(list(found.values()), dim=1)}
                entry = {name: judged(each) for name, each in every.items()}
            nets.setdefault(net, {})[explainer.name] = entry
            print(net, explainer.name, json.dumps(entry.get("all", entry)), flush=True)
    result = {"nets": nets, "photos": {name: len(probes) for name, probes in photos.items()}, "share": SHARE}
    result |= provenance("xai-callbacks")
    if given.json is not None:
        write_json(given.json, result)
    return result


if __name__ == "__main__":
    main()
