"""Does an answer depend on what fills the hidden half of a photo, and does Deep SHAP leave the filled half alone?

Overwrites the top or the bottom half of ImageNet and COCO photos with white, black or noise, the same for all photos,
and asks two trained nets again. Of some photos, Deep SHAP explains the answers against three backgrounds: a sample of
other photos as they are, the photo's own blur, and the same sample filled alike. Writes a JSON file and the tables of
docs/half_masks.md; `--out` also draws the maps, which must stay out of the repository, as the photos do.

python scripts/studies/half_masks.py --data ../shared/data --json docs/results/half_masks.json

Takes about ten minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _imagenet_nets import mobilenet_v2, squeezenet
from _provenance import provenance, write_json

from xai_callbacks import DeepSHAP, SingleLabel, Why
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.observer import observe
from xai_callbacks.explainers import Plan
from xai_callbacks.interventions.fills import apply_fill
from xai_callbacks.interventions.regions import half_masks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "half_masks.md"
HALVES = ("top", "bottom")
FILLS = {"white": "white", "black": "black", "noise": "uniform"}
BACKGROUNDS = ("sample", "blurred", "same fill")
NETS: dict[str, Callable[[Path], nn.Module]] = {"MobileNetV2": mobilenet_v2, "SqueezeNet": squeezenet}
MEAN, STD = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TOP = 5
CHUNK = 4


class Explained(NamedTuple):
    """Of some images, by Deep SHAP."""

    maps: Tensor  # (N, H, W)
    error: float  # the largest difference of their sums from the change of the score, in logits


def photos(folder: Path, pattern: str) -> Tensor:
    """Photos as nets of ImageNet see them, `(N, 3, 224, 224)` in [0, 1]."""
    cut = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    files = sorted(folder.glob(pattern))
    if not files:
        raise SystemExit(f"Expected photos in {folder.name}, but found none. Say with --data where they are.")
    return torch.stack([cut(Image.open(path).convert("RGB")) for path in files]).float() / 255


def filled(images: Tensor, half: str, fill: str, *, seed: int = 0) -> Tensor:
    """Images with one half overwritten; noise is the same in all of them."""
    masks = half_masks(None, (images.shape[2], images.shape[3]), half).expand(len(images), -1, -1)
    return apply_fill(images, masks, FILLS[fill], names=["every image"] * len(images), seed=seed)


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Logits `(N, K)`."""
    with torch.no_grad():
        return torch.cat([model((chunk - MEAN) / STD) for chunk in torch.split(images, 16)])


def explain(model: nn.Module, images: Tensor, familiar: Tensor | None) -> Explained:
    """Deep SHAP of the predicted class, against familiar images, or the blur of each image without them."""
    explainer = DeepSHAP("blur" if familiar is None else "sample", samples=16)
    normed, reference = (images - MEAN) / STD, None if familiar is None else (familiar - MEAN) / STD
    maps, errors = [], []
    with undisturbed(model):
        subject = Subject(model, SingleLabel())
        subject.learn_outputs(model(normed[:1]).detach(), None)
        for chunk in torch.split(normed, CHUNK):
            seen = observe(subject, chunk, None, [Why()], [], reference=reference)
            found = explainer.explain(seen, Plan())[0]
            with torch.no_grad():
                scores = [seen.scores(each)[0] for each in explainer.among(chunk, reference, 16, seen.seed)]
                change = seen.scores(chunk)[0].double() - torch.stack(scores).double().mean(dim=0)
            maps.append(found)
            errors.append(float((found.double().sum(dim=(1, 2)) - change).abs().max()))
    return Explained(torch.cat(maps), max(errors))


def share_in(maps: Tensor, half: str) -> float:
    """Mean share of the absolute attribution of maps `(N, H, W)` in a half."""
    mask = half_masks(None, (maps.shape[1], maps.shape[2]), half)[0]
    size = maps.abs()
    return float((size[:, mask].sum(dim=1) / size.flatten(1).sum(dim=1)).mean())


def answers(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """How answers hang together over the fills of a half, and which stay what they were."""
    whole, figures = outputs(model, images), {}
    for half in HALVES:
        found = {fill: outputs(model, filled(images, half, fill)) for fill in FILLS}
        first = torch.stack([each.argmax(dim=1) for each in found.values()])
        best = [each.topk(TOP, dim=1).indices for each in found.values()]
        shared = [(a[:, :, None] == b[:, None]).any(dim=2).double().mean() for a, b in combinations(best, 2)]
        alike = [float((a == b).double().mean()) for a, b in combinations(first, 2)]
        figures[half] = {
            "all_fills_agree": float((first == first[0]).all(dim=0).double().mean()),
            "two_fills_agree": sum(alike) / len(alike),
            "top5_shared": float(torch.stack(shared).mean()),
            "kept": {
                fill: float((each.argmax(dim=1) == whole.argmax(dim=1)).double().mean()) for fill, each in found.items()
            },
        }
    return {"photos": len(images), "halves": figures}


def shares(model: nn.Module, images: Tensor, familiar: Tensor, out: Path | None = None) -> dict[str, Any]:
    """Share of the absolute attribution in a half, whole and filled, by background; and errors of the sums."""
    whole = {"sample": explain(model, images, familiar), "blurred": explain(model, images, None)}
    figures: dict[str, Any] = {
        "photos": len(images),
        "backgrounds": len(familiar),
        "whole": {half: {name: share_in(each.maps, half) for name, each in whole.items()} for half in HALVES},
        "filled": {},
        "noise_of_its_own": {},
    }
    errors = [each.error for each in whole.values()]
    for half in HALVES:
        figures["filled"][half] = {}
        for fill in FILLS:
            shown = filled(images, half, fill)
            against = {"sample": familiar, "blurred": None, "same fill": filled(familiar, half, fill)}
            found = {name: explain(model, shown, each) for name, each in against.items()}
            figures["filled"][half][fill] = {name: share_in(each.maps, half) for name, each in found.items()}
            errors += [each.error for each in found.values()]
            if out is not None:
                draw(out / f"{half}_{fill}.png", shown, [found[name].maps for name in BACKGROUNDS])
        other = explain(model, filled(images, half, "noise"), filled(familiar, half, "noise", seed=1))
        figures["noise_of_its_own"][half] = share_in(other.maps, half)
        errors.append(other.error)
    return figures | {"largest_error": max(errors)}


def draw(path: Path, images: Tensor, maps: list[Tensor]) -> None:
    """One row a photo: as shown, then its maps, each photo on one scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stacked = torch.stack(maps, dim=1)
    size = stacked.abs().flatten(1).quantile(0.999, dim=1)[:, None, None, None]
    cells = torch.cat([images[:, None], _coloured((stacked / size).clamp(-1, 1))], dim=1)
    rows = cells.permute(0, 3, 1, 4, 2).reshape(len(cells) * cells.shape[3], -1, 3)
    Image.fromarray((rows * 255).byte().numpy()).save(path)


def _coloured(maps: Tensor) -> Tensor:
    return torch.stack([1 - maps.neg().clamp_min(0), 1 - maps.abs(), 1 - maps.clamp_min(0)], dim=-3)


def percent(share: float) -> str:
    """Such as "34 %"."""
    return f"{100 * share:.0f} %"


def answers_table(result: Mapping[str, Any]) -> str:
    """One row a net, set of photos and half."""
    heads = [
        "net",
        "photos",
        "half filled",
        "same class for all three fills",
        "same for two of them",
        "of the top five",
    ]
    lines = ["| " + " | ".join([*heads, *(f"class kept, {fill}" for fill in FILLS)]) + " |", "|---" * 9 + "|"]
    for net, sets in result["answers"].items():
        for name, found in sets.items():
            for half, row in found["halves"].items():
                cells = [percent(row[key]) for key in ("all_fills_agree", "two_fills_agree", "top5_shared")]
                kept = [percent(row["kept"][fill]) for fill in FILLS]
                lines.append("| " + " | ".join([net, f"{found['photos']} of {name}", half, *cells, *kept]) + " |")
    return "\n".join(lines)


def shares_table(result: Mapping[str, Any]) -> str:
    """One row a net, half and background."""
    heads = ["net", "half", "background", "whole photos", *(f"filled with {fill}" for fill in FILLS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for net, found in result["shares"].items():
        for half, name in ((half, name) for half in HALVES for name in BACKGROUNDS):
            before = found["whole"][half].get(name)
            cells = ["-" if before is None else percent(before)]
            cells += [percent(found["filled"][half][fill][name]) for fill in FILLS]
            lines.append("| " + " | ".join([net, half, name, *cells]) + " |")
    return "\n".join(lines)


def rest_table(result: Mapping[str, Any]) -> str:
    """What the sums of maps are off by, the share of noise that differs, and where all this comes from."""
    lines = ["| net | largest error of a sum, logits | noise of another pattern: top | bottom |", "|---|---|---|---|"]
    for net, found in result["shares"].items():
        own = [percent(found["noise_of_its_own"][half]) for half in HALVES]
        lines.append("| " + " | ".join([net, f"{found['largest_error']:.1e}", *own]) + " |")
    made, counts = result["provenance"], next(iter(result["shares"].values()))
    note = f"Shares are means over {counts['photos']} photos; {counts['backgrounds']} other photos are the sample."
    source = f"`scripts/studies/half_masks.py`, {made['date']}, {made['machine']}, torch {made['versions']['torch']}."
    return "\n".join([*lines, "", f"{note} *{source}*"])


def hat_table(result: Mapping[str, Any]) -> str:
    """The photo of the cowboy hat: its class as it is, and with a half filled."""
    lines = ["| net | whole | " + " | ".join(f"{half}, {fill}" for half in HALVES for fill in FILLS) + " |"]
    lines.append("|---" * 8 + "|")
    for net, found in result["cowboy_hat"].items():
        lines.append("| " + " | ".join([net, *found.values()]) + " |")
    return "\n".join(lines)


TABLES = {"answers": answers_table, "shares": shares_table, "rest": rest_table, "hat": hat_table}


def page_of(text: str, result: Mapping[str, Any]) -> str:
    """A page with its tables made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
        text = f"{text.partition(begin)[0]}{begin}\n{table(result)}\n{end}{text.partition(end)[2]}"
    return text


def _named(model: nn.Module, image: Tensor, names: list[str]) -> Iterator[tuple[str, str]]:
    versions = {"whole": image} | {f"{h}, {f}": filled(image, h, f) for h in HALVES for f in FILLS}
    for name, shown in versions.items():
        yield name, names[int(outputs(model, shown).argmax())]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the study, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of photos and weights")
    parser.add_argument("--count", type=int, help="most photos of each set that are asked about")
    parser.add_argument("--explained", type=int, default=12, help="ImageNet photos that are explained")
    parser.add_argument("--sample", type=int, default=4, help="other ImageNet photos they are held against")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--page", type=Path, help="page whose tables to fill")
    parser.add_argument("--out", type=Path, help="folder outside of the repository for pictures of the maps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sets = {
        "ImageNet": photos(options.data / "imagenet_photos", "*.jpg"),
        "COCO": photos(options.data / "coco/images", "*.jpg"),
    }
    hat = photos(options.data / "imagenet_photos", "515_*.jpg")
    names = list(json.loads((options.data / "imagenet_classes.json").read_text()))
    # Classes are in order, so that every n-th photo is a photo of anything.
    spread = torch.linspace(0, len(sets["ImageNet"]) - 1, options.explained + options.sample).round().long()
    familiar = spread[torch.linspace(0, len(spread) - 1, options.sample).round().long()]
    asked = spread[~torch.isin(spread, familiar)]
    result: dict[str, Any] = {"answers": {}, "shares": {}, "cowboy_hat": {}, "provenance": provenance()}
    for net, build in NETS.items():
        model = build(options.data / "weights").eval()
        result["answers"][net] = {name: answers(model, images[: options.count]) for name, images in sets.items()}
        result["cowboy_hat"][net] = dict(_named(model, hat, names))
        out = None if options.out is None else options.out / net
        result["shares"][net] = shares(model, sets["ImageNet"][asked], sets["ImageNet"][familiar], out)
    if options.json is not None:
        write_json(options.json, result)
    if options.page is not None:
        options.page.write_text(page_of(options.page.read_text(encoding="utf-8"), result), encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
