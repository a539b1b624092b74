"""Which layer is chosen in common architectures, whether it is verified, and whether its heatmaps lie right side up.

Small variants of families of timm and of Hugging Face transformers are built with random weights; nothing is
downloaded. For each, the default layer of Grad-CAM is found; where the search refuses, its advice is followed. With
`--train N`, each net then learns from scratch, in N steps at most, to tell a red square from a green one, and its
default heatmap is held against the quarter of the image in which the square is.

python scripts/studies/architectures.py --train 40 --json docs/results/architectures.json --page docs/architectures.md
python scripts/studies/architectures.py --only resnet18 ViTForImageClassification
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _architecture_page import RIGHT, write_page
from _hub_nets import HUB_NETS, build_hub_net
from _provenance import provenance
from _quarters import farthest, highest, squares, teach
from _timm_nets import TIMM_NETS, build_timm_net

from xai_callbacks import Auditor, GradCAM, HiResCAM, ProbeSet, Why
from xai_callbacks.errors import TargetLayerError, XAICallbacksError
from xai_callbacks.explainers import Explainer, Occlusion

Entry = dict[str, Any]

_ADVISED = re.compile(r"GradCAM\('([^']+)'(?:, name='([^']+)')?\)")
# Tiny nets take more steps, which cost little.
_MORE = 4


def build(name: str, *, train: bool = False) -> tuple[nn.Module, int]:
    """A net with the random weights of seed 0, and the side of its images.

    Args:
        name: A key of `TIMM_NETS` or `HUB_NETS`.
        train: Whether it is to be trained, on images as small as it takes.
    """
    torch.manual_seed(0)
    if name in HUB_NETS:
        return build_hub_net(name), HUB_NETS[name].size
    settings = TIMM_NETS[name]
    size = settings.train if train else settings.size
    model = build_timm_net(name, size)
    return model, size or int(model.default_cfg["input_size"][-1])  # type: ignore[index]


def examine(model: nn.Module, size: int) -> Entry:
    """Find the default layer of a net, or follow the advice that is given in its place.

    Returns:
        `layer`, `grid`, `verified` and `reason` of the layer; or `refused`, the message, `advice`, the explainers that
        it names, and `advice_works`, whether each gives finite heatmaps that are not flat.
    """
    probes = noise(size)
    entry: Entry = {"layer": None, "verified": False, "grid": None, "refused": None, "advice_works": None, "size": size}
    try:
        (layer,) = _auditor(probes, [GradCAM()]).prepare(model)["gradcam"].layers
    except TargetLayerError as error:
        explainers = advised(error)
        followed = {"refused": str(error), "advice": [repr(each) for each in explainers]}
        return entry | followed | {"advice_works": _works(_auditor(probes, explainers), model)}
    found = {"layer": layer.name, "verified": layer.verified, "grid": list(layer.layout.grid), "reason": layer.reason}
    return entry | found


def _works(auditor: Auditor, model: nn.Module) -> bool:
    """Whether all explainers give heatmaps that are finite and not flat."""
    try:
        maps = auditor.audit(model).maps
    except XAICallbacksError as error:
        print(f"  The advice fails: {error}")
        return False
    heatmaps = [each.heatmaps.flatten(2) for each in maps.values()]
    finite = all(bool(each.isfinite().all()) for each in heatmaps)
    uneven = all(bool((each.amax(dim=2) > each.amin(dim=2)).all()) for each in heatmaps)
    return finite and uneven and len(maps) == len(auditor.explainers)


def advised(error: TargetLayerError) -> list[Explainer]:
    """The explainers that a refusal advises: those at the branches that it names, or else occlusion."""
    named: list[Explainer] = [GradCAM(layer, name=name or None) for layer, name in _ADVISED.findall(str(error))]
    return named or [Occlusion()]


def noise(size: int) -> ProbeSet:
    """Two images of noise."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return ProbeSet.from_tensors(images, torch.tensor([0, 1]))


def find_quarters(name: str, steps: int) -> Entry:
    """Train a net, and see where its heatmaps of "why red?" peak.

    The auditor looks at the net before training, as a callback does, and keeps the layer; a second one looks at the
    trained net. A net that can do the task at once may go by anything that the square changes; where its map peaks
    elsewhere, it is trained on for all steps.

    Returns:
        `steps` and `accuracy` of training; `peak`, the share of eight images whose default heatmap is highest in the
        quarter of the square, and `stands_out`, in which it is farthest from its median, upwards or downwards;
        `hirescam`, the same of HiResCAM at the same layer where Grad-CAM peaks elsewhere; `trained`, all of that of the
        layer chosen after training, where it is another.
    """
    model, size = build(name, train=True)
    probes, quarters = squares(size)
    early = _prepared(model, probes)
    steps *= _MORE if name in HUB_NETS else 1
    learned = teach(model, size, steps)
    before = _shares(early, model, quarters)
    if learned.enough and before["peak"] < RIGHT:
        learned = teach(model, size, steps, min_steps=steps)
        before = _shares(early, model, quarters)
    after = _shares(_prepared(model, probes), model, quarters)
    facts = {"size": size, "steps": learned.steps, "accuracy": round(learned.accuracy, 3), "learned": learned.enough}
    return {**facts, **before, "trained": None if after["layer"] == before["layer"] else after}


def _prepared(model: nn.Module, probes: ProbeSet) -> Auditor:
    """An auditor of the default explainer, or of those that the refusal advises."""
    auditor = _auditor(probes, [GradCAM()])
    try:
        auditor.prepare(model)
    except TargetLayerError as error:
        auditor = _auditor(probes, advised(error))
        auditor.prepare(model)
    return auditor


def _shares(auditor: Auditor, model: nn.Module, quarters: Tensor) -> Entry:
    """Shares of right quarters; the worst where several explainers were advised."""
    maps = auditor.audit(model).maps

    def share(of: Tensor) -> float:
        return float((of == quarters).float().mean())

    found: Entry = {
        "layer": ", ".join(each.layer for each in maps.values()) or None,
        "grid": list(next(iter(maps.values())).heatmaps.shape[-2:]),
        "verified": all(each.verified for each in maps.values()),
        "peak": min(share(highest(each.heatmaps[0])) for each in maps.values()),
        "stands_out": min(share(farthest(each.heatmaps[0])) for each in maps.values()),
    }
    if list(maps) == ["gradcam"] and found["peak"] < RIGHT:
        # Of a net that has changed, the layer may not be verified any more.
        with suppress(TargetLayerError):
            beside = _auditor(auditor.probes, [HiResCAM(found["layer"])]).audit(model).maps["hirescam"].heatmaps[0]
            found["hirescam"] = {"peak": share(highest(beside)), "stands_out": share(farthest(beside))}
    return found


def _auditor(probes: ProbeSet, explainers: Sequence[Explainer]) -> Auditor:
    return Auditor(probes, [Why(of=1)], explainers=list(explainers), novelty=[])


def study(name: str, steps: int = 0) -> Entry:
    """Examine one net, and train it if steps are given; what fails is written down as such."""
    begin = time.perf_counter()
    try:
        entry = examine(*build(name))
        entry["quarter"] = find_quarters(name, steps) if steps and _is_trained(name) else None
    except Exception as error:  # one net more or less must not end the study
        entry = {"failed": f"{type(error).__name__}: {error}"}
    print(f"{name}: {_in_words(entry)} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return entry


def _is_trained(name: str) -> bool:
    """Whether training a net does not take too long."""
    return name in HUB_NETS or TIMM_NETS[name].train is not None


def _in_words(entry: Entry) -> str:
    if "failed" in entry:
        return f"FAILED, {entry['failed']}"
    if entry["refused"]:
        words = [f"refused, advice {'works' if entry['advice_works'] else 'FAILS'}"]
    else:
        words = [f"{entry['layer']} {entry['grid']} {'verified' if entry['verified'] else 'NOT VERIFIED'}"]
    if found := entry["quarter"]:
        words.append(
            f"{found['accuracy']:.2f} in {found['steps']} steps, "
            f"peak {found['peak']:.2f}, stands out {found['stands_out']:.2f}"
        )
        if found["trained"]:
            late = found["trained"]
            words.append(f"then {late['layer']} {late['peak']:.2f}, {late['stands_out']:.2f}")
    return "; ".join(words)


def kept_with(name: str, entry: Entry, path: Path) -> dict[str, Any]:
    """Results as they are kept: a new entry in the place of the one in the file, and where they come from.

    What an earlier run found of a net that is not trained anew stays as it was.
    """
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    libraries: dict[str, dict[str, Entry]] = {each: kept.get(each, {}) for each in ("timm", "transformers")}
    library = libraries["transformers" if name in HUB_NETS else "timm"]
    if "failed" not in entry:
        entry = {**entry, "quarter": entry["quarter"] or library.get(name, {}).get("quarter")}
    library[name] = entry
    return {
        **{key: dict(sorted(value.items())) for key, value in libraries.items()},
        "seed": 0,
        **provenance("timm", "transformers"),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Entry]:
    """Run the study and print it; entries by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file; of those in it, the rest is kept")
    parser.add_argument("--page", type=Path, help="write the tables into this page, such as docs/architectures.md")
    parser.add_argument("--train", type=int, default=0, metavar="N", help="train each net for at most N steps of 16")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of nets; all by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    entries: dict[str, Entry] = {}
    with warnings.catch_warnings():
        # Of timm and transformers, about names and defaults of their own.
        warnings.simplefilter("ignore")
        for name in options.only or [*TIMM_NETS, *HUB_NETS]:
            entries[name] = study(name, options.train)
            if options.json:
                # After each net: the whole takes an hour.
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(kept_with(name, entries[name], options.json), indent=1) + "\n")
    if options.page:
        write_page(json.loads(options.json.read_text()), options.page)
    return entries


if __name__ == "__main__":
    main()
