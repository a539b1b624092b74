"""What heatmaps cost: one-pass Grad-CAM against a plain forward pass and other libraries; memory of a large audit.

Run `python scripts/bench_cam.py` after `pip install -e '.[bench]'`. All figures are ratios of paired repeats in one
process, so that they hold on a machine whose speed drifts; medians are printed. Weights are random: they change neither
the time nor the memory.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from _provenance import provenance, write_json
from torch import Tensor, nn

from xai_callbacks import Auditor, Energy, GradCAM, HiResCAM, ProbeSet, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.access import Subject, trace_model, undisturbed
from xai_callbacks.audit.explaining import layers_of
from xai_callbacks.audit.observer import observe
from xai_callbacks.explainers import Explainer
from xai_callbacks.novelty import NoveltyMap
from xai_callbacks.questions import Question

MODELS = ("resnet50", "mobilenet_v2", "convnext_tiny")
PEER_LAYERS = {"resnet50": "layer4", "mobilenet_v2": "features", "convnext_tiny": "features"}
# A layer before the one that is chosen, for Grad-CAM at two layers.
EARLIER = {"resnet50": "layer4.1", "mobilenet_v2": "features.17", "convnext_tiny": "features.7.1"}
IMAGES, SIZE = 16, 224
FOUR: list[Question] = [Why(), WhyRatherThan(), WhyNotCertain(), Why(of=3)]
SIXTEEN: list[Question] = [*FOUR, *(WhyRatherThan(foil=index) for index in range(12))]


def one_pass(model: nn.Module, images: Tensor, questions: Sequence[Question]) -> Callable[[], object]:
    """Our engine, prepared as an audit prepares it: the layer is chosen once in a run."""
    return explained(model, images, questions, [GradCAM()])


def explained(
    model: nn.Module, images: Tensor, questions: Sequence[Question], explainers: Sequence[Explainer]
) -> Callable[[], object]:
    """Several explainers from one observation, as in an audit."""
    subject = Subject(model)
    with undisturbed(model):
        trace = trace_model(subject, images[:2])
        subject.learn_outputs(trace.outputs.detach(), trace.ending())
        plans = {each: each.prepare(trace, None) for each in explainers}
        head = None if (call := trace.head()) is None else call.name
    layers = layers_of(plans)
    del trace, call

    def explain() -> object:
        with undisturbed(model):
            observation = observe(subject, images, None, questions, layers, head=head)
            observation.shared = len(plans) > 1
            return [each.explain(observation, plan) for each, plan in plans.items()]

    return explain


def everything(model: nn.Module, images: Tensor, earlier: str) -> Callable[[], object]:
    """Grad-CAM at two layers, HiResCAM, a contrast and a novelty map, all from one observation."""
    explainers = [GradCAM(), GradCAM(earlier, name="gradcam_earlier"), HiResCAM(), NoveltyMap(Energy())]
    return explained(model, images, (Why(), WhyRatherThan()), explainers)


def plain_forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """What validation does anyway."""

    def forward() -> object:
        with torch.no_grad():
            return model(images)

    return forward


def captum_per_question(model: nn.Module, images: Tensor, layer: str) -> Callable[[], object]:
    """`captum.attr.LayerGradCam` for four classes, one call each, as its documentation does."""
    from captum.attr import LayerGradCam

    method = LayerGradCam(model, model.get_submodule(layer))

    def explain() -> object:
        return [method.attribute(images, target=index) for index in range(4)]

    return explain


def pytorch_grad_cam_per_question(model: nn.Module, images: Tensor, layer: str) -> Callable[[], object]:
    """`pytorch_grad_cam.GradCAM` for four classes, one call each, as its documentation does."""
    from pytorch_grad_cam import GradCAM as PeerGradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def explain() -> object:
        with PeerGradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
            return [
                cam(input_tensor=images, targets=[ClassifierOutputTarget(index)] * len(images)) for index in range(4)
            ]

    return explain


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call, with garbage of the last one gone."""
    gc.collect()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compare(name: str, repeats: int, peers: bool) -> dict[str, float]:
    """Paired ratios of one model: each repeat times every contender once, in turn."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    contenders = {
        "forward": plain_forward(model, images),
        "four": one_pass(model, images, FOUR),
        "sixteen": one_pass(model, images, SIXTEEN),
        "everything": everything(model, images, EARLIER[name]),
    }
    if peers:
        contenders["captum"] = captum_per_question(model, images, PEER_LAYERS[name])
        contenders["pytorch_grad_cam"] = pytorch_grad_cam_per_question(model, images, PEER_LAYERS[name])
    for call in contenders.values():
        call()
    times = [{key: seconds(call) for key, call in contenders.items()} for _ in range(repeats)]

    def ratio(above: str, below: str) -> float:
        return round(statistics.median(row[above] / row[below] for row in times), 3)

    figures = {
        "ratio_to_forward": ratio("four", "forward"),
        "ratio_16_questions": ratio("sixteen", "forward"),
        "ratio_everything": ratio("everything", "forward"),
    }
    if peers:
        figures["speedup_captum"] = ratio("captum", "four")
        figures["speedup_pytorch_grad_cam"] = ratio("pytorch_grad_cam", "four")
    return figures


def peak_of_audit(probes: int) -> int:
    """Bytes by which an audit of resnet18 with masks raises the peak of this process above model and probes."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    masks = {"core": torch.zeros(probes, SIZE, SIZE, dtype=torch.bool)}
    masks["core"][:, 50:150, 50:150] = True
    labels = torch.arange(probes) % 10
    auditor = Auditor(ProbeSet.from_tensors(torch.rand(probes, 3, SIZE, SIZE), labels, masks=masks), FOUR)
    auditor.prepare(model)
    gc.collect()
    before = resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    auditor.audit(model)
    done.set()
    watcher.join()
    return peak[0] - before


def resident() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def memory_ratio() -> float:
    """Peak of an audit of 512 probes over that of 32: medians of three fresh processes each, as heaps vary."""
    peaks = {}
    for probes in (32, 512):
        command = [sys.executable, __file__, "--peak-of", str(probes)]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(3)]
        peaks[probes] = statistics.median(int(run.stdout.split()[-1]) for run in runs)
        print(f"  audit of {probes:3d} probes: peak {peaks[probes] / 2**20:.0f} MiB above model and probes")
    return round(peaks[512] / peaks[32], 3)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--no-peers", action="store_true", help="leave out captum and pytorch-grad-cam")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of a large audit")
    parser.add_argument("--peak-of", type=int, metavar="PROBES", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak_of_audit(options.peak_of))
        return {}
    result: dict[str, Any] = {"models": {}}
    print(f"{IMAGES} images of {SIZE} px, medians of {options.repeats} paired repeats, {options.threads} thread(s)")
    for name in options.models:
        figures = compare(name, options.repeats, peers=not options.no_peers)
        result["models"][name] = figures
        print(f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
    if not options.no_memory:
        result["memory_ratio_512_to_32"] = memory_ratio()
        print(f"  memory_ratio_512_to_32 {result['memory_ratio_512_to_32']:.2f}")
    if options.json:
        facts = {"seed": 0, "repeats": options.repeats, **provenance("captum", "grad-cam")}
        write_json(options.json, {**result, **facts})
    return result


if __name__ == "__main__":
    main()
