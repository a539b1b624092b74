"""Scores of probes and of whole validation sets while training, in loggers, monitors and pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks.runs import TinyModule, loader, rows, trainer
from tests.tiny import image_steps, pictures, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import (
    ODIN,
    AuditCallback,
    ConfigurationError,
    Energy,
    Entropy,
    FisherNovelty,
    GradConScore,
    GradientNorm,
    GradNorm,
    Mahalanobis,
    NoveltyAuditor,
    NoveltyCallback,
    NoveltyError,
    ReconstructionError,
    ViM,
)
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.interventions import condition_probes
from xai_callbacks.metrics import novelty_auroc
from xai_callbacks.novelty import MaxSoftmax
from xai_callbacks.probes import ProbeSet
from xai_callbacks.reference import AutoencoderModule


def fit(folder, *callbacks, module=None, epochs=2, **options):
    torch.manual_seed(0)
    one = trainer(folder, list(callbacks), max_epochs=epochs, **options)
    one.fit(TinyModule() if module is None else module, loader(), loader(3, seed=6))
    return one


def digits(count, seed, **fields):
    generator = torch.Generator().manual_seed(seed)
    return ProbeSet.from_tensors(torch.rand(count, 1, 28, 28, generator=generator), **fields)


class Module(AutoencoderModule):
    """Batches of `loader` hold three channels and labels."""

    def training_step(self, batch, batch_idx):
        return super().training_step(upscaled(batch), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step(upscaled(batch), batch_idx)


def upscaled(batch):
    return torch.nn.functional.interpolate(batch[0][:, :1], (28, 28))


def test_an_autoencoder_is_scored_at_every_audit(tmp_path):
    scores = [ReconstructionError(), FisherNovelty(sketch=4)]
    novel = ProbeSet.from_tensors(
        torch.zeros(5, 1, 28, 28).index_fill_(0, torch.arange(2), 0.9) + 0.01 * digits(5, 3).images
    )
    callback = NoveltyCallback(digits(6, 1), scores, inliers=digits(40, 2), novel=novel, on_error="raise")
    one = fit(tmp_path, callback, module=Module(), logger="tensorboard")

    events = read_events(tmp_path / "tb")
    for score in ("reconstruction", "fisher"):
        assert scalar_steps(events, f"audit/novelty/{score}") == [0, 3, 7]
        assert scalar_steps(events, f"audit/novelty/{score}/rank_correlation") == [3, 7]
        assert image_steps(events, f"audit_novelty/{score}/most_novel") == [0, 3, 7]
        for group, count in (("probes", 6), ("novel", 5)):
            histograms = events.Histograms(f"audit_novelty/{score}/{group}")
            assert [(each.step, each.histogram_value.num) for each in histograms] == [
                (0, count),
                (3, count),
                (7, count),
            ]
        auroc = callback.last_record.metrics[f"novelty/{score}/auroc"].value
        assert float(one.callback_metrics[f"audit/novelty/{score}/auroc"]) == pytest.approx(auroc)
    assert set(callback.last_record.metrics) >= {"novelty/fisher/aupr_novel", "novelty/fisher/fpr_at_95tpr_ood"}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_is_chosen_by_novelty_and_a_resumed_run_goes_on(tmp_path):
    def audit():
        return NoveltyCallback(tiny_probes(), [Energy()], novel=tiny_probes(seed=4), on_error="raise")

    checkpoint = ModelCheckpoint(
        tmp_path / "checkpoints", monitor="audit/novelty/energy/auroc", mode="max", save_last=True
    )
    first = audit()
    fit(tmp_path / "first", first, checkpoint, enable_checkpointing=True)
    assert checkpoint.best_model_score is not None

    second = audit()
    again = ModelCheckpoint(checkpoint.dirpath, monitor=checkpoint.monitor, mode="max", save_last=True)
    resumed = trainer(tmp_path / "second", [second, again], max_epochs=3, enable_checkpointing=True)
    resumed.fit(TinyModule(), loader(), loader(3, seed=6), ckpt_path=checkpoint.last_model_path, weights_only=True)
    assert "novelty/energy/rank_correlation" in second.last_record.metrics
    assert second.state_dict()["pictures"] == {}  # a CSV logger draws nothing
    assert copy.deepcopy(second).state_key == first.state_key


def test_conditions_are_told_by_type_and_level(tmp_path):
    probes = ProbeSet.from_tensors(pictures(40), labels=torch.arange(40) % 3)
    callback = NoveltyCallback(
        probes, [Energy(), Mahalanobis()], inliers=tiny_probes(60, seed=3), conditions=["noise", "blur"]
    )
    one = fit(tmp_path, callback)

    estimates = {
        key: estimate for key, estimate in callback.last_record.metrics.items() if "noise_" in key or "blur_" in key
    }
    assert len(estimates) == 2 * 2 * 5
    model = one.lightning_module.net.eval()
    with torch.no_grad():
        clean, noisy = (
            -model(images).double().logsumexp(dim=1) for images in (probes.images, condition_probes(probes, "noise", 5))
        )
    expected = novelty_auroc(clean, noisy)
    assert estimates["novelty/energy/noise_5/auroc"].value == pytest.approx(expected)
    assert float(one.callback_metrics["audit/novelty/energy/noise_5/auroc"]) == pytest.approx(expected)
    low, high = estimates["novelty/energy/noise_5/auroc"][1:3]
    assert low <= expected <= high
    with pytest.raises(ConfigurationError, match="`condition` to be one of"):
        NoveltyCallback(probes, [Energy()], conditions=["fog"])


def test_a_classifier_that_returns_probabilities_scores_as_with_logits():
    net = tiny_net()
    given = {"scores": [GradientNorm(), Energy()]}
    logits = NoveltyAuditor(tiny_probes(), **given).audit(net)
    softmax = NoveltyAuditor(tiny_probes(), **given).audit(torch.nn.Sequential(*net, torch.nn.Softmax(dim=1)))

    for name, values in logits.scores.items():
        torch.testing.assert_close(softmax.scores[name], values, rtol=1e-3, atol=0)


def test_mistakes_come_to_light_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="`scores` to hold one novelty score or more"):
        NoveltyCallback(tiny_probes(), [])
    with pytest.raises(ConfigurationError, match="`scores` to be a list of NoveltyScore"):
        NoveltyCallback(tiny_probes(), ["energy"])
    with pytest.raises(ConfigurationError, match="`inliers`, familiar images"):
        NoveltyCallback(tiny_probes(), [FisherNovelty()])
    with pytest.raises(
        ConfigurationError, match=r"`novel` to be a ProbeSet, or the path of a saved one, but got Tensor\.$"
    ):
        NoveltyCallback(tiny_probes(), [Energy()], novel=pictures())
    with pytest.raises(ConfigurationError, match="different names, but got several called 'audit'"):
        fit(tmp_path, NoveltyCallback(tiny_probes(), [Energy()]), AuditCallback(tiny_probes()))
    with pytest.raises(ConfigurationError, match="one shape"):
        fit(tmp_path, NoveltyCallback(tiny_probes(), [ReconstructionError()]))
    headless = TinyModule(net=torch.nn.Sequential(*tiny_net(), torch.nn.Tanh()))
    with pytest.raises(ConfigurationError, match="ends in one linear layer for the scores energy"):
        fit(tmp_path, NoveltyCallback(tiny_probes(), [Energy(), ODIN()]), module=headless)
    with pytest.raises(ConfigurationError, match=r"`conditions` to be a list of str .* 'blur'\. Pass names such as"):
        NoveltyCallback(tiny_probes(), [Energy()], conditions="blur")
    misspelt = FisherNovelty(parameters=["decodr.*.weight"])
    with pytest.raises(ConfigurationError, match=r"'decodr\.\*\.weight' matches none"):
        fit(tmp_path, NoveltyCallback(digits(6, 1), [misspelt], inliers=digits(9, 2)), module=Module())
    with pytest.raises(ConfigurationError, match=r"images of `novel` to have the shape of the probes, \(3, 8, 8\)"):
        NoveltyCallback(tiny_probes(), [Energy()], novel=digits(5, 3))


def test_scores_of_classifiers_are_refused_for_an_autoencoder_with_those_that_suit(tmp_path):
    callback = NoveltyCallback(digits(6, 1), [ReconstructionError(), Energy(), Entropy()])
    wanted = r"a classifier for the scores energy, entropy, but the outputs are no logits. .*ReconstructionError\(\)"
    with pytest.raises(ConfigurationError, match=wanted):
        fit(tmp_path, callback, module=Module())


def test_gradcon_follows_a_training_from_its_first_step(tmp_path):
    """Before it there is no reference, and the score is the error."""
    records = []

    class Watch(NoveltyCallback):
        def _audit(self, trainer, model, step):
            super()._audit(trainer, model, step)
            records.append(self.last_record)

    scores = [ReconstructionError(), GradConScore("constraint", beta=0.5)]
    module = Module(loss="mse", constraint=0.03)
    fit(tmp_path, Watch(digits(6, 1), scores, on_error="raise"), module=module)

    assert [record.step for record in records] == [0, 3, 7]
    assert torch.equal(records[0].scores["gradcon"], records[0].scores["reconstruction"])
    after = GradConScore(module.constraint.references, prefix="autoencoder.decoder.", beta=0.5)
    with undisturbed(module):
        expected = after.score(Subject(module), digits(6, 1).images)
    torch.testing.assert_close(records[2].scores["gradcon"], expected)
    assert (records[2].scores["gradcon"] - records[2].scores["reconstruction"]).abs().min() > 1e-3


class Broken(Energy):
    name = "broken"

    def score(self, features, logits):
        return super().score(features, logits).index_fill(0, torch.tensor([0]), torch.nan)


@pytest.mark.parametrize("make", [AuditCallback, NoveltyCallback])
def test_a_useless_score_is_an_error_that_names_probe_and_layer_or_a_warning(tmp_path, make):
    scores = [Broken(), GradNorm()]
    given = {"novelty": scores} if make is AuditCallback else {"scores": scores}
    sentence = r"`broken` of layer `net.6` was left out: it is NaN or inf for 1 of 6 probes, first for 'probe_000'"
    with pytest.raises(NoveltyError, match=sentence):
        fit(tmp_path / "raise", make(tiny_probes(), **given, on_error="raise"), num_sanity_val_steps=0)
    callback = make(tiny_probes(), **given)
    with pytest.warns(UserWarning, match=f"A novelty score says nothing.*{sentence}") as caught:
        fit(tmp_path / "warn", callback)
    assert len([each for each in caught if "novelty score" in str(each.message)]) == 1
    assert list(callback.last_record.scores) == ["gradnorm"]
    assert callback.last_record.step == 7


@pytest.mark.parametrize("make", [AuditCallback, NoveltyCallback])
def test_a_score_that_fails_costs_neither_the_others_nor_what_else_an_audit_says(tmp_path, make):
    module = TinyModule()
    with torch.no_grad():
        module.net[6].bias.sub_(100)
    scores = {"novelty" if make is AuditCallback else "scores": [ViM(dimensions=2), GradNorm()]}
    given = {**scores, "inliers": tiny_probes(12, seed=3)}
    sentence = "`vim` of layer `net.6` was left out because it failed: Expected the largest logit to be positive"
    with pytest.raises(NoveltyError, match=sentence):
        fit(tmp_path / "raise", make(tiny_probes(), **given, on_error="raise"), module=copy.deepcopy(module))
    callback = make(tiny_probes(), **given)
    with pytest.warns(UserWarning, match=f"audits go on without it.*{sentence}"):
        one = fit(tmp_path / "warn", callback, module=module, logger="tensorboard")

    assert list(callback.last_record.scores) == ["gradnorm"]
    assert "audit/novelty/gradnorm" in one.callback_metrics
    if make is AuditCallback:
        assert "audit/gradcam/why/relevance_mass/core" in one.callback_metrics
        assert image_steps(read_events(tmp_path / "warn" / "tb"), "audit_panel/000_probe_000") == [0, 3, 7]


def test_an_audit_in_which_every_score_fails_says_why(tmp_path):
    module = TinyModule()
    with torch.no_grad():
        module.net[6].bias.sub_(100)
    callback = NoveltyCallback(tiny_probes(), [ViM(dimensions=2)], inliers=tiny_probes(12, seed=3))
    with pytest.warns(UserWarning, match="`vim` of layer `net.6` was left out because it failed") as caught:
        fit(tmp_path, callback, module=module, logger="tensorboard")
    assert len([each for each in caught if "novelty score" in str(each.message)]) == 1
    assert callback.last_record.scores == {}


# ---- the whole validation set


def expected_mean(module, score):
    """The mean of a score over the validation images by a loop over the trained model."""
    module.eval()
    values = []
    with torch.no_grad():
        for images, _ in loader(3, seed=6):
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
    callback = AuditCallback(
        tiny_probes(), novelty=[GradNorm(), MaxSoftmax(), Mahalanobis()], inliers=tiny_probes(12, seed=3),
        watch_validation=True, every_n_epochs=None, at_start=False, on_error="raise",
    )  # fmt: skip
    callback.auditor.prepare(module)
    look = sum(forwards)
    # What `choose_layer` says it costs, the trace, and one try of everything.
    assert look <= 2 * 17 + 6 + 4 * 2
    forwards.clear()
    one = fit(tmp_path, callback, module=module, logger="tensorboard", num_sanity_val_steps=0)

    assert calls == [4] * 6
    plain = []
    other = Counting()
    other.net[0].register_forward_hook(lambda _module, given, _output: plain.append(given[0].shape[0]))
    fit(tmp_path / "plain", module=other, num_sanity_val_steps=0)
    # Beside the first look at two probes, before training, nothing was run.
    assert sorted(forwards[-len(plain) :]) == sorted(plain)
    assert sum(forwards[: -len(plain)]) == look

    events = read_events(tmp_path / "tb")
    for score in (GradNorm(), MaxSoftmax()):
        key = f"audit/validation/novelty/{score.name}"
        assert scalar_steps(events, key) == [3, 7]
        assert float(one.callback_metrics[key]) == pytest.approx(expected_mean(module, score), rel=1e-5)
        histograms = events.Histograms(f"audit_novelty/{score.name}/validation")
        assert [(each.step, each.histogram_value.num) for each in histograms] == [(3, 12), (7, 12)]
    # What must learn from inliers would be a model behind.
    assert not any("validation/novelty/mahalanobis" in key for key in one.callback_metrics)


def test_neither_a_sanity_check_nor_validate_is_watched(tmp_path):
    callback = AuditCallback(tiny_probes(), watch_validation=True, every_n_epochs=None, at_start=False)
    one = fit(tmp_path, callback, epochs=1, num_sanity_val_steps=2)
    assert [row for row in rows(tmp_path) if any("validation" in key for key in row)]
    assert float(one.callback_metrics["audit/validation/novelty/gradnorm"]) < 0
    seen = dict(one.callback_metrics)
    one.validate(TinyModule(), loader(3, seed=6), verbose=False)
    assert "audit/validation/novelty/gradnorm" not in one.callback_metrics or (
        one.callback_metrics["audit/validation/novelty/gradnorm"] == seen["audit/validation/novelty/gradnorm"]
    )
    module = TinyModule()
    assert not any(part._forward_hooks for part in module.modules())


def test_validation_images_without_a_finite_score_are_counted_not_averaged(tmp_path, caplog):
    class Broken(TinyModule):
        def validation_step(self, batch, batch_idx):
            images = batch[0].clone()
            if batch_idx == 0:
                images[0] = torch.nan
            return super().validation_step((images, batch[1]), batch_idx)

    callback = AuditCallback(
        tiny_probes(), watch_validation=True, every_n_epochs=None, at_start=False, on_error="raise"
    )
    with caplog.at_level("INFO"):
        one = fit(tmp_path, callback, module=Broken(), epochs=1, num_sanity_val_steps=0)

    assert bool(torch.isfinite(one.callback_metrics["audit/validation/novelty/gradnorm"]))
    assert "1 novelty score(s) of validation images are NaN or inf" in caplog.text


def test_a_validation_that_cannot_be_watched_is_told(tmp_path, caplog):
    class Elsewhere(TinyModule):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", batch[0].mean())

    callback = AuditCallback(
        tiny_probes(), watch_validation=True, on_error="raise", every_n_epochs=None, at_start=False
    )
    with caplog.at_level("INFO"):
        one = fit(tmp_path, callback, module=Elsewhere(), epochs=2)
    assert caplog.text.count("could not score the validation set") == 1
    assert not any("validation/novelty" in key for key in one.callback_metrics)


def test_panels_show_where_a_probe_is_novel(tmp_path):
    plain, located = (
        AuditCallback(tiny_probes(), locate_novelty=locate, on_error="raise", max_panels=1) for locate in (False, True)
    )
    for name, callback in (("plain", plain), ("located", located)):
        fit(tmp_path / name, callback, epochs=1, logger="tensorboard")
    record = located.last_record

    assert plain.last_record.novelty_maps == {}
    assert record.novelty_maps["gradnorm"].shape == (6, 8, 8)
    assert set(record.layer_shares) == {"net.0", "net.1", "net.6"}
    total = torch.stack(list(record.layer_shares.values())).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64))
    panels = [
        read_events(tmp_path / name / "tb").Images("audit_panel/000_probe_000")[-1] for name in ("plain", "located")
    ]
    assert panels[1].width * panels[1].height > panels[0].width * panels[0].height
