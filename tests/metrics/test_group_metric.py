"""`GroupMetrics` and its keys: the functions, torchmetrics, and two real processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from tests.metrics.group_cases import C, K, batch, sums_of
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import GroupMetrics
from xai_callbacks.metrics.groups import (
    bias_amplification,
    conditional_mutual_information,
    conflict_gap,
    group_accuracy,
    group_ece,
    on_sides,
    reweighted_accuracy,
    worst_group_accuracy,
)

ALIGNED, TRAIN = [0, 1, 1], torch.tensor([[90, 10], [5, 95], [20, 80]])


def metric_of(*parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> GroupMetrics:
    metric = GroupMetrics(K, C, ALIGNED, TRAIN)
    for part in parts:
        metric.update(*part)
    return metric


def rows_of(data: tuple[torch.Tensor, ...], rows: slice) -> tuple[torch.Tensor, ...]:
    return tuple(values[rows] for values in data)


def close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def test_metric_gives_the_values_of_the_functions_as_floats():
    data = batch(900)
    metric = metric_of(data)
    sums = sums_of(metric)
    worst, label, cue = worst_group_accuracy(sums.counts)
    gap, ece = conflict_gap(sums.counts, ALIGNED), group_ece(sums.bins)

    computed = metric.compute()

    assert all(type(value) is float and key.startswith("group/") for key, value in computed.items())
    assert [computed[f"group/wga{end}"] for end in ("", "_low", "_high")] == list(worst[:3])
    assert (computed["group/wga_label"], computed["group/wga_cue"]) == (label, cue)
    assert [computed[f"group/conflict_gap{end}"] for end in ("", "_low", "_high")] == list(gap[0][:3])
    assert (computed["group/accuracy_aligned"], computed["group/accuracy_conflicting"]) == gap[1:]
    losses = on_sides(sums.losses, ALIGNED) / on_sides(sums.counts.sum(dim=2), ALIGNED)
    assert [computed["group/loss_aligned"], computed["group/loss_conflicting"]] == losses.tolist()
    assert computed["group/cond_mi"] == conditional_mutual_information(sums.counts)
    assert computed["group/bias_amplification"] == bias_amplification(sums.counts, TRAIN)
    assert computed["group/accuracy_reweighted"] == reweighted_accuracy(sums.counts, TRAIN)
    assert (computed["group/ece_gap"], computed["group/ece/2_1"]) == (float(ece.max() - ece.min()), float(ece[5]))
    assert computed["group/accuracy/2_1"] == float(group_accuracy(sums.counts)[2, 1])
    assert computed["group/count/2_1"] == int(((data[1] == 2) & (data[2] == 1)).sum())
    assert computed["group/n_min"] == int(sums.counts.sum(dim=2).min())
    assert computed["group/accuracy_all"] == pytest.approx(accuracy_score(data[1], data[0].argmax(dim=1)))
    assert computed["group/accuracy_balanced"] == pytest.approx(float(group_accuracy(sums.counts).mean()))
    assert computed["group/excluded"] == computed["group/not_finite"] == 0


def test_metric_says_nothing_of_what_it_was_not_given():
    keys = {key.removeprefix("group/") for key in GroupMetrics(K, C, per_group=False).estimates()}

    withheld = ("aligned", "conflict", "bias", "reweighted", "/")
    assert not [key for key in keys if any(word in key for word in withheld)]
    assert {"wga", "cond_mi", "ece_gap", "not_finite"} <= keys


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=4).map(sorted))
def test_batches_may_be_split_anywhere(cuts):
    data = batch(120)
    ends = [0, *cuts, 120]
    parts = [rows_of(data, slice(start, stop)) for start, stop in pairwise(ends)]

    close(metric_of(*parts).compute(), metric_of(data).compute())


def test_two_shards_merged_equal_the_whole():
    data = batch()
    left, right = metric_of(rows_of(data, slice(0, 100))), metric_of(rows_of(data, slice(100, None)))

    left.merge_state(right)

    close(left.compute(), metric_of(data).compute())


def test_calling_the_metric_gives_the_batch_and_keeps_the_sum():
    first, second = batch(200, seed=1), batch(200, seed=2)
    metric = metric_of(first)

    close(metric(*second), metric_of(second).compute())
    close(metric.compute(), metric_of(first, second).compute())


def test_state_starts_anew_after_reset():
    metric = metric_of(batch(50))
    metric.reset()
    metric.update(*batch(seed=1))

    close(metric.compute(), metric_of(batch(seed=1)).compute())


def test_images_with_bad_logits_or_unknown_cue_are_counted_and_change_nothing_else():
    logits, labels, cues = batch(300)
    clean = metric_of(rows_of((logits, labels, cues), slice(5, None))).compute()
    logits[:3, 1], cues[3:5] = torch.tensor([math.nan, math.inf, -math.inf]), -1

    computed = metric_of((logits, labels, cues)).compute()

    assert (computed.pop("group/not_finite"), computed.pop("group/unknown_cue")) == (3, 2)
    close(computed, {key: value for key, value in clean.items() if key in computed})


def test_without_an_image_judgements_are_nan_and_counts_are_zero():
    metric = metric_of((torch.full((4, K), math.nan), torch.zeros(4).long(), torch.zeros(4).long()))

    computed = metric.compute()

    assert (computed.pop("group/not_finite"), computed.pop("group/excluded")) == (4, K * C)
    zero = {key for key, value in computed.items() if value == 0}
    assert zero == {"group/unknown_cue"} | {key for key in computed if "/count/" in key}
    assert all(math.isnan(value) for key, value in computed.items() if key not in zero)


def test_group_of_three_images_is_no_worst_group_and_has_no_calibration_error():
    logits, labels, cues = batch(500)
    rows = ((labels != 2) | (cues != 1)).nonzero().flatten()
    rows = torch.cat([rows, ((labels == 2) & (cues == 1)).nonzero().flatten()[:3]])

    computed = metric_of((logits[rows], labels[rows], cues[rows])).compute()

    assert (computed["group/n_min"], computed["group/excluded"], computed["group/count/2_1"]) == (3, 1, 3)
    assert (computed["group/wga_label"], computed["group/wga_cue"]) != (2, 1)
    assert math.isnan(computed["group/ece/2_1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` to be an integer of 2 or more"),
        ({"num_cues": 0}, "`num_cues` to be an integer of 1 or more"),
        ({"aligned": [0, 1]}, r"for each of 3 labels, but got \[0, 1\]"),
        ({"train_counts": torch.ones(K, C)}, "`train_counts` to be integers"),
        ({"train_counts": torch.ones(C, K, dtype=torch.long)}, "`train_counts` to be integers"),
        ({"min_count": 0}, "`min_count` to be an integer of 1 or more"),
        ({"aligned": "abc"}, r"for each of 3 labels, but got 'abc'"),
        ({"train_counts": [[1, 2], [3]]}, "`train_counts` to be integers"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GroupMetrics(**{"num_classes": K, "num_cues": C} | arguments)


def test_logits_of_another_number_of_classes_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"Expected `logits` to be floats \(N, 3\), but got torch.float32 \(2, 4\)"
    ):
        GroupMetrics(K, C).update(torch.zeros(2, 4), torch.zeros(2).long(), torch.zeros(2).long())


def test_metric_holds_on_to_no_graph_and_sums_half_precision_logits_in_float64():
    logits, labels, cues = batch(200)
    metric = metric_of((logits.bfloat16().requires_grad_(), labels, cues))

    assert not metric.sums.requires_grad
    close(metric.compute(), metric_of((logits.bfloat16().double(), labels, cues)).compute())


# One of two processes. The images are split between them, then one of them has none at all, then the other.
RANK = """
import json, sys, torch
from torch import distributed
from xai_callbacks.metrics import GroupMetrics

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
data, aligned, train = torch.load(f"{folder}/data.pt")
results = []
for split in (137, len(data[0]), 0):
    rows = slice(0, split) if rank == 0 else slice(split, None)
    metric = GroupMetrics(3, 2, aligned, train)
    if len(data[0][rows]):
        metric.update(*(values[rows] for values in data))
    results.append(metric.compute())
distributed.destroy_process_group()
print(json.dumps(results))
"""


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric GroupMetrics was called before:UserWarning")
def test_two_processes_agree_on_the_values_of_the_whole(tmp_path):
    data = batch()
    data[0][5] = math.nan
    torch.save((data, ALIGNED, TRAIN), tmp_path / "data.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()

    expected = metric_of(data).compute()
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        for computed in json.loads(output.splitlines()[-1]):
            close(computed, expected)


# ---- keys


BOTH = {"aligned": ALIGNED, "train_counts": TRAIN}


@pytest.mark.parametrize("known", [{}, {"aligned": ALIGNED}, {"train_counts": TRAIN}, BOTH])
def test_every_judgement_is_declared_and_within_its_bounds(known):
    for data in (batch(900), batch(30), tuple(values[:0] for values in batch(1))):
        metric = GroupMetrics(K, C, **known)
        metric.update(*data)
        declared, found = metric.keys(), metric.estimates([f"cow/{number}" for number in range(K * C)])
        for name, estimate in found.items():
            (key,) = [each for each in declared if each.matches(name)]
            assert key.words
            assert key.of == "images"
            high = math.inf if key.high is None else key.high
            for value in (estimate.value, estimate.low, estimate.high):
                assert value is None or math.isnan(value) or key.low <= value <= high
        assert all(any(key.matches(name) for name in found) for key in declared)
