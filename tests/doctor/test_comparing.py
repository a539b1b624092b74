"""Two snapshots: every kind of difference is seen, and none where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from xai_callbacks.doctor.comparing import compare
from xai_callbacks.doctor.snapshot import Snapshot


def make_snapshot() -> Snapshot:
    return Snapshot(
        parameters={"conv.weight": torch.tensor([1.0, -2.0]), "head.bias": torch.tensor([0.5])},
        buffers={"bn.running_mean": torch.tensor([0.25]), "bn.num_batches_tracked": torch.tensor(3)},
        optimizer={"0.0.exp_avg": torch.tensor([0.1, 0.2]), "0.0.step": torch.tensor(3.0)},
        metrics={"val_acc": torch.tensor([[3.0, 0.5], [7.0, 0.75]], dtype=torch.float64)},
        losses=torch.tensor([2.0, 1.5, 1.25, 1.0], dtype=torch.float64),
        rng={"python": "a", "numpy": "b", "torch": "c"},
        eval_layers_by_step=(frozenset({"frozen"}),) * 4,
        eval_layers=frozenset({"frozen"}),
        hooks={"conv": 1},
        attributes={"conv.stride": 1},
        requires_grad=frozenset({"conv.weight", "head.bias"}),
        grads={"conv.weight": torch.tensor([0.5, 0.5])},
        modules={".": "Net", "conv": "Conv2d", "head": "Linear", "frozen": "Linear"},
        keys=frozenset({"conv.weight", "head.bias"}),
        switches={"grad mode": True},
    )


def test_two_equal_snapshots_have_no_difference() -> None:
    assert compare(make_snapshot(), make_snapshot()) == ()


NEXT = torch.nextafter(torch.tensor([0.5]), torch.tensor([1.0]))

DISTURBANCES = {
    "a weight off by one ulp": (
        {"parameters": {"conv.weight": torch.tensor([1.0, -2.0]), "head.bias": NEXT}},
        {"parameters": "weights differ (max |d| 6.0e-08)"},
    ),
    "a weight of another type": (
        {"parameters": {"conv.weight": torch.tensor([1.0, -2.0]).double(), "head.bias": torch.tensor([0.5])}},
        {"parameters": "weights differ (max |d| 0.0e+00)"},
    ),
    "a weight that is nan": (
        {"parameters": {"conv.weight": torch.tensor([1.0, torch.nan]), "head.bias": torch.tensor([0.5])}},
        {"parameters": "weights differ (max |d| nan)"},
    ),
    "a BatchNorm statistic": (
        {"buffers": {"bn.running_mean": torch.tensor([0.26]), "bn.num_batches_tracked": torch.tensor(3)}},
        {"buffers": "buffers differ"},
    ),
    "a BatchNorm counter": (
        {"buffers": {"bn.running_mean": torch.tensor([0.25]), "bn.num_batches_tracked": torch.tensor(4)}},
        {"buffers": "buffers differ"},
    ),
    "optimizer state": (
        {"optimizer": {"0.0.exp_avg": torch.tensor([0.1, 0.3]), "0.0.step": torch.tensor(3.0)}},
        {"optimizer": "optimizer state differs"},
    ),
    "optimizer state gone": (
        {"optimizer": {"0.0.step": torch.tensor(3.0)}},
        {"optimizer": "optimizer state differs"},
    ),
    "a metric of one epoch": (
        {"metrics": {"val_acc": torch.tensor([[3.0, 0.5], [7.0, 0.5]], dtype=torch.float64)}},
        {"metrics": "logged metrics differ"},
    ),
    "a metric at another step": (
        {"metrics": {"val_acc": torch.tensor([[4.0, 0.5], [7.0, 0.75]], dtype=torch.float64)}},
        {"metrics": "logged metrics differ"},
    ),
    "a metric missing": ({"metrics": {}}, {"metrics": "logged metrics differ"}),
    "the loss of the third step": (
        {"losses": torch.tensor([2.0, 1.5, 1.0, 1.0], dtype=torch.float64)},
        {"losses": "loss differs from step 3 of 4 on"},
    ),
    "fewer steps": (
        {"losses": torch.tensor([2.0, 1.5], dtype=torch.float64)},
        {"losses": "2 training steps instead of 4"},
    ),
    "two random streams": ({"rng": {"python": "a", "numpy": "x", "torch": "y"}}, {"rng": "RNG moved (numpy, torch)"}),
    "steps in eval mode": (
        {"eval_layers_by_step": (frozenset({"frozen"}), *(frozenset({"frozen", ".", "conv"}),) * 3)},
        {"steps": "75% of steps in eval mode"},
    ),
    "steps with a frozen layer in train mode": (
        {"eval_layers_by_step": (*(frozenset({"frozen"}),) * 2, *(frozenset(),) * 2)},
        {"steps": "50% of steps with frozen layers in train mode"},
    ),
    "a layer left in eval mode": (
        {"eval_layers": frozenset({"frozen", "conv"})},
        {"eval_layers": "1 layers left in eval mode"},
    ),
    "a layer left in train mode": ({"eval_layers": frozenset()}, {"eval_layers": "1 layers left in train mode"}),
    "hooks left": ({"hooks": {"conv": 2, "head": 4}}, {"hooks": "5 hooks left"}),
    "a hook removed": ({"hooks": {}}, {"hooks": "hooks removed or moved"}),
    "a hook moved": ({"hooks": {"head": 1}}, {"hooks": "hooks removed or moved"}),
    "an attribute left": (
        {"attributes": {"conv.stride": 1, "conv.input": None}},
        {"attributes": "attributes on layers: 1 new"},
    ),
    "a parameter frozen": (
        {"requires_grad": frozenset({"head.bias"})},
        {"requires_grad": "trainable parameters: 1 lost"},
    ),
    "a pending gradient changed": (
        {"grads": {"conv.weight": torch.tensor([0.5, 0.0])}},
        {"grads": ".grad: 1 changed"},
    ),
    "a pending gradient wiped": ({"grads": {}}, {"grads": ".grad: 1 wiped"}),
    "a gradient where there was none": (
        {"grads": {"conv.weight": torch.tensor([0.5, 0.5]), "head.bias": torch.tensor([0.0])}},
        {"grads": ".grad: 1 new"},
    ),
    "a new key": (
        {"keys": frozenset({"conv.weight", "head.bias", "act.x"})},
        {"state_dict": "1 new state_dict keys: checkpoints no longer load"},
    ),
    "a key gone": (
        {"keys": frozenset({"conv.weight"})},
        {"state_dict": "0 new state_dict keys, 1 gone: checkpoints no longer load"},
    ),
}


@pytest.mark.parametrize(("change", "expected"), DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_each_disturbance_is_found_and_named_alone(change: dict[str, object], expected: dict[str, str]) -> None:
    found = compare(make_snapshot(), replace(make_snapshot(), **change))
    assert {difference.what: difference.words for difference in found} == expected
