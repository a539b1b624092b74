"""A real shortcut: do nets that learn melanoma from ISIC 2017 go by the coloured patches on benign images?

Three conditions, with the same nets, images held out and numbers of steps: `removed`, no training image shows a patch;
`found`, the training images as they are, 6 % of the benign with one; `half`, patches are drawn so often that half of
the benign images show one, as they do in the whole ISIC archive (Nauta et al. 2022). Before training and after each
epoch the net is audited with images it is never trained on: benign ones with a patch, which is taken out, and
melanomas, into which it is pasted; beside two controls that change the same place, see `_isic`.

    python scripts/studies/isic_patches.py --json docs/results/isic.json --pictures docs/pictures --page docs/isic.md

Takes about 25 minutes on one CPU thread, and seconds once the cache is full. Figures and nets are cached by condition
and seed, so that a run may be stopped and continued. Needs ISIC 2017 and the ImageNet weights, see `--data`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _imagenet_nets import mobilenet_v2
from _isic import CLASSES, MEAN, STD, Lesions, hold_out, normalised, patch_cues, patch_probes, read
from _isic_report import Pair, curves, examples, over_seeds, tables
from _provenance import provenance, write_json

from xai_callbacks import Auditor, AuditRecord, CueTrial, History, ProbeSet, Why
from xai_callbacks.gallery.heat import density
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics import novelty_auroc

CONDITIONS = ("removed", "found", "half")
CHUNK = 32
# Blocks up to a stride of 8 stay as ImageNet left them: half the time, and little that dermoscopy would change.
FROZEN = 7
RATE = 3e-4
HELD_OUT = {"patched": 30, "melanomas": 34, "others": 86}

Figures = dict[str, Any]


def build(weights: Path, seed: int) -> nn.Module:
    """MobileNetV2 as ImageNet left it, with a head of two classes.

    The batch norms of these weights are folded: running mean 0, variance 1. Statistics of batches would be another
    net, so that they stay in eval mode, and only their weights and biases learn.
    """
    torch.manual_seed(seed)
    model = mobilenet_v2(weights)
    features, classifier = model.features, model.classifier
    assert isinstance(features, nn.Sequential)  # narrows the types
    assert isinstance(classifier, nn.Sequential)
    classifier[1] = nn.Linear(1280, 2)
    for parameter in features[:FROZEN].parameters():
        parameter.requires_grad_(False)
    return model.to(memory_format=torch.channels_last).eval()


def draw(lesions: Lesions, held: Tensor, condition: str, count: int) -> Tensor:
    """Rows of the training images of one epoch, `(count,)`, in random order: half melanoma, half benign.

    Args:
        lesions: All images.
        held: Which are not for training, `(N,)` bool.
        condition: One of `CONDITIONS`.
        count: How many.
    """
    free, melanoma = ~held, lesions.labels == 1
    if condition == "removed":
        free = free & ~lesions.patched
    if condition == "half":
        benign = [(free & ~melanoma & lesions.patched, count // 4), (free & ~melanoma & ~lesions.patched, count // 4)]
    else:
        benign = [(free & ~melanoma, count // 2)]
    rows = [_cycled(members.nonzero()[:, 0], number) for members, number in [(free & melanoma, count // 2), *benign]]
    return torch.cat(rows)[torch.randperm(count)]


def _cycled(rows: Tensor, count: int) -> Tensor:
    """`count` rows, each as often as any other, to one."""
    times = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows))] for _ in range(times)])[:count]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, lesions: Lesions, rows: Tensor) -> None:
    """One epoch over the rows, each image turned and mirrored at random."""
    for batch in torch.split(rows, CHUNK):
        images = normalised(_turned(lesions.pixels[batch]))
        optimizer.zero_grad()
        F.cross_entropy(model(images), lesions.labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _turned(images: Tensor) -> Tensor:
    for dims in ((-1,), (-2,)):
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(dims), images)
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.transpose(-1, -2), images)


@torch.no_grad()
def accuracies(model: nn.Module, lesions: Lesions, held: Tensor) -> Figures:
    """How well melanoma is told from benign images held out: with patches among them, and without."""
    rows = held.nonzero()[:, 0]
    answers = torch.cat([model(normalised(lesions.pixels[chunk])) for chunk in torch.split(rows, CHUNK)])
    suspicion = answers.softmax(dim=1)[:, 1].double()
    melanoma, patched = lesions.labels[rows] == 1, lesions.patched[rows]
    benign = {"all": ~melanoma, "without_patches": ~melanoma & ~patched, "with_patches": ~melanoma & patched}
    figures = {f"auc_{name}": novelty_auroc(suspicion[kind], suspicion[melanoma]) for name, kind in benign.items()}
    right = (suspicion > 0.5) == melanoma
    groups = {"melanoma": melanoma, **{f"benign_{name}": kind for name, kind in benign.items() if name != "all"}}
    return figures | {f"right_{name}": float(right[kind].double().mean()) for name, kind in groups.items()}


def observed(record: AuditRecord) -> Figures:
    """What is kept of an audit: estimates, and what each probe adds."""
    wanted = [key for key in record.metrics if key.startswith(("cue/", "gradcam/why_0/"))]
    assert record.predictions is not None  # narrows the type
    return {
        "estimates": {key: list(record.metrics[key]) for key in wanted},
        "per_probe": {key: record.per_probe[key].tolist() for key in wanted if key in record.per_probe},
        "predictions": record.predictions.tolist(),
    }


def one_run(
    condition: str, seed: int, lesions: Lesions, held: Tensor, auditor: Auditor, options: argparse.Namespace
) -> Figures:
    """Figures of each epoch of one net; from the cache if there."""
    file = _file(condition, seed, options)
    if not file.exists():
        begin = time.perf_counter()
        model = build(options.data / "weights", seed)
        optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=RATE)
        history, epochs = History(), []
        for epoch in range(options.epochs + 1):
            if epoch:
                learn(model, optimizer, lesions, draw(lesions, held, condition, options.draws))
            history.append(auditor.audit(model, step=epoch, epoch=epoch, past=history, untrained=not epoch))
            epochs.append(observed(history[-1]) | accuracies(model, lesions, held))
            effect, auc = epochs[-1]["estimates"]["cue/patch/effect_added"][0], epochs[-1]["auc_without_patches"]
            print(
                f"  {condition} {seed}, epoch {epoch}: effect of a pasted patch {effect:+.3f}, AUC {auc:.3f}, "
                f"{time.perf_counter() - begin:.0f} s",
                flush=True,
            )
        if seed == options.seeds[0]:
            state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, file.with_suffix(".safetensors"))
        file.write_text(json.dumps({"epochs": epochs, "seconds": round(time.perf_counter() - begin)}))
    kept: Figures = json.loads(file.read_text())
    return kept


def _file(condition: str, seed: int, options: argparse.Namespace) -> Path:
    kept: Path = options.cache / f"{condition}_{seed}_{options.epochs}_{options.draws}.json"
    return kept


def summary(lesions: Lesions, held: Tensor, probes: ProbeSet, options: argparse.Namespace) -> Figures:
    """What was trained and audited, in numbers."""
    melanoma, rows = lesions.labels == 1, ~held
    labels = probes.labels
    assert labels is not None  # narrows the type
    return {
        "seeds": options.seeds,
        "epochs": options.epochs,
        "images_drawn_in_an_epoch": options.draws,
        "training_images": int(rows.sum()),
        "training_melanomas": int((rows & melanoma).sum()),
        "training_benign_with_patch": int((rows & lesions.patched & ~melanoma).sum()),
        "held_out_images": int(held.sum()),
        "probes_with_patch": int((labels == 0).sum()),
        "probes_melanoma": int((labels == 1).sum()),
        "rate": RATE,
        "frozen_blocks": FROZEN,
    }


def patched_share(lesions: Lesions, held: Tensor, condition: str) -> float:
    """Share of the benign images drawn that show a patch."""
    benign = ~held & (lesions.labels == 0)
    natural = float(lesions.patched[benign].double().mean())
    return {"removed": 0.0, "found": round(natural, 4), "half": 0.5}[condition]


def pairs_of(probes: ProbeSet, nets: Mapping[str, nn.Module], chosen: Sequence[int]) -> list[Pair]:
    """Probes without a patch and with it, and what some nets say of both."""
    scale = PixelScale.of(probes)
    rows = torch.tensor(chosen)
    twins = patch_cues()[0].twins(Shown(scale.displayed(probes.images[rows]), rows, probes, scale, seed=0))
    found = []
    for place, row in enumerate(chosen):
        both = torch.stack([twins.absent[place], twins.present[place]])
        images = ProbeSet.from_tensors(
            (both - scale.mean) / scale.std, [0, 0], class_names=CLASSES, names=["without", "with"], mean=MEAN, std=STD
        )
        records = {name: Auditor(images, [Why(0)], novelty=[]).audit(net) for name, net in nets.items()}
        heatmaps = {name: density(record.heatmaps[0]) for name, record in records.items()}
        benign = {
            name: record.outputs.softmax(dim=1)[:, 0].tolist()
            for name, record in records.items()
            if record.outputs is not None
        }
        kind = "benign, patch taken out" if probes.masks["spurious"][row].any() else "melanoma, patch pasted in"
        title = f"{probes.names[row]}: {kind}"
        found.append(Pair(title, images.pixels.numpy(), heatmaps, benign))
    return found


def typical(figures: Figures, edit: str, count: int) -> list[int]:
    """Probes whose effect is nearest to the mean over probes, at the last epoch of a net."""
    effects = torch.tensor(figures["epochs"][-1]["per_probe"][f"cue/patch/effect_{edit}"])
    distance = (effects - effects.nanmean()).abs().nan_to_num(torch.inf)
    return distance.argsort()[:count].tolist()


def trained(condition: str, options: argparse.Namespace) -> nn.Module:
    """The net of the first seed, from the cache."""
    model = build(options.data / "weights", options.seeds[0])
    model.load_state_dict(load_file(_file(condition, options.seeds[0], options).with_suffix(".safetensors")))
    return model


def filled(page: str, result: Mapping[str, Any]) -> str:
    """The page with its tables made anew."""
    for name, table in tables(result).items():
        begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
        before, after = page.partition(begin)[0], page.partition(end)[2]
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, audit, and keep figures, pictures and page."""
    options = _options(arguments)
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    lesions = read(options.data / "isic2017")
    held = hold_out(lesions, **HELD_OUT)
    probes = patch_probes(lesions, held)
    auditor = Auditor(probes, [Why(0)], novelty=[], trials=[CueTrial(cue) for cue in patch_cues()], chunk_size=CHUNK)
    runs: dict[str, list[Figures]] = {condition: [] for condition in CONDITIONS}
    for seed in options.seeds:
        for condition in CONDITIONS:
            runs[condition].append(one_run(condition, seed, lesions, held, auditor, options))
    result = {
        "provenance": provenance("numpy", "safetensors"),
        "setup": summary(lesions, held, probes, options),
        "conditions": {
            name: {"patched_share_of_benign": patched_share(lesions, held, name)} | over_seeds(seeds, runs["removed"])
            for name, seeds in runs.items()
        },
    }
    _keep(result, runs, probes, options)


def _keep(
    result: Figures, runs: Mapping[str, Sequence[Figures]], probes: ProbeSet, options: argparse.Namespace
) -> None:
    for name, table in tables(result).items():
        print(f"{name}\n{table}\n")
    if options.json is not None:
        write_json(options.json, result)
    if options.page is not None:
        options.page.write_text(filled(options.page.read_text(encoding="utf-8"), result), encoding="utf-8")
    if options.pictures is not None:
        curves(result).save(options.pictures / "isic_curves.png", optimize=True)
        chosen = typical(runs["found"][0], "added", 2) + typical(runs["found"][0], "removed", 1)
        nets = {name: trained(name, options) for name in ("found", "removed")}
        examples(pairs_of(probes, nets, chosen)).save(options.pictures / "isic_pairs.png", optimize=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with isic2017 and weights")
    parser.add_argument("--cache", type=Path, default=Path("isic_cache"), help="folder for nets and figures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--draws", type=int, default=1280, help="training images drawn in an epoch")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    parser.add_argument("--page", type=Path, help="page whose tables are made anew")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
