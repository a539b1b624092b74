"""Tests of heatmaps: values against slow twins, verdicts on maps that are known to be good or to know nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from tests.explaining import Brightness
from tests.measures.records import audit, context, map_set, measured, past, random_maps
from tests.tiny import tiny_probes
from xai_callbacks import (
    Auditor,
    Every,
    GradCAM,
    History,
    InputXGradient,
    MapClusters,
    Occlusion,
    ProbeSet,
    Trust,
    Why,
    WhyNotCertain,
)
from xai_callbacks.access import randomised_copy
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.metrics import sobel_magnitude
from xai_callbacks.metrics.trust import blurred, permuted_maps, shifted_maps
from xai_callbacks.record import PerProbe, interval

PROBES = 40


class Own(Explainer):
    """The maps that a function of the images gives, whatever the model and the question."""

    def __init__(self, name, draw):
        super().__init__(name)
        self.draw = draw

    def prepare(self, trace, reference):
        return Plan(reason="no model")

    def explain(self, observation, plan):
        return self.draw(observation.images).float().expand(len(observation.posed), -1, -1, -1)


def noise(images):
    """A map for each image that has nothing to do with it."""
    seeds = [int(1e6 * float(image.sum())) for image in images]
    return torch.stack([torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


EDGES, NOISE = Own("edges", sobel_magnitude), Own("noise", noise)
CENTRE = Own("centre", lambda images: torch.hann_window(8).outer(torch.hann_window(8)).expand(len(images), 8, 8))
EMPTY = Own("empty", lambda images: torch.zeros(len(images), 8, 8))


def blobs(count, seed):
    """A red, green or blue spot somewhere on noise; its colour is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 + 0.2 * torch.rand(count, 3, 16, 16, generator=generator)
    labels = torch.arange(count) % 3
    for image, label, (row, column) in zip(
        images, labels, torch.randint(12, (count, 2), generator=generator).tolist(), strict=True
    ):
        image[label, row : row + 4, column : column + 4] += 0.4
    return images, labels


@cache
def trained(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    images, labels = blobs(120, seed + 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


def probes(count=PROBES):
    images, labels = blobs(count, 99)
    return ProbeSet.from_tensors(images, labels)


def audited(*explainers, net=None, questions=None, measures=None, count=PROBES, **arguments):
    asked, measures = questions or [Why()], [Trust()] if measures is None else measures
    auditor = Auditor(probes(count), asked, explainers=list(explainers), novelty=[], measures=measures)
    record = auditor.audit(trained() if net is None else net, **arguments)
    assert record.failed == ()
    return record


def verdicts(record):
    """Those on maps; what was measured of those in doubt is in doubt as well."""
    return {key: said for key, said in record.trust.items() if key != "cluster"}


# ---- verdicts


def test_a_method_that_shows_what_a_trained_net_goes_by_passes_and_those_that_know_nothing_fail():
    record = audited(GradCAM(), InputXGradient(), EDGES, NOISE, CENTRE)

    assert record.metrics["accuracy"].value > 0.9
    assert verdicts(record) == {
        "gradcam/why": "passed",
        "input_x_gradient/why": "passed",
        "edges/why": "fails the randomisation test",  # they see the spot, without a model
        "noise/why": "fails the randomisation test and the deletion test",
        "centre/why": "fails the randomisation test and the deletion test",
    }
    assert record.metrics["edges/why/trust/randomised"].value == pytest.approx(1)
    assert record.metrics["centre/why/trust/randomised"].chance == pytest.approx(1)
    about = [note for note in record.notes if "edges/why" in note]
    assert about == [
        "The heatmaps `edges/why` fail the randomisation test: random weights draw the like (randomised: rank "
        f"correlation 1, {record.metrics['edges/why/trust/randomised'].chance:.2g} by chance)."
    ]


def test_good_maps_pass_whatever_the_net():
    found = [audited(GradCAM(), net=trained(seed)).trust["gradcam/why"] for seed in range(4)]
    assert found == ["passed"] * 4


def test_maps_that_know_nothing_pass_the_deletion_test_in_one_of_forty_cases():
    """Paired differences of areas by maps that are exchangeable are symmetric around 0; these have heavy tails."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(400, PROBES, generator=generator) + torch.randn(400, PROBES, generator=generator) ** 3
    passed = sum((interval(values.double())[0] or 0) > 0 for values in drawn)
    assert 2 <= passed <= 20  # 10 are expected


def test_mostly_empty_maps_fail():
    record = audited(EMPTY)
    assert verdicts(record) == {"empty/why": "fails the emptiness test"}
    assert record.metrics["empty/why/trust/degenerate"].value == 1
    assert math.isnan(record.metrics["empty/why/trust/deletion"].value)


def test_maps_of_nothing_asked_are_not_counted_as_empty():
    maps = random_maps(2, 40)
    maps[0, :10] = 0.0
    given = audit(
        tiny_probes(40), {"gradcam": map_set(maps)}, facts=torch.zeros(2, 40).long(), foils=-torch.ones(2, 40).long()
    )
    given.facts[0, :8], given.foils[0, 8] = -1, 0  # no label, and "why cat, rather than cat?"
    found = measured(Trust(), given, around=context(tiny_probes(40), model=Fake(maps)))
    degenerate = found["gradcam/why/trust/degenerate"].values
    assert degenerate[:11].isnan().tolist() == [True] * 9 + [False] * 2
    assert degenerate.nansum() == 1


def test_a_question_whose_foil_is_the_fact_is_tested_as_any():
    record = audited(GradCAM(), questions=[WhyNotCertain()])
    assert record.metrics["gradcam/why_not_certain/trust/deletion"].valid == PROBES


# ---- values


def test_likeness_is_that_of_maps_of_copies_made_by_hand():
    record, net = audited(GradCAM(), questions=[Why(1)]), trained()
    own, given = record.maps["gradcam"].heatmaps[0], probes()

    def spearman(one, other):
        return spearmanr(one.flatten(), other.flatten()).statistic

    def twin(copies):
        found = []
        for copied in copies:
            record = Auditor(given, [Why(1)], explainers=[GradCAM()], novelty=[]).audit(copied)
            pairs = list(zip(own[:3], record.maps["gradcam"].heatmaps[0], strict=False))
            found.append(torch.tensor([spearman(*pair) for pair in pairs]))
        return torch.stack(found).mean(dim=0)

    random = [randomised_copy(net, given.images, seed, chunk_size=16) for seed in range(3)]
    half = [randomised_copy(net, given.images, 3, share=0.5, chunk_size=16)]
    for test, copies in (("randomised", random), ("cascade_0.5", half)):
        torch.testing.assert_close(record.per_probe[f"gradcam/why_1/trust/{test}"][:3], twin(copies).double())


def test_areas_are_those_of_images_altered_one_by_one():
    shares, net, given = (0.1, 0.3), trained(), probes()
    record = audited(InputXGradient(), measures=[Trust(shares=shares, cascade=())], questions=[Why("label")])
    maps, fills = record.maps["input_x_gradient"].heatmaps[0], blurred(given.images)
    orders = {
        "own": maps,
        "random": permuted_maps(torch.arange(256.0).view(16, 16).expand(PROBES, 16, 16), 0),
        "shifted": shifted_maps(maps[None], 0)[0],
    }

    def area(index, order, keep):
        heights = []
        ranked = orders[order][index].flatten().argsort(descending=True)
        for share in shares:
            image, fill = given.images[index].flatten(1).clone(), fills[index].flatten(1)
            places = ranked[: round(share * 256)]
            if keep:
                image, fill = fill.clone(), image
            image[:, places] = fill[:, places]
            with torch.no_grad():
                heights.append(float(net(image.view(1, 3, 16, 16))[0, given.labels[index]]))
        return sum(heights) / 2

    for index in range(3):
        expected = {
            "deletion": area(index, "random", False) - area(index, "own", False),
            "insertion": area(index, "own", True) - area(index, "random", True),
            "random_map": area(index, "shifted", False) - area(index, "own", False),
        }
        for test, value in expected.items():
            found = float(record.per_probe[f"input_x_gradient/why_label/trust/{test}"][index])
            assert found == pytest.approx(value, abs=1e-4), test


def test_cost_is_what_the_docstring_says():
    calls = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = trained()

        def forward(self, images):
            calls.append(len(images))
            return self.net(images)

    asked = {"questions": [Why(), Why(1)], "net": Counting()}
    without = audited(GradCAM(), Brightness(), measures=[], **asked)
    before, calls[:] = sum(calls), []
    tested = audited(GradCAM(), Brightness(), measures=[Trust(cascade=(0.5,), shares=(0.1, 0.2))], **asked)
    # Four copies; two maps with three passes for each of two shares; one grid with two. No batch norm to be settled.
    assert sum(calls) - before == PROBES * (4 + 2 * 3 * 2 + 2 * 2)
    assert without.trust == {}
    assert set(verdicts(tested)) == {"gradcam/why", "gradcam/why_1", "brightness"}


# ---- what is not tested


class Fake:
    """Answers by the mean brightness, and gives maps of copies."""

    def __init__(self, maps, copies=None):
        self.maps, self.copies, self.asked = maps, copies, 0

    def answers(self, images, rows):
        return interpolate(images, 1).flatten(1).sum(dim=1).expand(len(self.maps), len(rows))

    def randomised(self, seed, *, share=1.0, max_cost=0.0, as_posed=False):
        assert as_posed
        self.asked += 1
        if self.copies is None:
            raise RuntimeError("no copy\nof this model")
        return {"gradcam": self.copies}


def test_an_untrained_model_is_not_tested_and_its_maps_are_not_failed():
    record = audited(EDGES, untrained=True)
    assert verdicts(record) == {"edges/why": "not tested: the model has not been trained"}
    assert not any("/trust/" in key for key in record.metrics)


def test_fewer_than_thirty_probes_are_not_tested():
    assert verdicts(audited(EDGES, count=29)) == {"edges/why": "not tested: fewer than 30 probes"}


def test_what_is_too_costly_for_random_weights_does_not_pass():
    explainer = Occlusion(8, 8)  # four places
    record = audited(explainer, measures=[Trust(max_cost=3)])
    assert verdicts(record) == {"occlusion/why": "not tested: not compared with random weights"}
    assert record.metrics["occlusion/why/trust/random_map"].low > 0
    assert verdicts(audited(explainer, measures=[Trust(max_cost=4)])) == {"occlusion/why": "passed"}


def test_a_map_about_the_image_has_no_score_to_lose():
    record = audited(Brightness())
    assert {key.rpartition("/")[2] for key in record.metrics if "/trust/" in key} == {
        "randomised", "cascade_0.25", "cascade_0.5", "cascade_0.75", "degenerate",
    }  # fmt: skip
    assert verdicts(record) == {"brightness": "fails the randomisation test"}


def test_a_model_that_cannot_be_copied_costs_the_comparison_alone():
    maps, given = random_maps(2, 40), tiny_probes(40)
    around = context(given, model=Fake(maps))
    found = measured(Trust(), audit(given, {"gradcam": map_set(maps)}), around=around)
    assert {key.rpartition("/")[2] for key in found} == {"deletion", "insertion", "random_map", "degenerate"}
    assert "Heatmaps were not compared with those of random weights. RuntimeError: no copy." in around.notes
    assert around.trust["gradcam/why"] == "fails the deletion test"


# ---- over a run


def test_a_verdict_holds_until_the_next_test():
    measure, history = Trust(every=3), History()
    auditor = Auditor(probes(), [Why()], explainers=[GradCAM(), EDGES], novelty=[], measures=[measure])
    for step in range(6):
        history.append(auditor.audit(trained(), step=step, past=history, untrained=step == 0))
    tested = ["edges/why/trust/randomised" in record.metrics for record in history]
    assert tested == [False, True, False, False, True, False]
    assert history[0].trust["gradcam/why"] == "not tested: the model has not been trained"
    assert [verdicts(record) for record in history[1:]] == [
        {"gradcam/why": "passed", "edges/why": "fails the randomisation test"}
    ] * 5


def test_a_costly_explainer_is_tested_when_it_answers_and_its_verdict_stays():
    auditor = Auditor(
        probes(), [Why()], explainers=[GradCAM(), Every(2, Occlusion(8, 8))], novelty=[], measures=[Trust(every=4)]
    )
    history = History()
    for step in range(4):
        history.append(auditor.audit(trained(), step=step, past=history, untrained=step == 0))
    states = [record.trust["occlusion/why"].partition(":")[0] for record in history]
    assert states == ["not tested", "not tested", "passed", "passed"]
    assert [sum("/trust/degenerate" in key for key in record.metrics) for record in history] == [0, 1, 1, 0]


def test_other_settings_are_tested_anew():
    maps, given = random_maps(2, 40), tiny_probes(40)
    record = audit(given, {"gradcam": map_set(maps)}, explainers={"gradcam": "GradCAM()"})
    before = replace(record, trust={"gradcam/why": "passed", "gradcam/why_label": "passed"})
    before = replace(before, metrics={"gradcam/why/trust/degenerate": None})
    for settings, asked in (("GradCAM()", 0), ("GradCAM('layer3')", 1)):
        model = Fake(maps)
        around = context(given, model=model)
        Trust().measure(replace(record, explainers={"gradcam": settings}), past(before), around)
        assert model.asked == asked
        assert (around.trust["gradcam/why"] == "passed") == (asked == 0)


def test_kinds_of_heatmaps_that_fail_are_in_doubt():
    record = audited(NOISE, GradCAM(), measures=[MapClusters(), Trust()])
    assert record.doubt("cluster/worst_acc") == "fails the randomisation test and the deletion test"
    record = audited(GradCAM(), NOISE, measures=[MapClusters(), Trust()])
    assert "cluster" not in record.trust


def test_random_streams_and_weights_are_left_alone():
    net = trained()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    audited(GradCAM())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "`every` to be an integer"),
        ({"cascade": (0.5, 0.25)}, "`cascade` to be rising numbers in"),
        ({"cascade": 0.5}, "`cascade` to be rising numbers in"),
        ({"shares": (0.5, 1.0)}, "`shares` to be rising numbers in"),
        ({"shares": ()}, "`shares` to be one at least"),
        ({"max_cost": -1}, "`max_cost` to be a number of 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=f"Expected {words}"):
        Trust(**arguments)


def test_it_tells_its_settings():
    assert repr(Trust()) == "Trust(10, cascade=(0.25, 0.5, 0.75), shares=(0.05, 0.1, 0.2, 0.4), max_cost=8)"


def test_hiding_must_beat_a_random_order_and_a_shifted_map():
    """The one knows no smoothness, the other no habit of place: a map may beat either alone."""
    generator = torch.Generator().manual_seed(0)
    level, alike = torch.zeros(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
    better, worse = (torch.randn(40, generator=generator).double() / 10 + side for side in (1.0, -1.0))
    fails = "fails the deletion test"
    for deletion, random_map, verdict in (
        (better, better, "passed"),
        (better, worse, fails),
        (worse, better, fails),
    ):
        values = {"randomised": alike, "deletion": deletion, "random_map": random_map, "degenerate": level}
        assert Trust()._verdict({test: PerProbe(each, level) for test, each in values.items()})[0] == verdict
