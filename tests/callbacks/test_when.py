"""When audits take place, and what a validation adds to one at the same step."""

from __future__ import annotations

import math

import pytest

from tests.callbacks.runs import BATCHES, TinyModule, fit, loader, rows, steps_of, trainer
from tests.tiny import tiny_probes
from xai_callbacks import AuditCallback, Finding, History, Rule, Schedule, ValidationNovelty

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"
KEY = "validation/novelty/gradnorm"


@pytest.mark.parametrize(
    ("when", "trainer_options", "validates", "steps"),
    [
        ({}, {}, True, [0, 3, 7]),
        ({"at_start": False}, {}, True, [3, 7]),
        ({}, {}, False, [0, 3, 7]),
        ({}, {"limit_val_batches": 0}, True, [0, 3, 7]),
        ({"every_n_epochs": 2}, {"max_epochs": 4}, True, [0, 7, 15]),
        ({"every_n_epochs": 2}, {"max_epochs": 4}, False, [0, 7, 15]),
        ({"every_n_epochs": None}, {}, True, [0]),
        ({"every_n_epochs": None, "every_n_train_steps": 3}, {}, True, [0, 2, 5]),
        ({"every_n_train_steps": 3}, {}, True, [0, 2, 3, 5, 7]),
        ({"every_n_train_steps": 4}, {}, True, [0, 3, 7]),
        ({"every_n_train_steps": 4}, {}, False, [0, 3, 7]),
        ({}, {"val_check_interval": 0.5, "max_epochs": 1}, True, [0, 1, 3]),
        ({}, {"val_check_interval": 3, "check_val_every_n_epoch": None}, True, [0, 2, 5]),
        ({}, {"check_val_every_n_epoch": 2, "max_epochs": 4}, True, [0, 7, 15]),
        ({}, {"num_sanity_val_steps": 2}, True, [0, 3, 7]),
        ({"at_start": False}, {"num_sanity_val_steps": 2, "max_epochs": 1}, True, [3]),
        ({}, {"accumulate_grad_batches": 2}, True, [0, 1, 3]),
        ({"every_n_train_steps": 1, "every_n_epochs": None}, {"accumulate_grad_batches": 2}, True, [0, 0, 1, 2, 3]),
    ],
)
def test_audits_take_place_when_they_are_due(tmp_path, when, trainer_options, validates, steps):
    callback = AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(**when))
    fit(tmp_path, callback, val=validates, **trainer_options)

    assert steps_of(tmp_path, "audit/confidence") == [each.step for each in callback.history] == steps
    own = set(steps_of(tmp_path, "val_loss"))
    if validates and not when.get("every_n_train_steps") and when.get("every_n_epochs", 1):
        assert own == set() or set(steps) - {0} <= own


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_loader_without_batches_is_no_validation(tmp_path):
    class NoBatches(TinyModule):
        def val_dataloader(self):
            return []

    one = trainer(tmp_path, [AuditCallback(tiny_probes(), max_panels=0)])
    one.fit(NoBatches(), loader())
    assert steps_of(tmp_path, "audit/confidence") == [0, 3, 7]


def test_manual_optimisation_is_audited_at_lightnings_steps(tmp_path):
    class Manual(TinyModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    fit(tmp_path, AuditCallback(tiny_probes(), max_panels=0), module=Manual())
    assert steps_of(tmp_path, "audit/confidence") == [0, *steps_of(tmp_path, "val_loss")]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_only_fit_audits(tmp_path, verb):
    callback = AuditCallback(tiny_probes(), max_panels=0)
    one = trainer(tmp_path, [callback])
    getattr(one, verb)(TinyModule(), loader(2), verbose=False)

    assert callback.last_record is None
    assert not any(key.startswith("audit") for key in one.callback_metrics)


def test_fast_dev_run_audits_and_writes_nothing(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=1)
    one = fit(tmp_path, callback, fast_dev_run=True)
    assert callback.last_record is not None
    assert MASS in one.callback_metrics
    assert list(tmp_path.rglob("*")) == []


# ---- audits that share their step with a validation


class Counted(Rule):
    """Says how often it was asked, and what it saw."""

    def __init__(self):
        self.seen, self.told = [], []

    def conclude(self, history):
        self.seen.append((history.last.step, KEY in history.last.metrics))
        value = history.last.metrics[KEY].value if KEY in history.last.metrics else math.nan
        return [Finding("mine", "seen", 1 + abs(value), "Seen.", about=KEY)]

    def announce(self, finding):
        self.told.append(finding.value)


@pytest.mark.parametrize("epochs", [None, 1])
def test_an_audit_of_the_step_that_is_validated_has_in_its_record_what_the_watches_saw(tmp_path, epochs):
    rule = Counted()
    callback = AuditCallback(
        tiny_probes(), max_panels=0, watches=[ValidationNovelty()], rules=[rule], on_error="raise",
        schedule=Schedule(every_n_epochs=epochs, every_n_train_steps=BATCHES),
    )  # fmt: skip
    one = fit(tmp_path, callback)

    assert [each.step for each in callback.history] == [0, 3, 7]
    seen = [float(row[f"audit/{KEY}"]) for row in rows(tmp_path) if f"audit/{KEY}" in row]
    for history in (callback.history, History(tmp_path / "csv" / "audit" / "history")):
        assert [KEY in each.metrics for each in history] == [False, True, True]
        assert [each.metrics[KEY].value for each in history[1:]] == pytest.approx(seen)
    # Rules conclude anew on the record that is whole, and their findings are those that are kept.
    assert rule.seen == [(0, False), (3, False), (3, True), (7, False), (7, True)]
    last = callback.last_record
    assert [each.value for each in last.findings] == [1 + abs(last.metrics[KEY].value)]
    assert float(one.callback_metrics["audit/mine"]) == pytest.approx(1 + abs(last.metrics[KEY].value))
    assert last.metrics["mine"].value == last.findings[0].value


def test_a_validation_between_audits_changes_no_record(tmp_path):
    callback = AuditCallback(
        tiny_probes(), max_panels=0, watches=[ValidationNovelty()], on_error="raise",
        schedule=Schedule(every_n_epochs=None, every_n_train_steps=3),
    )  # fmt: skip
    fit(tmp_path, callback)
    assert [each.step for each in callback.history] == [0, 2, 5]
    assert [KEY in each.metrics for each in callback.history] == [False] * 3
    assert steps_of(tmp_path, f"audit/{KEY}") == [3, 7]
