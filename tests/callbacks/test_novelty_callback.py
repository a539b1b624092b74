"""Scores of probes while training, of autoencoders and classifiers, in loggers, monitors and pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks import runs
from tests.callbacks.runs import TinyModule
from tests.tiny import image_steps, pictures, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import (
    ODIN,
    AuditCallback,
    Auditor,
    Conditions,
    ConfigurationError,
    Energy,
    Entropy,
    FisherNovelty,
    GradCAM,
    GradConScore,
    GradientNorm,
    GradNorm,
    Mahalanobis,
    NoveltyError,
    NoveltyMap,
    ReconstructionError,
    Separation,
    ViM,
)
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.interventions import condition_probes
from xai_callbacks.metrics import novelty_auroc
from xai_callbacks.probes import ProbeSet
from xai_callbacks.reference import AutoencoderModule


def fit(folder, *callbacks, **options):
    torch.manual_seed(0)
    return runs.fit(folder, *callbacks, **options)


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


def scoring(probes, scores, *measures, inliers=None, **given):
    """A callback that asks nothing of the outputs."""
    auditor = Auditor(probes, [], novelty=scores, measures=list(measures), inliers=inliers)
    return AuditCallback(auditor, **{"on_error": "raise", "max_panels": 0, **given})


def test_an_autoencoder_is_scored_at_every_audit(tmp_path):
    scores = [ReconstructionError(), FisherNovelty()]
    novel = ProbeSet.from_tensors(
        torch.zeros(5, 1, 28, 28).index_fill_(0, torch.arange(2), 0.9) + 0.01 * digits(5, 3).images
    )
    callback = scoring(digits(6, 1), scores, Separation(novel), inliers=digits(40, 2), max_panels=6)
    one = fit(tmp_path, callback, module=Module(), logger="tensorboard")

    events = read_events(tmp_path / "tb")
    for score in ("reconstruction", "fisher"):
        assert scalar_steps(events, f"audit/novelty/{score}") == [0, 3, 7]
        assert scalar_steps(events, f"audit/novelty/{score}/rank_correlation") == [3, 7]
        assert image_steps(events, f"audit_summary/most_novel_{score}") == [0, 3, 7]
        histograms = events.Histograms(f"audit_summary/scores_{score}")
        assert [(each.step, each.histogram_value.num) for each in histograms] == [(0, 6), (3, 6), (7, 6)]
        auroc = callback.last_record.metrics[f"novelty/{score}/auroc"].value
        assert float(one.callback_metrics[f"audit/novelty/{score}/auroc"]) == pytest.approx(auroc)
    assert not [tag for tag in events.Tags()["images"] if not tag.startswith("audit_summary/most_novel_")]
    record = callback.last_record
    assert (record.outputs, record.questions, record.maps) == (None, (), {})
    assert set(callback.last_record.metrics) >= {"novelty/fisher/aupr_novel", "novelty/fisher/fpr_at_95tpr_ood"}


def test_a_checkpoint_is_chosen_by_novelty_and_a_resumed_run_goes_on(tmp_path):
    def audit():
        return scoring(tiny_probes(), [Energy()], Separation(tiny_probes(seed=4)))

    checkpoint = ModelCheckpoint(
        tmp_path / "checkpoints", monitor="audit/novelty/energy/auroc", mode="max", save_last=True
    )
    first = audit()
    fit(tmp_path / "first", first, checkpoint)
    assert checkpoint.best_model_score is not None

    second = audit()
    again = ModelCheckpoint(checkpoint.dirpath, monitor=checkpoint.monitor, mode="max", save_last=True)
    fit(tmp_path / "second", second, again, max_epochs=3, ckpt_path=checkpoint.last_model_path)
    assert [each.step for each in second.history] == [0, 3, 7, 11]
    assert "novelty/energy/rank_correlation" in second.last_record.metrics


def test_conditions_are_told_by_type_and_level(tmp_path):
    probes = ProbeSet.from_tensors(pictures(40), labels=torch.arange(40) % 3)
    conditions = Conditions(["noise", "blur"])
    callback = scoring(probes, [Energy(), Mahalanobis()], conditions, inliers=tiny_probes(60, seed=3))
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


def test_a_classifier_that_returns_probabilities_scores_as_with_logits():
    net = tiny_net()
    auditor = Auditor(tiny_probes(), [], novelty=[GradientNorm(), Energy()])
    logits, softmax = auditor.audit(net), auditor.audit(torch.nn.Sequential(*net, torch.nn.Softmax(dim=1)))

    for name, values in logits.scores.items():
        torch.testing.assert_close(softmax.scores[name], values, rtol=1e-3, atol=0)


def test_mistakes_come_to_light_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="Expected something to audit, but got nothing"):
        scoring(tiny_probes(), [])
    with pytest.raises(ConfigurationError, match="`novelty` to be a list of NoveltyScore"):
        scoring(tiny_probes(), ["energy"])
    with pytest.raises(ConfigurationError, match="`inliers`, familiar images"):
        scoring(tiny_probes(), [FisherNovelty()])
    with pytest.raises(ConfigurationError, match="one shape"):
        fit(tmp_path, scoring(tiny_probes(), [ReconstructionError()]))
    headless = TinyModule(net=torch.nn.Sequential(*tiny_net(), torch.nn.Tanh()))
    with pytest.raises(ConfigurationError, match="ends in one linear layer for the novelty scores energy"):
        fit(tmp_path, scoring(tiny_probes(), [Energy(), ODIN()]), module=headless)
    misspelt = FisherNovelty(parameters=["decodr.*.weight"])
    with pytest.raises(ConfigurationError, match=r"'decodr\.\*\.weight' matches none"):
        fit(tmp_path, scoring(digits(6, 1), [misspelt], inliers=digits(9, 2)), module=Module())
    with pytest.raises(ConfigurationError, match=r"images of `novel` to have the shape of the probes, \(3, 8, 8\)"):
        scoring(tiny_probes(), [Energy()], Separation(digits(5, 3)))


def test_scores_of_classifiers_are_refused_for_an_autoencoder_with_those_that_suit(tmp_path):
    callback = scoring(digits(6, 1), [ReconstructionError(), Energy(), Entropy()])
    wanted = r"a classifier for the scores energy, entropy, but the outputs are no logits. .*ReconstructionError\(\)"
    with pytest.raises(ConfigurationError, match=wanted):
        fit(tmp_path, callback, module=Module())


def test_gradcon_follows_a_training_from_its_first_step(tmp_path):
    """Before it there is no reference, and the score is the error."""
    scores = [ReconstructionError(), GradConScore("constraint", beta=0.5)]
    module = Module(loss="mse", constraint=0.03)
    callback = scoring(digits(6, 1), scores)
    fit(tmp_path, callback, module=module)

    records = list(callback.history)
    assert [record.step for record in records] == [0, 3, 7]
    assert torch.equal(records[0].scores["gradcon"], records[0].scores["reconstruction"])
    with undisturbed(module):
        expected = scores[1].score(Subject(module), digits(6, 1).images)
    torch.testing.assert_close(records[2].scores["gradcon"], expected)
    assert (records[2].scores["gradcon"] - records[2].scores["reconstruction"]).abs().min() > 1e-3


class Broken(Energy):
    name = "broken"

    def score(self, features, logits):
        return super().score(features, logits).index_fill(0, torch.tensor([0]), torch.nan)


def asking(probes, scores, inliers=None, **given):
    """A callback that asks the outputs the usual questions as well."""
    return AuditCallback(Auditor(probes, novelty=scores, inliers=inliers), **{"max_panels": 1, **given})


@pytest.mark.parametrize("make", [asking, scoring])
def test_a_useless_score_is_an_error_that_names_probe_and_layer_or_a_warning(tmp_path, make):
    scores = [Broken(), GradNorm()]
    sentence = r"`broken` of layer `net.6` was left out: it is NaN or inf for 1 of 6 probes, first for 'probe_000'"
    with pytest.raises(NoveltyError, match=sentence):
        fit(tmp_path / "raise", make(tiny_probes(), scores, on_error="raise"))
    callback = make(tiny_probes(), scores, on_error="warn")
    with pytest.warns(UserWarning, match=f"A novelty score says nothing.*{sentence}") as caught:
        fit(tmp_path / "warn", callback)
    assert len([each for each in caught if "novelty score" in str(each.message)]) == 1
    assert list(callback.last_record.scores) == ["gradnorm"]
    assert callback.last_record.step == 7


@pytest.mark.parametrize("make", [asking, scoring])
def test_a_score_that_fails_costs_neither_the_others_nor_what_else_an_audit_says(tmp_path, make):
    module = TinyModule()
    with torch.no_grad():
        module.net[6].bias.sub_(100)
    given = {"scores": [ViM(dimensions=2), GradNorm()], "inliers": tiny_probes(12, seed=3)}
    sentence = "`vim` of layer `net.6` was left out because it failed: Expected the largest logit to be positive"
    with pytest.raises(NoveltyError, match=sentence):
        fit(tmp_path / "raise", make(tiny_probes(), **given, on_error="raise"), module=copy.deepcopy(module))
    callback = make(tiny_probes(), **given, on_error="warn")
    with pytest.warns(UserWarning, match=f"audits go on without it.*{sentence}"):
        one = fit(tmp_path / "warn", callback, module=module, logger="tensorboard")

    assert list(callback.last_record.scores) == ["gradnorm"]
    assert "audit/novelty/gradnorm" in one.callback_metrics
    if make is asking:
        assert "audit/gradcam/why/relevance_mass/core" in one.callback_metrics
        assert image_steps(read_events(tmp_path / "warn" / "tb"), "audit_panel/000_probe_000") == [0, 3, 7]


def test_an_audit_in_which_every_score_fails_says_why(tmp_path):
    module = TinyModule()
    with torch.no_grad():
        module.net[6].bias.sub_(100)
    callback = scoring(tiny_probes(), [ViM(dimensions=2)], inliers=tiny_probes(12, seed=3), on_error="warn")
    with pytest.warns(UserWarning, match="`vim` of layer `net.6` was left out because it failed") as caught:
        fit(tmp_path, callback, module=module, logger="tensorboard")
    assert len([each for each in caught if "novelty score" in str(each.message)]) == 1
    assert callback.last_record.scores == {}


def test_panels_show_where_a_probe_is_novel(tmp_path):
    plain, located = (
        AuditCallback(Auditor(tiny_probes(), explainers=explainers), on_error="raise", max_panels=1)
        for explainers in ([GradCAM()], [GradCAM(), NoveltyMap()])
    )
    for name, callback in (("plain", plain), ("located", located)):
        fit(tmp_path / name, callback, max_epochs=1, logger="tensorboard")
    found = located.last_record.maps["novelty_map"]

    assert list(plain.last_record.maps) == ["gradcam"]
    assert (found.about, tuple(found.heatmaps.shape)) == ("image", (1, 6, 8, 8))
    assert "audit/novelty_map/relevance_mass/core" in read_events(tmp_path / "located" / "tb").Tags()["scalars"]
    panels = [
        read_events(tmp_path / name / "tb").Images("audit_panel/000_probe_000")[-1] for name in ("plain", "located")
    ]
    assert panels[1].width * panels[1].height > panels[0].width * panels[0].height
