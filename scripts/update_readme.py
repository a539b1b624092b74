"""Fill the tables of the README from the kept results, so that no figure is typed by hand.

python scripts/bench_cam.py --json docs/results/cam.json
python scripts/bench_interference.py --json docs/results/interference.json
python scripts/update_readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SCENARIOS = {
    "plain": "validation each epoch",
    "accumulation": "accumulated gradients",
    "train-epoch-end": "no validation loader",
    "frozen": "frozen backbone",
}
TOOLS = {
    "xai_callbacks AuditCallback": "**AuditCallback**",
    "captum LayerGradCam": "captum LayerGradCam",
    "captum GradientShap": "captum GradientShap",
    "torch-cam LayerCAM": "torch-cam LayerCAM",
    "pytorch-grad-cam GradCAM": "pytorch-grad-cam GradCAM",
    "shap GradientExplainer": "shap GradientExplainer",
    "shap DeepExplainer": "shap DeepExplainer",
}


def interference_table(result: dict[str, Any]) -> str:
    """One row a tool, one column a scenario."""
    outcomes = {(row["tool"], row["scenario"]): row["outcome"] for row in result["rows"]}
    lines = ["| attached | " + " | ".join(SCENARIOS.values()) + " |", "|---|" + "---|" * len(SCENARIOS)]
    for tool, name in TOOLS.items():
        cells = [outcomes[tool, scenario] for scenario in SCENARIOS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{source('bench_interference.py', result)}*"])


def cost_table(result: dict[str, Any]) -> str:
    """One row a model."""
    lines = [
        "| 16 images of 224 px | 4 questions / plain forward | 16 questions / plain forward | captum, 4 calls / ours "
        "| pytorch-grad-cam, 4 calls / ours |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["models"].items():
        times = [row[key] for key in ("speedup_captum", "speedup_pytorch_grad_cam")]
        ratios = [row[key] for key in ("ratio_to_forward", "ratio_16_questions")]
        cells = [f"{ratio:.2f}" for ratio in ratios] + [f"{time:.1f}" for time in times]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    memory = f"Peak memory of an audit of 512 probes: {result['memory_ratio_512_to_32']:.2f} x that of 32."
    return "\n".join([*lines, "", f"{memory} *{source('bench_cam.py', result)}*"])


def source(script: str, result: dict[str, Any]) -> str:
    """Where a table comes from, in one line."""
    return f"`scripts/{script}`, {result['date']}, {result['machine']}, torch {result['versions']['torch']}."


def filled(readme: str) -> str:
    """The README with both tables made anew."""
    tables = {
        "interference": interference_table(json.loads((RESULTS / "interference.json").read_text())),
        "cost": cost_table(json.loads((RESULTS / "cam.json").read_text())),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
        readme = re.sub(f"{begin}.*?{end}", f"{begin}\n{table}\n{end}", readme, flags=re.DOTALL)
    return readme


def main() -> None:
    """Rewrite the README."""
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
