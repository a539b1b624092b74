"""Tables of `docs/compare.md`, from the kept results."""

from __future__ import annotations

from typing import Any

from _provenance import source

__all__ = ["compare_cost_table", "compare_table", "copies_table", "watermark_table"]

RECIPES = {"_plain": "patch says nothing", "_patch": "patch gives the class away"}
COPIES = {"same": "same weights", "permuted": "channels in another order"}
EXPLAINERS = {
    "gradcam": "`GradCAM()`, last layer",
    "hirescam_earlier": "`HiResCAM`, the layer before",
    "occlusion": "`Occlusion`",
}
SCRIPT = "studies/compare_models.py"


def compare_table(result: dict[str, Any]) -> str:
    """One row a recipe: how often pairs of seeds, and of recipes, are said to differ."""
    columns = (
        "nets of the demo",
        "pairs of seeds said to differ, with 5 seeds as reference",
        "without seeds",
        "pairs with and without the shortcut found, with seeds",
        "maps beyond 95 % of seeds: of seeds, of recipes",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, words in RECIPES.items():
        row = result["seeds"][name]
        lines.append(
            f"| {words} | {row['false_with_seeds']:.0%} of {row['pairs']} | {row['false_without_seeds']:.0%} | "
            f"{row['found_with_seeds']:.0%} of {row['real_pairs']} | {row['reasons_of_seeds']:.0%}, "
            f"{row['reasons_of_recipes']:.0%} |"
        )
    return "\n".join([*lines, "", f"*{source(SCRIPT, result)}*"])


def copies_table(result: dict[str, Any]) -> str:
    """One row a copy: the largest difference of each kind."""
    kinds = list(result["copies"]["same"])
    lines = ["| copy | " + " | ".join(kind.replace("_", " ") for kind in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, words in COPIES.items():
        lines.append(f"| {words} | " + " | ".join(f"{result['copies'][name][kind]:.1g}" for kind in kinds) + " |")
    legend = "Largest difference of anything that is compared; of what is 1 for equal maps, its distance from 1."
    return "\n".join([*lines, "", f"{legend} *{source(SCRIPT, result)}*"])


def watermark_table(result: dict[str, Any]) -> str:
    """One row an explainer, one column a place."""
    places = list(result["watermark"]["gradcam"])
    lines = ["| explainer | " + " | ".join(f"at {each.replace(',', ', ')}" for each in places) + " |"]
    lines.append("|---" * (len(places) + 1) + "|")
    for name, words in EXPLAINERS.items():
        cells = [f"{result['watermark'][name][place]:.2f}" for place in places]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{source(SCRIPT, result)}*"])


def compare_cost_table(result: dict[str, Any]) -> str:
    """One row."""
    cells = {
        "checkpoints": f"{result['checkpoints']} ResNet-18",
        "probes": f"{result['probes']} of {result['size']} px",
        "passes that are needed anyway": f"{result['plain_s']:.0f} s",
        "audits and comparison": f"{result['audits_s'] + result['compare_s']:.0f} s",
        "ratio": f"{result['ratio']:.2f}",
        "peak memory after two, after all": f"{result['peak_mb_after_two']:.0f} MB, {result['peak_mb']:.0f} MB",
    }
    lines = [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|", f"| {' | '.join(cells.values())} |"]
    return "\n".join([*lines, "", f"*{source('bench_compare.py', result)}*"])
