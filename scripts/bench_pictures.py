"""What pictures cost: megabytes and CPU seconds an audit, and whether they grow over a run.

    python scripts/bench_pictures.py --json
    python scripts/bench_pictures.py --photos my_photos --audits 40 --keep pictures

Draws and encodes the pictures of a made-up run as a default callback has them: 16 probes at 224 pixels with colour
photos, three questions, Grad-CAM on 7 x 7 cells, one novelty score, and the history of a whole run. Bytes are those of
`encoded`, which all sinks use; CPU time is that of this process alone, without the audit. `growth` is the size of the
last audit over that of the first: filmstrips gain columns until there are eight, nothing else grows. Photos are
crops of the two that scikit-learn brings, or of those in a folder of yours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xai_callbacks.gallery import Gallery
from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate, Finding, MapSet
from xai_callbacks.render import encoded

PROBES, SIDE, CELLS, STEPS = 16, 224, 7, 400
"""Probes, pixels a side, cells a side, steps between audits."""
CLASSES = ("boxer", "tiger cat", "goldfish", "flower", "palace")
QUESTIONS = ("why", "why_rather_than", "why_not_certain")
HEADINGS = ("Why P?", "Why P, rather than Q?", "Why not P with 100 % confidence?")


def photos(folder: Path | None) -> list[Image.Image]:
    """Photos to crop from."""
    if folder is not None:
        found = [
            Image.open(path).convert("RGB") for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")
        ]
        if not found:
            sys.exit(f"Expected .jpg or .png files in {folder}, but there are none.")
        return found
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(each) for each in load_sample_images().images]


def probe_set(given: list[Image.Image]) -> ProbeSet:
    """Crops of photos as probes, labelled at random, with a region each."""
    generator = np.random.default_rng(0)
    crops = []
    for place in range(PROBES):
        photo = given[place % len(given)]
        side = int(generator.integers(min(photo.size) // 2, min(photo.size) + 1))
        left, top = (int(generator.integers(0, length - side + 1)) for length in photo.size)
        crops.append(np.array(photo.resize((SIDE, SIDE), box=(left, top, left + side, top + side))))
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    core = torch.zeros(PROBES, SIDE, SIDE, dtype=torch.bool)
    core[:, 40:180, 50:170] = True
    labels = torch.from_numpy(generator.integers(0, len(CLASSES), PROBES))
    return ProbeSet.from_tensors(images, labels, class_names=CLASSES, masks={"core": core})


def audit(probes: ProbeSet, number: int) -> AuditRecord:
    """One made-up audit of a net that gets better: heat grows, and errors become fewer."""
    generator = torch.Generator().manual_seed(number)
    truth, skill = probes.labels, min(1.0, number / 12)
    assert truth is not None
    outputs = torch.randn(PROBES, len(CLASSES), generator=generator)
    outputs = outputs + 4 * skill * torch.nn.functional.one_hot(truth, len(CLASSES))
    order = outputs.argsort(dim=1, descending=True)
    facts, foils = order[:, 0], order[:, 1]
    # Some places matter and most do not, as of a net that ends in ReLU and global pooling.
    rough = torch.randn(3, PROBES, 4, 4, generator=generator).pow(3) * (1 + 6 * skill) / CELLS**2
    maps = torch.nn.functional.interpolate(rough, (CELLS, CELLS), mode="bicubic")
    names = [[CLASSES[index] for index in each.tolist()] for each in (facts, foils)]
    titles = [[h.replace("P", p, 1).replace("Q", q) for p, q in zip(*names, strict=True)] for h in HEADINGS]
    correct = (facts == truth).double()
    sentence = "Watch the cue 'patch': it moves the probability of its label by 0.12 [0.05, 0.19], beyond 0.03."
    return AuditRecord(
        step=STEPS * number,
        epoch=number,
        fingerprint=probes.fingerprint,
        names=probes.names,
        class_names=CLASSES,
        questions=QUESTIONS,
        headings=HEADINGS,
        titles=tuple(map(tuple, titles)),
        outputs=outputs,
        predictions=facts,
        confidences=outputs.softmax(dim=1).amax(dim=1),
        correct=correct,
        truth=truth,
        facts=torch.stack([facts] * 3),
        foils=torch.stack([torch.full_like(facts, -1), foils, facts]),
        maps={"gradcam": MapSet(heatmaps=maps, explainer="GradCAM()", layer="features")},
        scores={"gradnorm": torch.rand(PROBES, generator=generator).double()},
        metrics={"accuracy": Estimate(float(correct.mean()), valid=PROBES)},
        findings=(Finding("alarm/cue/patch", "watch", 1.0, sentence, about="cue/patch/effect", threshold=0.03),),
    )


def run(probes: ProbeSet, audits: int, keep: Path | None) -> Iterator[tuple[int, float]]:
    """Bytes and CPU seconds of each audit."""
    gallery, history = Gallery(probes), History()
    for number in range(audits):
        history.append(audit(probes, number))
        start = time.process_time()
        files = {picture.tag: encoded(picture.pixels) for picture in gallery.draw(history)}
        seconds = time.process_time() - start
        for tag, content in files.items() if keep is not None and number == audits - 1 else ():
            path = (keep or Path()) / f"{tag.replace('/', '_')}.{'png' if content[1:4] == b'PNG' else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield sum(map(len, files.values())), seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--audits", type=int, default=20, help="audits of the run, 2 or more (default: 20)")
    parser.add_argument("--photos", type=Path, help="folder of .jpg and .png files to crop probes from")
    parser.add_argument("--keep", type=Path, help="folder for the pictures of the last audit")
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured = list(run(probe_set(photos(given.photos)), max(2, given.audits), given.keep))
    sizes, seconds = zip(*measured, strict=True)
    result = {
        "mb_per_audit": round(statistics.mean(sizes) / 1e6, 3),
        "growth": round(sizes[-1] / sizes[0], 3),
        "cpu_s_per_audit": round(statistics.mean(seconds), 3),
    }
    if given.json:
        print(json.dumps(result))
        return
    print("audit      MB   CPU s")
    for number, (size, second) in enumerate(measured):
        print(f"{number:5d} {size / 1e6:7.3f} {second:7.2f}")
    print(f"mean {result['mb_per_audit']} MB, {result['cpu_s_per_audit']} s CPU; last over first: {result['growth']}")


if __name__ == "__main__":
    main()
