"""Novelty of a whole validation set, watched while Lightning validates."""

from __future__ import annotations

import pytest
import torch

from tests.callbacks import runs
from tests.callbacks.runs import TinyModule, loader, rows
from tests.tiny import read_events, scalar_steps, tiny_probes
from xai_callbacks import AuditCallback, Auditor, GradNorm, Mahalanobis, Schedule, ValidationNovelty
from xai_callbacks.novelty import MaxSoftmax


def fit(folder, *callbacks, **options):
    torch.manual_seed(0)
    return runs.fit(folder, *callbacks, **options)


def watching(auditor=None):
    """A callback that only watches."""
    return AuditCallback(
        tiny_probes() if auditor is None else auditor, watches=[ValidationNovelty()],
        schedule=Schedule(every_n_epochs=None, at_start=False), on_error="raise",
    )  # fmt: skip


def expected_mean(module, score):
    """The mean of a score over the validation images by a loop over the trained model."""
    module.eval()
    values = []
    with torch.no_grad():
        for images, _ in loader(2, seed=6):
            features = torch.nn.Sequential(*list(module.net)[:-1])(images)
            values.append(score.score(features, module.net[-1](features)))
    return float(torch.cat(values).mean())


def test_the_whole_validation_set_is_scored_without_a_forward_pass(tmp_path):
    calls = []

    class Counting(TinyModule):
        def validation_step(self, batch, batch_idx):
            calls.append(len(batch[0]))
            return super().validation_step(batch, batch_idx)

    module = Counting()
    forwards = []
    module.net[0].register_forward_hook(lambda _module, given, _output: forwards.append(given[0].shape[0]))
    scores = [GradNorm(), MaxSoftmax(), Mahalanobis()]
    callback = watching(Auditor(tiny_probes(), novelty=scores, inliers=tiny_probes(12, seed=3)))
    callback.auditor.prepare(module)
    look = sum(forwards)
    # What `choose_layer` says it costs, the trace, and one try of everything.
    assert look <= 2 * 17 + 6 + 4 * 2
    forwards.clear()
    one = fit(tmp_path, callback, module=module, logger="tensorboard")

    assert calls == [4] * 4
    plain = []
    other = Counting()
    other.net[0].register_forward_hook(lambda _module, given, _output: plain.append(given[0].shape[0]))
    fit(tmp_path / "plain", module=other)
    # Beside the first look at two probes, before training, nothing was run.
    assert sorted(forwards[-len(plain) :]) == sorted(plain)
    assert sum(forwards[: -len(plain)]) == look

    events = read_events(tmp_path / "tb")
    for score in (GradNorm(), MaxSoftmax()):
        key = f"audit/validation/novelty/{score.name}"
        assert scalar_steps(events, key) == [3, 7]
        assert float(one.callback_metrics[key]) == pytest.approx(expected_mean(module, score), rel=1e-5)
    # What must learn from inliers would be a model behind.
    assert not any("validation/novelty/mahalanobis" in key for key in one.callback_metrics)


def test_neither_a_sanity_check_nor_validate_is_watched(tmp_path):
    module = TinyModule()
    one = fit(tmp_path, watching(), module=module, max_epochs=1, num_sanity_val_steps=2)
    assert len([row for row in rows(tmp_path) if any("validation/" in key for key in row)]) == 1
    assert float(one.callback_metrics["audit/validation/novelty/gradnorm"]) < 0
    seen = dict(one.callback_metrics)
    one.validate(TinyModule(), loader(2, seed=6), verbose=False)
    assert "audit/validation/novelty/gradnorm" not in one.callback_metrics or (
        one.callback_metrics["audit/validation/novelty/gradnorm"] == seen["audit/validation/novelty/gradnorm"]
    )
    assert not any(part._forward_hooks for part in module.modules())


def test_validation_images_without_a_finite_score_are_counted_not_averaged(tmp_path, caplog):
    class Broken(TinyModule):
        def validation_step(self, batch, batch_idx):
            images = batch[0].clone()
            if batch_idx == 0:
                images[0] = torch.nan
            return super().validation_step((images, batch[1]), batch_idx)

    callback = watching()
    with caplog.at_level("INFO"):
        one = fit(tmp_path, callback, module=Broken(), max_epochs=1)

    assert bool(torch.isfinite(one.callback_metrics["audit/validation/novelty/gradnorm"]))
    assert "1 novelty score(s) of validation images are NaN or inf" in caplog.text


def test_a_validation_that_cannot_be_watched_is_told(tmp_path, caplog):
    class Elsewhere(TinyModule):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", batch[0].mean())

    callback = watching()
    with caplog.at_level("INFO"):
        one = fit(tmp_path, callback, module=Elsewhere(), max_epochs=2)
    assert caplog.text.count("could not score the validation set") == 1
    assert not any("validation/novelty" in key for key in one.callback_metrics)
