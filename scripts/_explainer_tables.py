"""The tables of docs/explainers.md, made from the kept results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from _provenance import source

__all__ = ["NETS", "contrast_table", "net_table", "quality_table", "saliency_table", "trust_table", "undesirable_table"]

NETS = {"mobilenet_v2": "MobileNetV2", "squeezenet1_0": "SqueezeNet", "deit_tiny": "DeiT-tiny"}


def spread(value: float, ends: Sequence[float | None]) -> str:
    """Such as "1.72 (1.51 to 1.93)"."""
    shown, low, high = ("-" if end is None else f"{end:.2f}" for end in (value, *ends))
    return f"{shown} ({low} to {high})"


def likeness(row: dict[str, Any]) -> str:
    """Such as "0.18 (0.17)"; "-" where maps of random weights are empty."""
    value, chance = row["randomisation"], row["randomisation_chance"]
    return "-" if value is None else f"{value:.2f} ({chance:.2f})"


def net_table(net: str) -> Callable[[dict[str, Any]], str]:
    """One row an explainer, for one net."""

    def table(result: dict[str, Any]) -> str:
        rows, setup = result[net], result["setup"]
        lines = [
            f"| {NETS[net]} | relevance on the object, times its area | peak on the object | logit when hidden, less "
            "random order | like random weights (chance) | passes |",
            "|---" * 6 + "|",
        ]
        answered = {name: row for name, row in rows.items() if "refused" not in row}
        for name, row in sorted(answered.items(), key=lambda item: item[1]["deletion_minus_random"]):
            cells = [
                spread(row["mass_lift"], row["mass_lift_ci"]),
                f"{100 * row['pointing']:.0f} %",
                spread(row["deletion_minus_random"], row["deletion_ci"]),
                likeness(row),
                f"{row['cost_forwards']:.0f}",
            ]
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        refused = ", ".join(f"`{name}`" for name in rows if name not in answered)
        told = f"Refused, with advice: {refused}. " if refused else ""
        photos = f"{setup['photos']} COCO photos, objects cover {100 * setup['area']:.0f} % on average"
        return "\n".join([*lines, "", f"*{told}{photos}. {source('studies/evaluate_explainers.py', setup)}*"])

    return table


def contrast_table(result: dict[str, Any]) -> str:
    """One row a net and an explainer: what hiding a tenth of the photo takes from `z_P - z_Q`."""
    heads = ["", "random", "Why P?", "Why P, rather than Q?", "contrast less Why P?", "contrast less random"]
    heads += ["contrast of logits less Why P?"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for net, rows in result["nets"].items():
        for name, entry in rows.items():
            if "refused" in entry:
                continue
            row = entry["all"]
            cells = [f"{row[key]:.2f}" for key in ("random", "why", "contrast")]
            less = ("contrast_minus_why", "contrast_minus_random", "difference_minus_why")
            cells += [ends(row[key]) for key in less]
            lines.append(f"| {NETS[net]}, `{name}` | " + " | ".join(cells) + " |")
    photos = sum(result["photos"].values())
    return "\n".join([*lines, "", f"*{photos} photos. {source('studies/contrast_deletion.py', result)}*"])


def undesirable_table(result: dict[str, Any]) -> str:
    """One row a mask: what hiding it does, and what it gains over others of the same area."""
    names = {"fashion_mnist": "Fashion-MNIST", **NETS}
    heads = ["misclassified images", "mask", "gain of the true class, or fall of the rival", "over a random mask"]
    heads += ["over Grad-CAM of the wrong class", "each other class moves, or the true one", "now right"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for data, rows in result.items():
        for mask, wanted, pinned in (("target", "target", "moved"), ("non-target", "rival", "target_moved")):
            effect, gains = rows["effects"][mask], rows["gains"]
            cells = [ends(effect[wanted]), ends(gains[f"{mask} over {mask}, random"])]
            cells += [ends(gains[f"{mask} over gradcam"]), ends(effect[pinned]), f"{100 * effect['flips'][0]:.0f} %"]
            lines.append(f"| {rows['images']}, {names[data]} | `{mask}` | " + " | ".join(cells) + " |")
    made = next(iter(result.values()))["provenance"]
    return "\n".join([*lines, "", f"*Logits, at equal area. {source('studies/undesirable_pixels.py', made)}*"])


def quality_table(result: dict[str, Any]) -> str:
    """One row a corruption: the share of the positive relevance in the corrupted half."""
    heads = ["corrupted half", "Why y?", "rather than 0", "rather than 100", "difference", "photos where it is > 0"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in result["conditions"].items():
        cells = [ends(row["mass"][key]) for key in ("why", "rather_than_0", "rather_than_100")]
        cells += [ends(row["difference"]), f"{100 * row['share_of_photos_with_a_difference_above_0'][0]:.0f} %"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    told = f"{result['setup']['photos']} photos. {source('studies/quality_contrasts.py', result['provenance'])}"
    return "\n".join([*lines, "", f"*{told}*"])


def ends(estimate: Sequence[float]) -> str:
    """An estimate that is followed by its interval."""
    return spread(estimate[0], estimate[1:])


def saliency_table(result: dict[str, Any]) -> str:
    """One row a map: how far above the mean it is where people looked (NSS), by net."""
    nets, chosen = result["nets"], result["choice"]["chosen"]
    names = {"mobilenet_v2": "MobileNetV2", "squeezenet": "SqueezeNet", "deit_tiny": "DeiT-tiny"}
    rows = {
        f"implicit saliency (`{chosen}`), middle layer": ("middle, noise 0.0", chosen),
        "the same without conflict, of the foils alone": ("middle, noise 0.0", f"{chosen} without conflict"),
        "implicit saliency, last layer": ("late, noise 0.0", chosen),
        "mean activation, middle layer": ("middle, noise 0.0", "activation"),
        "mean activation, last layer": ("late, noise 0.0", "activation"),
        "Grad-CAM of the answer, last layer": ("late, noise 0.0", "gradcam"),
        "implicit saliency, middle layer, noise .3": ("middle, noise 0.3", chosen),
        "mean activation, middle layer, noise .3": ("middle, noise 0.3", "activation"),
    }
    lines = ["| | " + " | ".join(names[net] for net in nets) + " |", "|---" * (1 + len(nets)) + "|"]
    for words, (where, score) in rows.items():
        cells = [ends(nets[net][where]["scores"][score]["nss"]) for net in nets]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    for name, words in (("centre", "a spot in the middle"), ("other photos", "where people looked in other photos")):
        lines.append(f"| {words} | " + " | ".join([ends(result["priors"][name]["nss"])] * len(nets)) + " |")
    setup = result["setup"]
    told = f"{setup['photos'] // 2} photos of OSIE, {setup['foils']} foils; random maps have 0"
    return "\n".join([*lines, "", f"*{told}. {source('studies/implicit_saliency.py', setup)}*"])


def trust_table(result: dict[str, Any]) -> str:
    """One row an explainer: how often its maps of "Why P?" pass, and why they fail."""
    shapes = result["shapes"]
    lines = [f"| | verdicts on {shapes['nets']} nets that learnt shapes | MobileNetV2 |", "|---|---|---|"]
    photos = result["mobilenet"]["maps"]
    for key, verdicts in shapes["verdicts"].items():
        name, _, question = key.partition("/")
        if question in ("", "why"):
            most = sorted(verdicts.items(), key=lambda each: -each[1])
            said = ", ".join(f"{count} {verdict.replace('fails', 'fail')}" for verdict, count in most)
            lines.append(f"| `{name}` | {said} | {photos[key]['verdict'] if key in photos else '-'} |")
    made = source("studies/trust_stamps.py", result["provenance"])
    told = f"{shapes['probes']} probes of shapes, {result['mobilenet']['probes']} COCO photos"
    return "\n".join([*lines, "", f"*{told}. {made}*"])
