"""Fill the tables of the README and of pages in docs/ from the kept results, so that no figure is typed by hand.

python scripts/bench_cam.py --json docs/results/cam.json
python scripts/bench_interference.py --json docs/results/interference.json
python scripts/bench_novelty.py --json docs/results/novelty_bench.json
python scripts/studies/reproduce_novelty.py --json docs/results/novelty.json
python scripts/studies/novelty_classifiers.py --json docs/results/novelty_classifiers.json
python scripts/studies/novelty_conditions.py --json docs/results/novelty_conditions.json
python scripts/studies/evaluate_alarm.py --json docs/results/detection.json
python scripts/studies/interval_coverage.py --json docs/results/coverage.json
python scripts/studies/evaluate_detection.py --json docs/results/evidence.json
python scripts/studies/misnamed_cues.py --json docs/results/misnamed.json
python scripts/studies/unnamed_cues.py --json docs/results/unnamed.json
python scripts/bench_groups.py --json docs/results/groups_bench.json
python scripts/studies/evaluate_explainers.py --json docs/results/explainers.json
python scripts/studies/contrast_deletion.py --json docs/results/contrast.json
python scripts/studies/undesirable_pixels.py --json docs/results/undesirable.json
python scripts/studies/quality_contrasts.py --json docs/results/quality.json
python scripts/studies/trust_stamps.py --json docs/results/trust.json
python scripts/studies/implicit_saliency.py --json docs/results/implicit_saliency.json
python scripts/studies/compare_models.py --json docs/results/compare.json
python scripts/bench_compare.py --json docs/results/compare_bench.json
python scripts/update_readme.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _compare_tables import compare_cost_table, compare_table, copies_table, watermark_table
from _explainer_tables import (
    NETS,
    contrast_table,
    net_table,
    quality_table,
    saliency_table,
    trust_table,
    undesirable_table,
)
from _metric_keys import keys_table
from _provenance import source

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
        "| 16 images of 224 px | 4 questions / plain forward | 16 questions / plain forward "
        "| Grad-CAM at two layers, HiResCAM and a novelty map / plain forward | captum, 4 calls / ours "
        "| pytorch-grad-cam, 4 calls / ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["models"].items():
        times = [row[key] for key in ("speedup_captum", "speedup_pytorch_grad_cam")]
        ratios = [row[key] for key in ("ratio_to_forward", "ratio_16_questions", "ratio_everything")]
        cells = [f"{ratio:.2f}" for ratio in ratios] + [f"{time:.1f}" for time in times]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    memory = f"Peak memory of an audit of 512 probes: {result['memory_ratio_512_to_32']:.2f} x that of 32."
    return "\n".join([*lines, "", f"{memory} *{source('bench_cam.py', result)}*"])


def one_class_table(result: dict[str, Any]) -> str:
    """One row a score, one column a data set, best mean first; published means below."""
    datasets = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10_4000": "CIFAR-10, 4,000 images"}
    heads = [f"{name} ({next(iter(result[key].values()))['epochs']} epochs)" for key, name in datasets.items()]
    lines = ["| mean AUROC over ten classes | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for score in sorted(result["mnist"], key=lambda name: -result["mnist"][name]["mean"]):
        cells = [f"{result[key][score]['mean']:.3f}" for key in datasets]
        lines.append(f"| `{score}` | " + " | ".join(cells) + " |")
    for name, means in result["published"].items():
        cells = [f"{means[key.removesuffix('_4000')]:.3f}" for key in datasets]
        lines.append(f"| published: {name} | " + " | ".join(cells) + " |")
    seeds = {row["seeds"] for key in datasets for row in result[key].values()}
    note = f"Means over {'/'.join(map(str, sorted(seeds)))} seeds; classes and seeds one by one are in the JSON file."
    return "\n".join([*lines, "", f"{note} *{source('studies/reproduce_novelty.py', result['provenance'])}*"])


def one_class_summary(result: dict[str, Any]) -> str:
    """What matters most of `one_class_table`."""
    shown = {
        "gradient/fisher": "`FisherNovelty`, whitened gradients",
        "latent/mahalanobis": "whitened latent codes",
        "pixels/mahalanobis": "whitened pixels, no net",
        "reconstruction": "reconstruction error",
    }
    lines = ["| mean AUROC over ten classes | MNIST | Fashion-MNIST |", "|---|---|---|"]
    for score, name in shown.items():
        lines.append(
            f"| {name} | {result['mnist'][score]['mean']:.3f} | {result['fashion_mnist'][score]['mean']:.3f} |"
        )
    for name, means in result["published"].items():
        lines.append(f"| published: {name} | {means['mnist']:.3f} | {means['fashion_mnist']:.3f} |")
    seeds = result["mnist"]["gradient/fisher"]["seeds"]
    return "\n".join(
        [*lines, "", f"Means over {seeds} seeds. *{source('studies/reproduce_novelty.py', result['provenance'])}*"]
    )


def classifier_table(result: dict[str, Any]) -> str:
    """One row a score: near and far, with intervals."""
    lines = ["| score | near: unknown classes | far: MNIST |", "|---|---|---|"]
    for score in sorted(result["near"], key=lambda name: -result["near"][name]["mean"]):
        rows = (result[group][score] for group in ("near", "far"))
        cells = [f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows]
        lines.append(f"| `{score}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{source('studies/novelty_classifiers.py', result['setup'])}*"])


def conditions_table(result: dict[str, Any]) -> str:
    """One row a score, one column a condition."""
    conditions = [name for name in next(iter(result["scores"].values())) if name != "clean"]
    lines = ["| score | " + " | ".join(conditions) + " |", "|---|" + "---|" * len(conditions)]
    for score, rows in result["scores"].items():
        cells = [f"{rows[condition]['mean']['mean']:.2f}" for condition in conditions]
        lines.append(f"| `{score}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{source('studies/novelty_conditions.py', result['setup'])}*"])


def gradients_table(result: dict[str, Any]) -> str:
    """One row a model."""
    lines = [
        "| model | ours / forward and backward | `vmap(grad)` / ours | Opacus / ours | loop of single images / ours "
        "| memory of tensors, ours / forward and backward | resident memory, likewise |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = (
        "ratio_to_forward_backward",
        "speedup_vmap",
        "speedup_opacus",
        "speedup_loop",
        "memory_ratio",
        "resident_ratio",
    )
    for name, row in result["models"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |")
    return "\n".join([*lines, "", f"*{source('bench_novelty.py', result)}*"])


FAMILIES = {"patch": "vivid patch", "tint": "tint", "subtle": "patch at half opacity"}
METRICS = {
    "cue/effect": "`cue/<cue>/effect`",
    "cue/flip_rate": "`cue/<cue>/flip_rate`",
    "cue/tv": "`cue/<cue>/tv`",
    "cue/spurious_score": "`cue/<cue>/spurious_score`",
    "cue/only_acc": "`cue/<cue>/only_acc`",
    "attr/mass_cue": "`gradcam/why/relevance_mass/spurious`",
    "attr/rank_cue": "`gradcam/why/relevance_rank/spurious`",
    "attr/soft_iou_cue": "`gradcam/why/soft_iou/spurious`",
    "attr/mass_wrong_mask": "relevance mass in a wrong place",
    "attr/one_minus_mass_object": "1 - `gradcam/why/relevance_mass/core`",
    "attr/one_minus_soft_iou_object": "1 - `gradcam/why/soft_iou/core`",
    "region/placebo_minus_drop": "- `region/spurious/drop_minus_placebo`",
    "bg/gap": "`bg/gap`",
    "fill/tv": "`fill/tv`",
    "fill/disagree": "`fill/disagree`",
    "baseline/one_minus_validation_accuracy": "1 - accuracy on biased validation images",
}


def percent(share: float, interval: list[float]) -> str:
    """Such as "4 % (1 to 15)"."""
    return f"{share:.0%} ({interval[0]:.0%} to {interval[1]:.0%})".replace("%", " %")


def rate(row: dict[str, Any], of: str) -> str:
    """Such as "95 % (90 % to 98 %) of 120"."""
    name = "tpr" if of == "uses" else "far"
    return "-" if not row[of] else f"{percent(row[name], row[f'{name}_ci'])} of {row[of]}"


def rule_table(result: dict[str, Any]) -> str:
    """The rule, settled without the family that it is judged on: pooled and by number of classes."""
    single = result["single_variant"]
    hits = single["tpr"]
    rows = {
        "**all**": result["pooled"],
        **{f"{classes} classes": row for classes, row in result["by_classes"].items()},
        "cues of a single variant": {**single, "tpr": hits["share"], "tpr_ci": hits["ci"], "uses": hits["of"]},
        **{f"all, {count} probes": row for count, row in result["by_probes"].items()},
    }
    lines = ["| | alarm, of nets that use the cue | false alarms, of clean pairs of net and cue |", "|---|---|---|"]
    lines += [f"| {name} | {rate(row, 'uses')} | {rate(row, 'clean')} |" for name, row in rows.items()]
    for count, row in result["eight_cues"].items():
        if row["of"]:
            lines.append(
                f"| eight cues together, {count} probes | | {percent(row['share'], row['ci'])} of {row['of']} nets |"
            )
    reacts = result["reacts"]["all"]
    found = f"{percent(reacts['share'], reacts['ci'])} of {reacts['of']}"
    lines.append(f"| not taught, and reacts by a gap of more than .03 | | {found} |")
    nets, planned = result["nets"], result["planned"]
    told = f"{nets['taught']} nets taught a cue, {nets['useless']} shown a useless one, {nets['clean']} clean"
    so_far = "" if sum(nets.values()) == planned else f" (so far, of {planned} planned)"
    return "\n".join([*lines, "", f"*{told}{so_far}. {source('studies/evaluate_alarm.py', result['provenance'])}*"])


def families_table(result: dict[str, Any]) -> str:
    """One row a family of cues."""
    lines = ["| family of cues | alarm, of nets that use it | false alarms, of clean nets |", "|---|---|---|"]
    lines += [f"| `{name}` | {rate(row, 'uses')} | {rate(row, 'clean')} |" for name, row in result["families"].items()]
    return "\n".join([*lines, "", f"*{source('studies/evaluate_alarm.py', result['provenance'])}*"])


def coverage_table(result: dict[str, Any]) -> str:
    """One row a distribution: how often its intervals hold the mean, and how wide they are."""
    lines = ["| values | 30 probes: holds (width) | 64 probes | 128 probes |", "|---|---|---|---|"]
    for name, row in result["rows"].items():
        cells = []
        for each in row.values():
            given = "" if each["given"] == 1 else f", {100 * each['given']:.0f} % have one"
            held = each["coverage"]
            cells.append("none given" if held is None else f"{100 * held:.1f} % ({each['width']:.2f}{given})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{source('studies/interval_coverage.py', result['provenance'])}*"])


def misnamed_table(result: dict[str, Any]) -> str:
    """One row a way to describe a cue wrongly."""
    states = ("alarm", "watch", "reacts to any edit", "no evidence")
    lines = ["| the cue as the user describes it | nets | " + " | ".join(states) + " |", "|---" * 6 + "|"]
    for name, row in result["misnamed"].items():
        of = row["alarm_share"]["of"]
        lines.append(f"| {name} | {of} | " + " | ".join(f"{row.get(state, 0) / of:.0%}" for state in states) + " |")
    lines = [line.replace("%", " %") for line in lines]
    return "\n".join([*lines, "", f"*{source('studies/misnamed_cues.py', result['provenance'])}*"])


def canary_table(result: dict[str, Any]) -> str:
    """What the canary said of nets, and what happened."""
    lines = ["| the canary says that a gap as large as the net's | nets | alarm |", "|---|---|---|"]
    for key, words in (("said_seen", "is seen"), ("said_missed", "is missed")):
        row = result["canary"][key]
        lines.append(f"| {words} | {row['of']} | {'-' if not row['of'] else percent(row['share'], row['ci'])} |")
    lines.append(f"| neither | {result['canary']['not_said']} | |")
    return "\n".join([*lines, "", f"*{source('studies/misnamed_cues.py', result['provenance'])}*"])


def unnamed_table(result: dict[str, Any]) -> str:
    """One row a signal: by image and by net."""
    clusters, ways = result["clusters"], ("by_image", "by_net")
    hits, false = (percent(clusters[name]["share"], clusters[name]["ci"]) for name in ("hits", "false"))
    rows = {
        "errors go with a kind of heatmaps, p < .05": ("-", f"{hits} of nets that use a cue, {false} of others"),
        "prediction depth, shallower": [f"{result['depth'][by]:.2f}" for by in ways],
        "loss; by net, how far it falls into two groups": [f"{result['loss'][by]:.2f}" for by in ways],
        "loss after the first epoch": (f"{result['first_epoch_loss']['by_image']:.2f}", "-"),
        "share of errors": ("-", f"{result['errors']['by_net']:.2f}"),
    }
    lines = ["| signal | AUC, contradicted images | nets: AUC, or share |", "|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    nets = f"{result['nets']['use']} nets that use a cue, {result['nets']['none']} that use none"
    return "\n".join([*lines, "", f"*{nets}. {source('studies/unnamed_cues.py', result['provenance'])}*"])


def groups_table(result: dict[str, Any]) -> str:
    """One row a model: what group metrics add to a validation epoch."""
    lines = ["| validation | wall time | CPU time |", "|---|---|---|"]
    for name, row in result["models"].items():
        cells = []
        for clock in ("wall", "cpu"):
            low, high = (100 * (end - 1) for end in row[f"{clock}_ratio_ci"])
            cells.append(f"{100 * (row[f'{clock}_ratio'] - 1):+.1f} % ({low:+.1f} to {high:+.1f})")
        lines.append(f"| {name}, {row['validation_images']} images | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{source('bench_groups.py', result)}*"])


def detection_table(result: dict[str, Any]) -> str:
    """One row a metric: AUROC at the last epoch and at the second, rank correlation with the gap, salience."""
    lines = [
        "| metric | AUROC, patch (epoch 2) | AUROC, tint (epoch 2) | AUROC, half opacity (epoch 2) "
        "| rank correlation with the gap: patch, tint, half opacity | slope on informative, on vivid |",
        "|---|---|---|---|---|---|",
    ]
    for key, name in METRICS.items():
        rows = [result[family].get(key) for family in FAMILIES]
        cells = ["-" if row is None else f"{row['auroc_last']:.2f} ({row['auroc_epoch']['2']:.2f})" for row in rows]
        ranks = ", ".join("-" if row is None else f"{row['spearman_gap']:.2f}" for row in rows)
        slopes = result["salience"].get(key)
        salience = "-" if slopes is None else f"{slopes['informative']:.2f}, {slopes['vivid']:.2f}"
        lines.append(f"| {name} | " + " | ".join([*cells, ranks, salience]) + " |")
    return "\n".join([*lines, "", f"*{source('studies/evaluate_detection.py', result['provenance'])}*"])


PAGES = ("README.md", *(f"docs/{page}.md" for page in ("metrics", "novelty", "shortcuts", "explainers", "compare")))
TABLES: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "rule": (rule_table, "detection.json"),
    "families": (families_table, "detection.json"),
    "misnamed": (misnamed_table, "misnamed.json"),
    "canary": (canary_table, "misnamed.json"),
    "unnamed": (unnamed_table, "unnamed.json"),
    "coverage": (coverage_table, "coverage.json"),
    "detection": (detection_table, "evidence.json"),
    "groups": (groups_table, "groups_bench.json"),
    "interference": (interference_table, "interference.json"),
    "cost": (cost_table, "cam.json"),
    "one class": (one_class_table, "novelty.json"),
    "one class summary": (one_class_summary, "novelty.json"),
    "classifier": (classifier_table, "novelty_classifiers.json"),
    "conditions": (conditions_table, "novelty_conditions.json"),
    "gradients": (gradients_table, "novelty_bench.json"),
    **{f"{net} explainers": (net_table(net), "explainers.json") for net in NETS},
    "contrast": (contrast_table, "contrast.json"),
    "undesirable": (undesirable_table, "undesirable.json"),
    "quality": (quality_table, "quality.json"),
    "saliency": (saliency_table, "implicit_saliency.json"),
    "trust": (trust_table, "trust.json"),
    "compare": (compare_table, "compare.json"),
    "copies": (copies_table, "compare.json"),
    "watermark": (watermark_table, "compare.json"),
    "compare cost": (compare_cost_table, "compare_bench.json"),
}


def filled(text: str) -> str:
    """A document with its tables made anew."""
    for name, (table, file) in TABLES.items():
        if f"<!-- {name} table -->" in text:
            text = _replaced(text, name, table(json.loads((RESULTS / file).read_text())))
    return _replaced(text, "keys", keys_table()) if "<!-- keys table -->" in text else text


def _replaced(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    before, after = text.partition(begin)[0], text.partition(end)[2]
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    """Rewrite the documents."""
    for path in (ROOT / page for page in PAGES):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
