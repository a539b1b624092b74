"""Pictures of evidence: which there are, and what is in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.callbacks.leaning import LeaningNet, leaning_probes, patch
from tests.explaining import Brightness
from xai_callbacks import Auditor, Every, GradCAM, LayerCAM, Why
from xai_callbacks.metrics.summary import Estimate
from xai_callbacks.render import ColorScale
from xai_callbacks.render.quadrants import Placed, render_quadrants
from xai_callbacks.sinks.evidence import cluster_pictures, quadrant_pictures
from xai_callbacks.trials import CueTrial

SCALE = ColorScale()
EFFECT, MASS = "cue/patch/effect", "gradcam/why/relevance_mass/spurious"


def leaning(gain=1.0):
    net = LeaningNet()
    with torch.no_grad():
        net.gain.fill_(gain)
    return net


@pytest.fixture(scope="module")
def probes():
    return leaning_probes()


@pytest.fixture(scope="module")
def record(probes):
    trials = [CueTrial(patch()), CueTrial(patch("corner", name="corner"))]
    return Auditor(probes, [Why(), Why("label")], novelty=[], trials=trials, clusters=True).audit(leaning(), step=7)


def with_values(record, **values):
    """The record with other values of each probe, under `used` and `looked`."""
    keys = {"used": EFFECT, "looked": MASS}
    return dataclasses.replace(
        record, per_probe={**record.per_probe, **{keys[name]: value for name, value in values.items()}}
    )


def quadrants(probes, record):
    return dict(quadrant_pictures(probes, record))


def test_only_a_cue_that_the_probes_carry_in_a_region_has_a_picture(probes, record):
    assert {"cue/patch/effect", "cue/corner/effect"} <= record.per_probe.keys()
    assert list(quadrants(probes, record)) == ["patch"]


def test_each_probe_stands_at_its_heat_and_its_effect(probes, record):
    expected = render_quadrants(
        [
            Placed(pixels.numpy(), float(looked), float(used))
            for pixels, looked, used in zip(
                probes.pixels, record.per_probe[MASS], record.per_probe[EFFECT], strict=True
            )
        ],
        chance=9 / 64,  # the area of the region
        threshold=0.03,
        title="Cue 'patch': looked at, and used | step 7",
        subtitle="32 of 32 probes | only what is used raises an alarm",
    )
    assert np.array_equal(quadrants(probes, record)["patch"], expected)


def test_the_threshold_is_that_of_the_rule(probes, record):
    told = {**record.metrics, "alarm/threshold": Estimate(0.5, None, None, None, 1, 0)}
    one, other = quadrants(probes, record), quadrants(probes, dataclasses.replace(record, metrics=told))
    assert not np.array_equal(one["patch"], other["patch"])


def test_probes_without_a_value_are_left_out_and_counted(probes, record):
    used = record.per_probe[EFFECT].clone()
    used[:30] = torch.nan
    half = quadrants(probes, with_values(record, used=used))["patch"]
    subset = with_values(record, used=used, looked=record.per_probe[MASS].index_fill(0, torch.arange(30), torch.nan))

    assert not np.array_equal(half, quadrants(probes, record)["patch"])
    assert np.array_equal(half, quadrants(probes, subset)["patch"])
    assert quadrants(probes, with_values(record, used=torch.full_like(used, torch.nan))) == {}


def test_a_trial_that_failed_has_no_picture(probes, record):
    left = {key: value for key, value in record.per_probe.items() if not key.startswith("cue/patch")}
    assert quadrants(probes, dataclasses.replace(record, per_probe=left)) == {}


def test_all_the_heat_on_the_cue_is_not_more_than_all(probes, record):
    """Sums in another order may round to more than 1."""
    looked = torch.full_like(record.per_probe[MASS], 1 + 2**-52)
    assert list(quadrants(probes, with_values(record, looked=looked))) == ["patch"]


def test_probes_without_masks_or_without_a_cue_have_no_picture(probes):
    for given, trials in ((leaning_probes(masks=None), [CueTrial(patch("corner"))]), (probes, [])):
        assert quadrants(given, Auditor(given, novelty=[], trials=trials).audit(leaning())) == {}


def test_each_class_has_a_picture_of_its_kinds_of_heatmaps(probes, record):
    found = dict(cluster_pictures(probes, record, SCALE))
    assert set(found) == {"red", "green"}
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in found.values())


def test_pictures_are_the_same_each_time(probes, record):
    for pictures in (lambda: quadrants(probes, record), lambda: dict(cluster_pictures(probes, record, SCALE))):
        one, other = pictures(), pictures()
        assert {name: picture.tobytes() for name, picture in one.items()} == {
            name: picture.tobytes() for name, picture in other.items()
        }


def test_there_are_no_kinds_without_clustering(probes):
    record = Auditor(probes, novelty=[]).audit(leaning())
    assert dict(cluster_pictures(probes, record, SCALE)) == {}


def test_at_most_six_classes_are_drawn_those_with_most_kinds_first(record):
    (red, _green) = record.clusters.classes
    # Many classes with two kinds or one, in no order.
    kinds = [dataclasses.replace(red, label=label, clusters=red.clusters[: 1 + label % 2]) for label in range(8)]
    assert len(kinds[1].clusters) == 2
    many = dataclasses.replace(record, clusters=record.clusters._replace(classes=tuple(kinds)))
    plain = leaning_probes(class_names=None)
    assert [name for name, _picture in cluster_pictures(plain, many, SCALE)] == list("135702")


# ---- several explainers


def test_evidence_is_of_the_first_explainer_that_answers_questions(probes, record):
    trials, questions = [CueTrial(patch())], [Why(), Why("label")]
    explainers = [Brightness(), GradCAM(), LayerCAM()]
    auditor = Auditor(probes, questions, explainers=explainers, novelty=[], trials=trials, clusters=True)
    found = auditor.audit(leaning(), step=7)

    assert np.array_equal(quadrants(probes, found)["patch"], quadrants(probes, record)["patch"])
    one, other = (dict(cluster_pictures(probes, each, SCALE)) for each in (found, record))
    assert one.keys() == other.keys() != set()
    for name, picture in one.items():
        assert np.array_equal(picture, other[name])


def test_clusters_are_of_one_explainer_at_every_audit(probes):
    """Where it does not answer, there are none, rather than those of another."""
    explainers = [Every(2, GradCAM()), LayerCAM()]
    auditor = Auditor(probes, [Why("label")], explainers=explainers, novelty=[], clusters=True)
    records = [auditor.audit(leaning(), step=step) for step in range(3)]

    assert [record.clusters is not None for record in records] == [True, False, True]
    assert ["cluster/count" in record.metrics for record in records] == [True, False, True]
    assert dict(cluster_pictures(probes, records[1], SCALE)) == {}
    for before, after in zip(records[0].clusters.classes, records[2].clusters.classes, strict=True):
        assert [cluster.number for cluster in before.clusters] == [cluster.number for cluster in after.clusters]


def test_an_audit_without_heatmaps_has_no_evidence_pictures(probes):
    trials = [CueTrial(patch())]
    record = Auditor(probes, [Why("label")], explainers=[], novelty=[], trials=trials, clusters=True).audit(leaning())
    assert record.metrics["cue/patch/effect"].valid == 32
    assert quadrants(probes, record) == {}
    assert dict(cluster_pictures(probes, record, SCALE)) == {}
