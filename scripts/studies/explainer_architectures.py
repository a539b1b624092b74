r"""Which explainer suits which architecture: each audits each net once, or refuses it with what to take instead.

Nets are those of torchvision with random weights; nothing is downloaded. Explainers are all that
`xai_callbacks.explainers` exports, with settings that make them fast. The answer is `yes` if all heatmaps are finite
and not all of them are empty, nothing failed in the audit, and weights, buffers and train flags of the net are as
before; `refused` if a `ConfigurationError` says so beforehand. Anything else is a `fault`.

python scripts/studies/explainer_architectures.py --json docs/results/explainer_architectures.json \
    --page docs/explainers.md
python scripts/studies/explainer_architectures.py --explainers GradCAM Occlusion --nets resnet18
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _provenance import provenance, write_json

from xai_callbacks import Auditor, ProbeSet, Why, WhyRatherThan, explainers
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import Explainer

Entry = dict[str, Any]

SIZE = 96
# Settings by the name of the argument, so that an explainer that is new is fast by itself.
FAST: dict[str, Any] = {"iterations": 4, "masks": 4, "samples": 4, "steps": 4, "window": SIZE // 2}
NETS: dict[str, Callable[..., nn.Module]] = {
    name: torchvision.models.get_model_builder(name)
    for name in (
        *("resnet18", "resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "vgg16"),
        *("swin_t", "vit_b_16"),
    )
}
_CLASSES = 10
_WORDS = 60  # characters of a refusal in the table


def exported() -> dict[str, type[Explainer]]:
    """Explainers by name that can be made without an argument."""
    found = {name: getattr(explainers, name) for name in explainers.__all__}
    return {
        name: each
        for name, each in found.items()
        if inspect.isclass(each) and issubclass(each, Explainer) and not inspect.isabstract(each)
        if all(given.default is not given.empty for given in inspect.signature(each).parameters.values())
    }


def made(explainer: type[Explainer]) -> Explainer:
    """An explainer with fast settings."""
    return explainer(**{name: FAST[name] for name in inspect.signature(explainer).parameters if name in FAST})


def build(name: str) -> nn.Module:
    """A net with the random weights of seed 0, in training mode; heads of zeros, as of ViTs, are drawn, too."""
    torch.manual_seed(0)
    sized = {"image_size": SIZE} if name.startswith("vit") else {}
    model = NETS[name](weights=None, num_classes=_CLASSES, **sized)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=0.02)
    return model.train()


def noise(count: int, seed: int) -> ProbeSet:
    """Images of noise that is smooth, so that it is seen after many layers."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)
    return ProbeSet.from_tensors((images - 0.5) / 0.25, torch.arange(count), mean=[0.5] * 3, std=[0.25] * 3)


def examine(explainer: type[Explainer], model: nn.Module) -> Entry:
    """One cell: `answer`, with the `grid` of heatmaps and whether they are `verified`, or `why` not."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    entry = _audited(explainer, model)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    if [module.training for module in model.modules()] != flags:
        changed.append("train flags")
    return _fault(f"changed {', '.join(changed)}") if changed else entry


def _audited(explainer: type[Explainer], model: nn.Module) -> Entry:
    questions, familiar = [Why(), WhyRatherThan()], noise(4, seed=1)
    try:
        auditor = Auditor(
            noise(2, seed=0), questions, explainers=[made(explainer)], novelty=[], measures=[], inliers=familiar
        )
        record = auditor.audit(model)
    except ConfigurationError as error:
        return {"answer": "refused", "why": str(error)}
    except Exception as error:  # any other is what is looked for
        return _fault(f"{type(error).__name__}: {error}")
    if record.failed:
        return _fault("; ".join(map(str, record.failed)))
    (found,) = record.maps.values()
    if not found.heatmaps.isfinite().all() or not found.heatmaps.any():
        return _fault("heatmaps are empty" if found.heatmaps.isfinite().all() else "heatmaps are not finite")
    return {"answer": "yes", "grid": list(found.heatmaps.shape[-2:]), "verified": found.verified}


def _fault(why: str) -> Entry:
    return {"answer": "fault", "why": why}


def table(result: Mapping[str, Any]) -> str:
    """One row an explainer, one column a net."""
    cells = result["cells"]
    nets = list(next(iter(cells.values())))
    lines = ["| | " + " | ".join(nets) + " |", "|---" * (len(nets) + 1) + "|"]
    for name, row in cells.items():
        lines.append(f"| `{name}` | " + " | ".join(_words(row[net]) for net in nets) + " |")
    versions = result["provenance"]["versions"]
    note = (
        "Cells of a heatmap, of which an audit keeps 64 x 64 at most, or the reason of the refusal; nets of "
        f"torchvision with random weights at {SIZE} pixels. `scripts/studies/explainer_architectures.py`, "
        f"{result['provenance']['date']}, {result['provenance']['machine']}, torch {versions['torch']}, torchvision "
        f"{versions['torchvision']}."
    )
    return "\n".join([*lines, "", f"*{note}*"])


def _words(entry: Entry) -> str:
    if entry["answer"] == "yes":
        height, width = entry["grid"]
        return f"{height} x {width}" + ("" if entry["verified"] else ", not verified")
    # The refusal without what was expected, which is the same in the row, and without the advice.
    seen = entry["why"].partition(", but ")[2] or entry["why"]
    first = seen.partition(". ")[0].removeprefix("got ")
    if len(first) > _WORDS:
        kept = first[:_WORDS]
        first = kept.rsplit(", (" if ", (" in kept else " ", 1)[0] + " ..."
    return f"{'**fault**' if entry['answer'] == 'fault' else 'refused'}: {first}".replace("|", "/")


def filled(text: str, result: Mapping[str, Any]) -> str:
    """A page with its table made anew."""
    begin, end = "<!-- architectures table -->", "<!-- end of architectures table -->"
    before, after = text.partition(begin)[0], text.partition(end)[2]
    return f"{before}{begin}\n{table(result)}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Entry]]:
    """Run the study and print it; entries by explainer and net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the cells to this file")
    parser.add_argument("--page", type=Path, help="write the table into this page, such as docs/explainers.md")
    parser.add_argument("--explainers", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument("--nets", nargs="+", metavar="NAME", choices=NETS, default=list(NETS), help="all by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kinds = exported()
    cells: dict[str, dict[str, Entry]] = {name: {} for name in options.explainers or sorted(kinds)}
    for net in options.nets:
        model, began = build(net), time.process_time()
        for name, row in cells.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row[net] = examine(kinds[name], model)
            print(f"{net}, {name}: {_words(row[net])}", flush=True)
        print(f"{net}: {time.process_time() - began:.0f} s", flush=True)
    result = {"provenance": provenance("captum"), "size": SIZE, "cells": cells}
    if options.json:
        write_json(options.json, result)
    if options.page:
        options.page.write_text(filled(options.page.read_text(encoding="utf-8"), result), encoding="utf-8")
    return cells


if __name__ == "__main__":
    main()
