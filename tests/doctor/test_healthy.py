"""Nothing is found where there is nothing: not once in a hundred seeds."""

from __future__ import annotations

import pytest
from pytorch_lightning import Callback

from tests.doctor.patients import TinyData, TinyModule
from tests.tiny import random_streams, tiny_probes
from xai_callbacks import AuditCallback, ProbeSet
from xai_callbacks.doctor import diagnose
from xai_callbacks.doctor.digits import load_digits

SEEDS = range(100)


class Reading(Callback):
    """Defines the hooks that come most often, and does nothing in them."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pass

    def on_validation_end(self, trainer, pl_module):
        pass


def ill(make, seeds, scenario="plain"):
    data = TinyData(images=8)
    found = [diagnose(make, seed=seed, scenarios=[scenario], module=TinyModule(), datamodule=data) for seed in seeds]
    return [str(each) for each in found if not each.healthy]


@pytest.mark.slow
def test_nothing_is_found_on_a_callback_that_does_nothing():
    assert ill(Reading, SEEDS) == []


def audit():
    return AuditCallback(tiny_probes(4), sinks=[], on_error="raise")


@pytest.mark.slow
def test_nothing_is_found_on_our_own_audit():
    assert ill(audit, SEEDS) == []


def test_nothing_is_found_in_any_scenario_of_the_default_net():
    diagnosis = diagnose(lambda: AuditCallback(ProbeSet.from_tensors(*load_digits().probes), on_error="raise"))

    assert diagnosis.healthy, str(diagnosis)
    assert diagnosis.scenarios == ("plain", "accumulation", "train-epoch-end", "frozen")


def test_the_diagnosis_itself_moves_no_random_stream():
    module, data = TinyModule(), TinyData()
    before = random_streams()
    diagnose(Reading, scenarios=["plain"], module=module, datamodule=data)
    assert random_streams() == before
