"""The tables of docs/explainers.md, made from the kept results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from _provenance import source

__all__ = ["contrast_table", "net_table"]

NETS = {"mobilenet_v2": "MobileNetV2", "squeezenet1_0": "SqueezeNet", "deit_tiny": "DeiT-tiny"}


def spread(value: float, ends: Sequence[float | None], digits: int = 2) -> str:
    """Such as "1.72 (1.51 to 1.93)"."""
    low, high = ("-" if end is None else f"{end:.{digits}f}" for end in ends)
    return f"{value:.{digits}f} ({low} to {high})".replace("-", "\N{MINUS SIGN}")


def likeness(row: dict[str, Any]) -> str:
    """Such as "0.18 (0.17)"; "-" where maps of random weights are empty."""
    value, chance = row["randomisation"], row["randomisation_chance"]
    return "-" if value is None else f"{value:.2f} ({chance:.2f})"


def net_table(net: str) -> Callable[[dict[str, Any]], str]:
    """One row an explainer, for one net."""

    def table(result: dict[str, Any]) -> str:
        rows = result["nets"][net]
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
                "none"
                if row["randomisation"] is None
                else f"{row['randomisation']:.2f} ({row['randomisation_chance']:.2f})",
                f"{row['cost_forwards']:.0f}",
            ]
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        refused = ", ".join(f"`{name}`" for name in rows if name not in answered)
        told = f"Refused, with advice: {refused}. " if refused else ""
        photos = f"{result['photos']} COCO photos, objects cover {100 * result['area']:.0f} % on average"
        return "\n".join([*lines, "", f"*{told}{photos}. {source('studies/evaluate_explainers.py', result)}*"])

    return table


def contrast_table(result: dict[str, Any]) -> str:
    """One row a net and an explainer: what hiding a tenth of the photo takes from `z_P - z_Q`."""
    lines = [
        "| | random | Why P? | Why P, rather than Q? | contrast less Why P? | contrast less random |",
        "|---" * 6 + "|",
    ]
    for net, rows in result["nets"].items():
        for name, entry in rows.items():
            if "refused" in entry:
                continue
            row = entry["all"]
            cells = [f"{row[key]:.2f}" for key in ("random", "why", "contrast")]
            cells += [spread(row[key][0], row[key][1:]) for key in ("contrast_minus_why", "contrast_minus_random")]
            lines.append(f"| {NETS[net]}, `{name}` | " + " | ".join(cells) + " |")
    photos = sum(result["photos"].values())
    return "\n".join([*lines, "", f"*{photos} photos. {source('studies/contrast_deletion.py', result)}*"])
