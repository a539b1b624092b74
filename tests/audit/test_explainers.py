"""Several explainers in one audit: keys and maps of each, at what intervals they answer, and one that fails."""

from __future__ import annotations

import pytest
import torch

from tests.audit.alike import run_of, same_records
from tests.explaining import Brightness
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import (
    Auditor,
    Baselines,
    ConfigurationError,
    Every,
    GradCAM,
    History,
    IntegratedGradients,
    LayerCAM,
    Localization,
    Occlusion,
    Why,
)
from xai_callbacks.explainers import Explainer, Plan

METRICS = ("relevance_mass", "relevance_lift")
REGIONS = ("core", "spurious")


def keys_of(name, questions=("why", "why_rather_than", "why_not_certain")):
    return {
        f"{name}/{question}/{metric}/{region}" for question in questions for metric in METRICS for region in REGIONS
    }


def of_maps(metrics):
    return {key for key in metrics if any(f"/{metric}/" in key for metric in METRICS)}


def test_every_explainer_has_maps_and_keys_of_its_own():
    explainers = [GradCAM(), IntegratedGradients(8), GradCAM("0", name="early"), Occlusion(4)]
    auditor = Auditor(tiny_probes(), explainers=explainers)
    record = auditor.audit(tiny_net())

    names = ["gradcam", "integrated_gradients", "early", "occlusion"]
    assert list(record.maps) == names
    assert [maps.heatmaps.shape for maps in record.maps.values()] == [(3, 6, 8, 8)] * 4
    assert [maps.layer for maps in record.maps.values()] == ["2", "", "0", ""]
    assert of_maps(record.metrics) == set.union(*map(keys_of, names))
    assert record.per_probe.keys() >= set.union(*map(keys_of, names))
    assert record.failed == ()


def test_what_an_explainer_says_does_not_depend_on_the_others():
    probes, net = tiny_probes(), tiny_net()
    explainers = [Occlusion(4), LayerCAM("0"), GradCAM(), IntegratedGradients(8)]
    together = Auditor(probes, explainers=explainers).audit(net)
    for explainer in explainers:
        alone = Auditor(probes, explainers=[explainer]).audit(net)
        torch.testing.assert_close(together.maps[explainer.name].heatmaps, alone.heatmaps)
        for key in keys_of(explainer.name):
            assert together.metrics[key].value == pytest.approx(alone.metrics[key].value, rel=1e-4, nan_ok=True)


def test_the_first_explainer_gives_the_heatmaps_of_the_record():
    record = Auditor(tiny_probes(), explainers=[Occlusion(4), GradCAM()]).audit(tiny_net())

    assert record.heatmaps is record.maps["occlusion"].heatmaps
    assert record.layer == ""
    assert record.layer_reason == record.maps["occlusion"].reason
    assert "squares of 4 x 4" in record.layer_reason


def test_baselines_are_of_every_explainer_and_random_models_of_those_that_cost_nothing():
    explainers = [GradCAM(), IntegratedGradients(8)]
    record = Auditor(tiny_probes(), [Why()], explainers=explainers, measures=[Baselines()]).audit(tiny_net())

    for name in ("gradcam", "integrated_gradients"):
        for baseline in ("shift_p", "permuted_mass", "signed_share"):
            assert f"{name}/why/{baseline}/core" in record.metrics
    assert [key for key in record.metrics if key.endswith("/reference")] == [
        "gradcam/why/relevance_lift/core/reference",
        "gradcam/why/relevance_lift/spurious/reference",
    ]


def test_progress_of_costly_explainers_grows_within_a_chunk_and_ends_with_it():
    done = []
    auditor = Auditor(tiny_probes(12), explainers=[GradCAM(), Occlusion(4), IntegratedGradients(8)], chunk_size=6)
    auditor.audit(tiny_net(), on_progress=done.append)

    assert done == sorted(done)
    assert done[-1] == 12
    assert 6 in done
    assert any(0 < probes < 6 for probes in done)


# ---- an explainer that answers now and then


def test_every_second_audit_has_the_maps_of_an_explainer_that_answers_every_second_time():
    auditor, net = Auditor(tiny_probes(), explainers=[GradCAM(), Every(2, Occlusion(4))]), tiny_net()
    records = run_of(auditor, *[net] * 5)

    found = [list(record.maps) for record in records]
    assert found == [
        ["gradcam", "occlusion"],
        ["gradcam"],
        ["gradcam", "occlusion"],
        ["gradcam"],
        ["gradcam", "occlusion"],
    ]
    for record in records:
        assert (keys_of("occlusion") <= record.metrics.keys()) is ("occlusion" in record.maps)
        assert keys_of("gradcam") <= record.metrics.keys()
        assert record.failed == ()


def test_drift_of_an_explainer_that_answers_now_and_then_is_from_answer_to_answer():
    auditor = Auditor(tiny_probes(), [Why(0)], explainers=[GradCAM(), Every(2, Occlusion(4))])
    nets = [tiny_net(seed=seed) for seed in range(3)]
    records = run_of(auditor, *nets)
    expected = run_of(Auditor(tiny_probes(), [Why(0)], explainers=[Occlusion(4)]), nets[0], nets[2]).last

    assert "occlusion/why_0/drift" not in records[1].metrics
    assert records[2].metrics["occlusion/why_0/drift"] == expected.metrics["occlusion/why_0/drift"]


def test_an_interval_survives_a_resume(tmp_path):
    def auditor():
        return Auditor(tiny_probes(), [Why(0)], explainers=[Every(2, Occlusion(4)), GradCAM()])

    nets = [tiny_net(seed=seed) for seed in range(5)]
    expected = run_of(auditor(), *nets)
    for net in nets:
        run_of(auditor(), net, past=History(tmp_path))
    found = History(tmp_path)

    assert [("occlusion" in record.maps) for record in found] == [True, False, True, False, True]
    for one, other in zip(found, expected, strict=True):
        same_records(one, other, tolerance=0)


def test_a_new_run_begins_the_interval_anew():
    auditor, net = Auditor(tiny_probes(), [Why(0)], explainers=[Every(3, Occlusion(4))]), tiny_net()
    assert [list(record.maps) for record in run_of(auditor, net, net)] == [["occlusion"], []]
    assert list(auditor.audit(net).maps) == ["occlusion"]


def test_an_explainer_that_is_not_due_costs_nothing():
    auditor, net = Auditor(tiny_probes(), explainers=[GradCAM(), Every(2, Occlusion(4))]), tiny_net()
    history = run_of(auditor, net)
    calls = []
    net[0].register_forward_hook(lambda _module, given, _output: calls.append(len(given[0])))
    run_of(auditor, net, past=history)
    assert calls == [6]


@pytest.mark.parametrize("interval", [0, -1, 2.0, True, "2"])
def test_an_interval_is_a_count(interval):
    with pytest.raises(ConfigurationError, match="Expected `n` to be an integer of 1 or more"):
        Every(interval, GradCAM())


# ---- an explainer that fails


class Fails(Explainer):
    """Zeros, until it is told to fail: at the chunk that begins with a probe, or in another way."""

    name = "mine"

    def __init__(self, cost=1.0):
        self.cost = cost
        self.how = None
        self.chunks = 0

    def __repr__(self):
        return f"Fails({self.cost})"

    def prepare(self, trace, reference):
        return Plan(reason="nowhere", cost=self.cost)

    def explain(self, observation, plan):
        self.chunks += 1
        if self.how is not None:
            return self.how(observation, self.chunks)
        return torch.zeros(len(observation.posed), len(observation.images), 2, 2)


def raising(error, at=1):
    def how(observation, chunks):
        if chunks >= at:
            raise error
        return torch.zeros(len(observation.posed), len(observation.images), 2, 2)

    return how


@pytest.mark.parametrize("cost", [0.0, 1.0, 99.0], ids=["free", "cheap", "costly"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (raising(RuntimeError("no such thing")), "RuntimeError: no such thing."),
        (raising(KeyError("layer")), "KeyError: 'layer'."),
        (raising(ZeroDivisionError()), "ZeroDivisionError."),
        (raising(ValueError("a\nlong\nstory")), "ValueError: a."),
        (raising(IndexError("late"), at=2), "IndexError: late."),
        (
            lambda *_: torch.zeros(1, 2, 3),
            "to return heatmaps (Q, N, h, w) with (Q, N) = (3, 4), but got shape (1, 2, 3)",
        ),
        (lambda *_: None, "but got NoneType"),
    ],
    ids=["RuntimeError", "KeyError", "no words", "many words", "second chunk", "shape", "None"],
)
def test_an_explainer_that_fails_costs_itself_alone(how, said, cost):
    mine = Fails(cost)
    probes, net = tiny_probes(), tiny_net()
    auditor = Auditor(probes, explainers=[mine, GradCAM(), Occlusion(4)], chunk_size=4)
    plain = Auditor(probes, explainers=[GradCAM(), Occlusion(4)], chunk_size=4)
    history = run_of(auditor, net)
    assert list(history.last.maps) == ["mine", "gradcam", "occlusion"]
    mine.how, mine.chunks = how, 0
    second = run_of(auditor, net, past=history).last

    same_records(second, run_of(plain, net, net).last, tolerance=0)
    assert len(second.failed) == 1
    assert second.failed[0].startswith("The explainer `mine` failed and was left out. ")
    assert said in second.failed[0]
    assert mine.chunks <= 2, "it is not asked again in the same audit"


def test_an_explainer_that_recovers_answers_again_and_no_longer_counts_as_failed():
    mine, net = Fails(), tiny_net()
    auditor = Auditor(tiny_probes(), explainers=[GradCAM(), mine])
    history = run_of(auditor, net)
    mine.how = raising(RuntimeError("for now"))
    assert run_of(auditor, net, past=history).last.failed
    mine.how = None
    third = run_of(auditor, net, past=history).last

    assert third.failed == ()
    assert list(third.maps) == ["gradcam", "mine"]
    # Compared with the maps of the last audit that had any.
    assert "mine/why/drift" in third.metrics


@pytest.mark.parametrize("cost", [0.0, 99.0], ids=["free", "costly"])
def test_an_explainer_that_fails_at_the_first_audit_costs_itself_alone_with_baselines_too(cost):
    """Also where models with random weights are explained beside."""
    mine, net = Fails(cost), tiny_net()
    auditor = Auditor(tiny_probes(), [Why()], explainers=[mine, GradCAM()], measures=[Baselines()])
    auditor.prepare(net)
    mine.how = raising(RuntimeError("from now on"))
    record = auditor.audit(net)

    assert list(record.maps) == ["gradcam"]
    assert len(record.failed) == 1
    assert "gradcam/why/relevance_lift/core/reference" in record.metrics
    assert not any(key.startswith("mine/") for key in record.metrics)


def test_an_explainer_that_fails_on_random_models_alone_costs_its_reference_alone():
    class OfTrainedModels(Fails):
        """The first audit calls it once for the model itself; then come the copies."""

        def __init__(self):
            super().__init__(cost=0.0)
            self.how = raising(RuntimeError("not of random weights"), at=3)

    explainers = [OfTrainedModels(), GradCAM()]
    record = Auditor(tiny_probes(), [Why()], explainers=explainers, measures=[Baselines()]).audit(tiny_net())

    assert list(record.maps) == ["mine", "gradcam"]
    assert "gradcam/why/relevance_lift/core/reference" in record.metrics
    assert "mine/why/relevance_lift/core/reference" not in record.metrics
    assert ["random weights" in sentence for sentence in record.failed] == [True]


@pytest.mark.parametrize(
    "error", [RuntimeError("no such thing"), KeyError("layer")], ids=lambda error: type(error).__name__
)
def test_a_cheap_explainer_that_fails_is_refused_when_a_model_is_prepared(error):
    mine = Fails()
    mine.how = raising(error)
    with pytest.raises(ConfigurationError, match="Expected the explainer `mine` to explain two probes"):
        Auditor(tiny_probes(), explainers=[GradCAM(), mine]).prepare(tiny_net())


def test_an_explainer_that_cannot_be_prepared_is_refused_when_a_model_is_prepared():
    class Unprepared(Fails):
        def prepare(self, trace, reference):
            raise KeyError("layer")

    with pytest.raises(ConfigurationError, match="to suit the model, but it raised KeyError"):
        Auditor(tiny_probes(), explainers=[GradCAM(), Unprepared()]).prepare(tiny_net())


# ---- an explainer about the image


@pytest.mark.parametrize("baselines", [False, True])
def test_an_explainer_about_the_image_has_one_map_and_keys_without_a_question(baselines):
    measures = [Localization(), Baselines()] if baselines else None
    auditor = Auditor(tiny_probes(), explainers=[Brightness(), GradCAM()], measures=measures)
    first, second = run_of(auditor, tiny_net(), tiny_net())

    assert first.maps["brightness"].heatmaps.shape == (1, 6, 8, 8)
    judged = {key for key in first.metrics if key.startswith("brightness/")}
    assert {key for key in judged if key.split("/")[1] in METRICS and not key.endswith("/reference")} == {
        f"brightness/{metric}/{region}" for metric in METRICS for region in REGIONS
    }
    assert second.metrics["brightness/drift"].value == pytest.approx(0, abs=1e-12)
    assert keys_of("gradcam") <= first.metrics.keys()
    references = {f"brightness/relevance_lift/{region}/reference" for region in REGIONS}
    assert {key for key in judged if key.endswith("/reference")} == (references if baselines else set())
