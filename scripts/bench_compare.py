"""Time and memory of comparing many checkpoints, beside the passes that cannot be done without.

Twenty checkpoints of a ResNet-18 and 64 probes of 224 x 224 pixels: each is loaded, asked the three default questions,
explained by Grad-CAM, scored for novelty and its representations kept, and all are compared with the first. The
baseline, in the same run and in turns, runs the same probes through each net and takes the gradients of the three
scores at the layer that is explained: what any tool has to do. Memory is the growth of the peak of the process from the
second checkpoint to the last.

    python scripts/bench_compare.py --json docs/results/compare_bench.json

Takes some ten minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from _provenance import provenance, write_json
from torch import Tensor, nn
from torchvision.models import resnet18

from xai_callbacks import Auditor, History, Localization, ProbeSet, Representations
from xai_callbacks.compare import compare

CHUNK = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--checkpoints", type=int, default=20, help="number of checkpoints [%(default)s]")
    parser.add_argument("--probes", type=int, default=64, help="number of probes [%(default)s]")
    parser.add_argument("--size", type=int, default=224, help="pixels a side [%(default)s]")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(args.probes, 3, args.size, args.size)
    labels = torch.arange(args.probes) % 10
    with tempfile.TemporaryDirectory() as folder:
        result = {"checkpoints": args.checkpoints, "probes": args.probes, "size": args.size, **provenance()}
        result |= _measured(Path(folder), args.checkpoints, images, labels)
    print(result)
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _measured(folder: Path, checkpoints: int, images: Tensor, labels: Tensor) -> dict[str, float]:
    paths = [folder / f"{number}.pt" for number in range(checkpoints)]
    for number, path in enumerate(paths):
        torch.manual_seed(number)
        torch.save(resnet18(num_classes=10).state_dict(), path)
    auditor = Auditor(ProbeSet.from_tensors(images, labels), measures=[Localization(), Representations()])
    auditor.prepare(_loaded(paths[0]))  # once for all, and what is imported late
    plain, audits, peaks = [], [], []
    for path in paths:
        begin = time.perf_counter()
        _needed(_loaded(path), images)
        middle = time.perf_counter()
        history = History(folder / path.stem / "history")
        history.append(auditor.audit(_loaded(path)))
        audits.append(time.perf_counter() - middle)
        plain.append(middle - begin)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    models = {path.stem: History(folder / path.stem / "history") for path in paths}
    compare(dict(list(models.items())[:2]))  # imports what is imported late
    begin = time.perf_counter()
    compare(models)
    compared = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "plain_s": sum(plain),
        "audits_s": sum(audits),
        "compare_s": compared,
        "ratio": (sum(audits) + compared) / sum(plain),
        "median_audit_ratio": statistics.median(a / b for a, b in zip(audits, plain, strict=True)),
        "peak_mb_after_two": peaks[min(1, len(peaks) - 1)],
        "peak_mb": peak,
    }


def _loaded(path: Path) -> nn.Module:
    net: nn.Module = resnet18(num_classes=10)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def _needed(net: nn.Module, images: Tensor) -> None:
    """Forward passes, and the gradients of three scores at the last feature map."""
    for chunk in torch.split(images, CHUNK):
        with torch.no_grad():
            stem = net.maxpool(net.relu(net.bn1(net.conv1(chunk))))  # type: ignore[operator]
            features = net.layer4(net.layer3(net.layer2(net.layer1(stem))))  # type: ignore[operator]
        features.requires_grad_(True)
        logits = net.fc(torch.flatten(net.avgpool(features), 1))  # type: ignore[operator]
        best = logits.topk(2, dim=1).indices
        for score in (
            logits.gather(1, best[:, :1]).sum(),
            nn.functional.cross_entropy(logits, best[:, 1], reduction="sum"),
            nn.functional.cross_entropy(logits, best[:, 0], reduction="sum"),
        ):
            torch.autograd.grad(score, features, retain_graph=True)


if __name__ == "__main__":
    sys.exit(main())
