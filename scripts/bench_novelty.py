"""What per-sample gradient norms cost: against a batched forward and backward pass, and against other ways to get them.

Run `python scripts/bench_novelty.py` after `pip install -e '.[bench]'`. All figures are ratios of paired repeats in one
process, so that they hold on a machine whose speed drifts; medians are printed. Weights are random: they change neither
the time nor the memory. Every contender computes the squared norm of every image's gradient for every parameter tensor,
and they are checked to agree before they are timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import torch
import torchvision
from _provenance import provenance, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.gradients import PerSampleGradients
from xai_callbacks.novelty import ConvAutoencoder, reconstruction_error

MODELS = ("resnet50", "mobilenet_v2", "autoencoder")
Norms = dict[str, Tensor]


def to_uniform(outputs: object, _images: Tensor) -> Tensor:
    """Cross-entropy toward the uniform distribution, one an image."""
    assert isinstance(outputs, Tensor)  # narrows the type
    return F.cross_entropy(outputs, torch.full_like(outputs, 1 / outputs.shape[1]), reduction="none")


def reconstruction(outputs: object, images: Tensor) -> Tensor:
    """Mean squared error, one an image."""
    assert isinstance(outputs, Tensor)  # narrows the type
    return reconstruction_error(outputs, images)


def subject(name: str) -> tuple[nn.Module, Tensor, Callable[[object, Tensor], Tensor]]:
    """Model, images and loss of one comparison."""
    torch.manual_seed(0)
    if name == "autoencoder":
        return ConvAutoencoder().eval(), torch.rand(64, 1, 28, 28), reconstruction
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(16, 3, 224, 224), to_uniform


def contenders(name: str) -> dict[str, Callable[[], Norms]]:
    """Ways to the norms, by name; `forward_backward` gives the norms of the whole batch, which training computes."""
    model, images, loss = subject(name)
    parameters = dict(model.named_parameters())
    ours = PerSampleGradients(model)

    def forward_backward() -> Norms:
        gradients = torch.autograd.grad(loss(model(images), images).sum(), list(parameters.values()))
        return {name: gradient.square().sum() for name, gradient in zip(parameters, gradients, strict=True)}

    def loop() -> Norms:
        rows = []
        for image in torch.split(images, 1):
            gradients = torch.autograd.grad(loss(model(image), image).sum(), list(parameters.values()))
            rows.append(torch.stack([gradient.square().sum() for gradient in gradients]))
        return dict(zip(parameters, torch.stack(rows).T, strict=True))

    def vmap() -> Norms:
        def one(values: Norms, image: Tensor) -> Tensor:
            outputs = torch.func.functional_call(model, (values, dict(model.named_buffers())), image[None])
            return loss(outputs, image[None]).sum()

        detached = {name: parameter.detach() for name, parameter in parameters.items()}
        # As many images at once as the memory of an ordinary machine holds gradients of.
        chunk = 4 if name == "resnet50" else None
        squares = torch.func.vmap(
            lambda image: {key: value.square().sum() for key, value in torch.func.grad(one)(detached, image).items()},
            chunk_size=chunk,
        )
        norms: Norms = squares(images)
        return norms

    return {
        "forward_backward": forward_backward,
        "ours": lambda: ours(images, loss).squared_norms,
        "vmap": vmap,
        "opacus": opacus(name),
        "loop": loop,
    }


def opacus(name: str) -> Callable[[], Norms]:
    """Opacus' `GradSampleModule`, which has no rule for batch norm: its parameters are spared that contender."""
    from opacus.grad_sample import GradSampleModule

    model, images, loss = subject(name)
    module: Any  # what Opacus needs is set on modules that do not declare it
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # its hooks fail on outputs that are changed in place
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
        # Its hooks take no notice of modules in eval mode; these behave alike in both.
        module.training = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
    parameters: dict[str, Any] = {key: each for key, each in model.named_parameters() if each.requires_grad}

    def norms() -> Norms:
        torch.autograd.backward(loss(wrapped(images), images).sum())
        found = {}
        for key, parameter in parameters.items():
            found[key] = parameter.grad_sample.flatten(1).square().sum(dim=1)
            parameter.grad = parameter.grad_sample = None
        return found

    return norms


def check(calls: dict[str, Callable[[], Norms]]) -> list[str]:
    """Names of the contenders whose norms are those of the loop, summed over parameters, to 1e-3."""
    singles = calls["loop"]()
    agreeing = []
    for name in ("ours", "vmap", "opacus"):
        found = calls[name]()
        total = torch.stack([values.double() for values in found.values()]).sum(dim=0)
        expected = torch.stack([singles[key].double() for key in found]).sum(dim=0)
        if torch.allclose(total, expected, rtol=1e-3):
            agreeing.append(name)
        else:
            worst = float(((total - expected).abs() / expected).amax())
            print(f"    {name} differs from the loop by up to {worst:.2g}")
    return agreeing


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call, with garbage of the last one gone."""
    gc.collect()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compare(name: str, repeats: int, peer_repeats: int) -> dict[str, Any]:
    """Paired ratios of one model: each repeat times every contender once, in turn."""
    calls = contenders(name)
    agreeing = check(calls)
    rows = []
    for repeat in range(max(repeats, peer_repeats)):
        timed = calls if repeat < peer_repeats else {key: calls[key] for key in ("forward_backward", "ours")}
        rows.append({key: seconds(call) for key, call in timed.items()})
    figures: dict[str, Any] = {"ratio_to_forward_backward": _median(rows, "ours", "forward_backward")}
    for peer in ("vmap", "opacus", "loop"):
        figures[f"speedup_{peer}"] = _median(rows, peer, "ours")
    return figures | {"agree_with_loop": agreeing}


def _median(rows: list[dict[str, float]], above: str, below: str) -> float:
    return round(statistics.median(row[above] / row[below] for row in rows if {above, below} <= row.keys()), 3)


def peak(name: str, contender: str) -> int:
    """Bytes by which one call raises the resident memory of this process above what it holds before."""
    call = _measured(name, contender)
    gc.collect()
    before = resident()
    highest, done = [before], Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident())

    watcher = Thread(target=watch)
    watcher.start()
    kept = call()
    done.set()
    watcher.join()
    del kept
    return highest[0] - before


def allocated(name: str, contender: str) -> int:
    """Most bytes that tensors of one call take at a time, counted by PyTorch's allocator."""
    call = _measured(name, contender)
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    del kept
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    changes: list[int] = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(accumulate(changes))


def _measured(name: str, contender: str) -> Callable[[], object]:
    model, images, loss = subject(name)
    parameters = list(model.parameters())
    if contender != "ours":
        return lambda: torch.autograd.grad(loss(model(images), images).sum(), parameters)
    ours = PerSampleGradients(model)
    ours(images[:1], loss)  # what is learnt about a model once is not part of the peak
    return lambda: ours(images, loss)


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(name: str) -> dict[str, float]:
    """Peaks of our measurement over those of a forward and backward pass.

    `memory_ratio` counts tensors; `resident_ratio` the whole process, medians of three fresh ones each, with what the
    kernels' library keeps besides, which weighs for small models alone.
    """
    peaks = {}
    for contender in ("ours", "forward_backward"):
        command = [sys.executable, __file__, "--peak-of", name, contender]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(3)]
        peaks[contender] = statistics.median(int(run.stdout.split()[-1]) for run in runs)
    return {
        "memory_ratio": round(allocated(name, "ours") / allocated(name, "forward_backward"), 3),
        "resident_ratio": round(peaks["ours"] / peaks["forward_backward"], 3),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer-repeats", type=int, default=3, help="repeats of the slow contenders")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak(*options.peak_of))
        return {}
    result: dict[str, Any] = {"models": {}}
    print(f"medians of {options.repeats} paired repeats ({options.peer_repeats} of peers), {options.threads} thread(s)")
    for name in options.models:
        figures = compare(name, options.repeats, options.peer_repeats) | memory(name)
        result["models"][name] = figures
        print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    if options.json:
        facts = {"seed": 0, "repeats": options.repeats, **provenance("opacus")}
        write_json(options.json, {**result, **facts})
    return result


if __name__ == "__main__":
    main()
