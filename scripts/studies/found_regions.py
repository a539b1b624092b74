"""Circling what a classifier found: several lesions in one scene, and a cloth whose pattern looks like them.

The question was asked on StackExchange in 2018: a net was trained on close-ups of melanomas; which parts of a photo of
a hand on a patterned tablecloth does it take for one? Here small nets learn to tell single lesions of ISIC 2017 from
skin, at 64 pixels: `skin` from skin alone, `skin_and_cloth` from patterns of such cloths as well. Scenes of 256 pixels
hold one to three lesions of the validation split, and a cloth beside them; see `_lesion_scenes`.

A lesion is found if the peak of a found region lies in it (`recall`), a found region is right if its peak lies in a
lesion (`precision`), or lies `on_cloth`. `iou` is that of a lesion and the found region that fits it best, `iou_chance`
that of the same regions shifted by any amount. `found_on_skin` is the number of regions in scenes of skin alone.
Intervals (95 %) are over lesions or regions, of one net each. Nets end in global average pooling, for which
Grad-CAM and HiResCAM at the last layer are the same; at the input of the last convolution they differ.

    python scripts/studies/found_regions.py --json docs/results/found_regions.json --docs docs

Takes a minute on one CPU thread. Needs ISIC 2017, see `--data`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _isic import MEAN, STD, normalised
from _lesion_scenes import CELL, SIDE, Scenes, build, joined, material, scenes, training
from _provenance import provenance, write_json

from xai_callbacks import Auditor, AuditRecord, Explainer, GradCAM, HiResCAM, ProbeSet, SlidingWindow, WhyRatherThan
from xai_callbacks.gallery.heat import heat
from xai_callbacks.metrics import FoundRegion, Threshold, found_iou, found_on, summarize
from xai_callbacks.render import Cell, ColorScale, Row, render_page

NETS = {"skin": False, "skin_and_cloth": True}
BATCH, RATE = 64, 2e-3
EARLIER = "11"  # what the last convolution gets
LIKELY, HALF, OTSU = Threshold("value", 0.5), Threshold("fraction", 0.5), Threshold("otsu")

Figures = dict[str, Any]


EXPLAINERS: tuple[Explainer, ...] = (
    SlidingWindow(CELL, 16, enlarge=False),
    SlidingWindow(CELL, 16, enlarge=False, reduce="max", name="maximum"),
    SlidingWindow(CELL, 64, enlarge=False, name="tiles"),
    SlidingWindow(CELL, 64, enlarge=True, name="enlarged"),
    GradCAM(),
    HiResCAM(),
    GradCAM(EARLIER, name="gradcam_earlier"),
    HiResCAM(EARLIER, name="hirescam_earlier"),
)


class Finder(NamedTuple):
    """A map, and a threshold of it."""

    map: str
    threshold: Threshold
    words: str


FINDERS = (
    Finder("sliding_window", LIKELY, "sliding window, stride 16, p > 0.5"),
    Finder("sliding_window", OTSU, "the same map, Otsu"),
    Finder("maximum", LIKELY, "the maximum of the windows instead of the mean, p > 0.5"),
    Finder("tiles", LIKELY, "windows side by side, p > 0.5"),
    Finder("enlarged", LIKELY, "the same, each enlarged to 256 px, p > 0.5"),
    Finder("gradcam", HALF, "Grad-CAM, last convolution, half of the maximum"),
    Finder("gradcam", OTSU, "Grad-CAM, last convolution, Otsu"),
    Finder("gradcam_earlier", HALF, "Grad-CAM, its input, half of the maximum"),
    Finder("hirescam_earlier", HALF, "HiResCAM, its input, half of the maximum"),
)
SHOWN = (FINDERS[0], FINDERS[6])


def learn(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Adam, with a rate that falls to 0."""
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images told right."""
    return float(
        (torch.cat([model(part).argmax(dim=1) for part in torch.split(images, BATCH)]) == labels).float().mean()
    )


def auditor_of(given: Scenes) -> Auditor:
    """Asks "Why lesion, rather than skin?" of all explainers."""
    masks = {"lesions": torch.stack([each.any(dim=0) for each in given.lesions]), "cloth": given.cloth}
    pixels = (given.images * 255).round().byte().permute(0, 2, 3, 1)
    probes = ProbeSet.from_tensors(
        normalised(given.images * 255), [1] * len(pixels), pixels=pixels, masks=masks, class_names=["skin", "lesion"],
        mean=MEAN, std=STD,
    )  # fmt: skip
    question = WhyRatherThan(foil="skin", fact="lesion")
    return Auditor(probes, [question], explainers=list(EXPLAINERS), novelty=[], measures=[], chunk_size=16)


def regions(record: AuditRecord, finder: Finder) -> list[tuple[FoundRegion, ...]]:
    """What is found in each scene."""
    given = record.maps[finder.map]
    return [found_on(each, (SIDE, SIDE), finder.threshold, peak=given.peaks[0]) for each in given.heatmaps[0]]


def judged(found: Sequence[Sequence[FoundRegion]], given: Scenes) -> Figures:
    """Recall, precision and overlap."""
    hits, right, cloth, overlaps = list[bool](), list[bool](), list[bool](), list[tuple[float, float]]()
    for here, lesions, table in zip(found, given.lesions, given.cloth, strict=True):
        peaks = [each.place for each in here]
        hits += [any(bool(lesion[peak]) for peak in peaks) for lesion in lesions]
        right += [any(bool(lesion[peak]) for lesion in lesions) for peak in peaks]
        cloth += [bool(table[peak]) for peak in peaks]
        overlaps += [found_iou(tuple(here), lesion) for lesion in lesions]
    iou, chance = torch.tensor(overlaps, dtype=torch.float64).T
    shares = {"recall": hits, "precision": right, "on_cloth": cloth}
    figures = {name: estimate(torch.tensor(each, dtype=torch.float64)) for name, each in shares.items()}
    return {**figures, "iou": estimate(iou), "iou_chance": round(float(chance.mean()), 3), "regions": len(right)}


def estimate(values: Tensor) -> list[float | None]:
    """Mean of values in [0, 1], with its interval; None for what there is not."""
    found = summarize(values, bounds=(0.0, 1.0))[:3]
    return [None if each is None or math.isnan(each) else round(each, 3) for each in found]


def study(records: Mapping[str, AuditRecord], given: Scenes) -> Figures:
    """Figures of each net and finder; scenes without lesions are of skin alone."""
    kept = [index for index, lesions in enumerate(given.lesions) if len(lesions)]
    with_lesions = Scenes(given.images[kept], tuple(given.lesions[index] for index in kept), given.cloth[kept])
    result: Figures = {}
    for net, record in records.items():
        result[net] = {}
        for finder in FINDERS:
            found = regions(record, finder)
            counts = [len(each) for index, each in enumerate(found) if index not in kept]
            figures = judged([found[index] for index in kept], with_lesions)
            figures["found_on_skin"] = round(sum(counts) / len(counts), 2)
            result[net][finder.words] = figures
            print(net, finder.words, json.dumps(figures))
    return result


def table(result: Figures) -> str:
    """One row a finder, for each net."""
    lines = [
        "| trained on | found by | recall | precision | on the cloth | IoU (chance) | regions on skin alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for net, finders in result["nets"].items():
        for words, row in finders.items():
            shares = " | ".join(_with_interval(row[name]) for name in ("recall", "precision", "on_cloth"))
            iou = f"{_with_interval(row['iou'])} ({row['iou_chance']:.2f})"
            lines.append(f"| {_ON[net]} | {words} | {shares} | {iou} | {row['found_on_skin']:.1f} |")
    about = result["provenance"]
    return "\n".join([*lines, "", f"*`{about['command'].split()[1]}`, {about['date']}, {about['machine']}*"])


_ON = {"skin": "lesions and skin", "skin_and_cloth": "lesions, skin and cloths"}


def _with_interval(estimate: Sequence[float | None]) -> str:
    value, low, high = estimate
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def picture(records: Mapping[str, AuditRecord], given: Scenes, index: int) -> np.ndarray:
    """One scene as both nets see it: the photo with its lesions outlined, and what is found."""
    image = (given.images[index] * 255).round().byte().permute(1, 2, 0).numpy()
    scale, rows = ColorScale(), []
    # The style of an outline hangs on its place.
    nothing = np.zeros(image.shape[:2], bool)
    lesions = {"lesions": given.lesions[index].any(dim=0).numpy()}
    for net, record in records.items():
        cells = [Cell(image, "the scene", regions=lesions)]
        for finder in SHOWN:
            masks = [each.mask.numpy() for each in regions(record, finder)[index]]
            found = {"lesions": nothing, "found": np.any([nothing, *masks], axis=0)}
            cells.append(Cell(image, finder.words, heat(record.maps[finder.map], [index], scale)[0, 0], regions=found))
        rows.append(Row(cells, f"trained on {_ON[net]}", size=168, lines=3))
    return render_page(rows, title="What is found as a lesion?", scale=scale, width=3 * 168 + 16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, look for lesions, sum up."""
    options = _options(arguments)
    torch.set_num_threads(1)
    folder = options.data / "isic2017"
    known, unseen = material(folder, "train", options.images), material(folder, "val", 150)
    given = joined(scenes(unseen, options.scenes, 1), scenes(unseen, max(1, options.scenes // 4), 2, (0,)))
    auditor, records, accuracies = auditor_of(given), {}, {}
    for net, lookalikes in NETS.items():
        model = learn(build(0), *training(known, options.draws, 3, lookalikes=lookalikes), options.epochs)
        accuracies[net] = round(accuracy(model, *training(unseen, 400, 4, lookalikes=lookalikes)), 3)
        records[net] = auditor.audit(model)
        assert not records[net].failed, records[net].failed
    last = [records[net].maps[name].heatmaps for net in NETS for name in ("gradcam", "hirescam")]
    setup = {
        "lesions_in_training": len(known.lesions), "lesions_in_scenes": len(unseen.lesions), "scenes": options.scenes,
        "accuracy_on_single_unseen_images": accuracies,
        "gradcam_less_hirescam_at_the_last_layer": float((last[0] - last[1]).abs().max() / last[0].abs().max()),
    }  # fmt: skip
    print(setup)
    result = {"provenance": provenance("scipy"), "setup": setup, "nets": study(records, given)}
    if options.json is not None:
        write_json(options.json, result)
    if options.docs is not None:
        Image.fromarray(picture(records, given, options.drawn)).save(
            options.docs / "pictures" / "found_regions.png", optimize=True
        )
        page, (begin, end) = options.docs / "found_regions.md", ("<!-- found table -->", "<!-- end of found table -->")
        text = page.read_text(encoding="utf-8")
        before, after = text.partition(begin)[0], text.partition(end)[2]
        page.write_text(f"{before}{begin}\n{table(result)}\n{end}{after}", encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with isic2017")
    parser.add_argument("--images", type=int, default=600, help="training images of ISIC read")
    parser.add_argument("--draws", type=int, default=800, help="training images made of them")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--drawn", type=int, default=2, help="number of the scene in it")
    parser.add_argument("--docs", type=Path, help="folder of the page whose table is made anew, and of its picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
