"""Names and values of the scalars, and the page that groups them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.tiny import centre_masks, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet
from xai_callbacks.record import Estimate
from xai_callbacks.sinks import detail_scalars, finite, main_scalars
from xai_callbacks.sinks.scalars import layout


@pytest.fixture(scope="module")
def record():
    auditor, net = Auditor(tiny_probes(36)), tiny_net()
    auditor.audit(net)
    return auditor.audit(net)


def with_metrics(record, **metrics):
    return dataclasses.replace(record, metrics=metrics, seconds={"explain": 0.25, "judge": 0.5})


def test_every_metric_becomes_one_scalar_under_audit(record):
    scalars = main_scalars(record)
    assert scalars == {f"audit/{key}": estimate.value for key, estimate in record.metrics.items()}
    of_maps = {"audit/gradcam/why/relevance_mass/core", "audit/gradcam/why/drift"}
    assert {"audit/accuracy", "audit/switched"} | of_maps <= scalars.keys()


def test_details_hold_what_exists_and_nothing_else(record):
    estimates = {
        "plain": Estimate(0.5, None, None, None, 6, 0),
        "full": Estimate(0.5, 0.25, 0.75, 0.1, 40, 3),
    }
    assert detail_scalars(with_metrics(record, **estimates)) == {
        "audit_detail/full/low": 0.25,
        "audit_detail/full/high": 0.75,
        "audit_detail/full/chance": 0.1,
        "audit_detail/full/degenerate": 3.0,
        "audit_detail/seconds": 0.75,
    }


def test_what_is_not_finite_is_left_out():
    assert finite({"a": 1.0, "b": math.nan, "c": math.inf, "d": -math.inf, "e": 0.0}) == {"a": 1.0, "e": 0.0}


def charts(page):
    return {(category, name): chart for category, names in page.items() for name, chart in names.items()}


def test_layout_names_only_tags_that_are_written(record):
    written = finite({**main_scalars(record), **detail_scalars(record)}).keys()
    tags = [tag for _kind, tags in charts(layout(record.metrics)).values() for tag in tags]
    assert set(tags) <= written
    assert len(tags) == len(set(tags))


def test_layout_shows_every_metric(record):
    tags = {tag for _kind, tags in charts(layout(record.metrics)).values() for tag in tags}
    assert main_scalars(record).keys() <= tags


def test_layout_groups_by_question_and_names_region_and_chance(record):
    page = charts(layout(record.metrics, explainers=["gradcam"]))
    key = "gradcam/why_rather_than/relevance_mass/core"
    chance = record.metrics[key].chance
    _kind, tags = page["audit: gradcam why rather than", f"relevance mass, core (chance {chance:.2g})"]
    assert tags[0] == f"audit/{key}"


def test_layout_groups_several_explainers_by_question_and_those_about_the_image_by_name():
    estimate = Estimate(0.5, None, None, None, 6, 0)
    keys = ("gradcam/why/drift", "occlusion/why/drift", "bright/relevance_mass/core", "bright/drift", "accuracy")
    page = layout(dict.fromkeys(keys, estimate), explainers={"occlusion", "gradcam"})
    assert {category: set(names) for category, names in page.items()} == {
        "audit: gradcam why": {"drift"},
        "audit: occlusion why": {"drift"},
        "audit: bright": {"relevance mass, core", "drift"},
        "audit: probes": {"accuracy"},
    }


def test_layout_keeps_the_name_of_an_explainer_with_a_metric_of_the_same_name_apart():
    """A novelty score may be called like an explainer."""
    estimate = Estimate(0.5, None, None, None, 6, 0)
    page = layout({"gradcam/why/drift": estimate, "novelty/gradcam/auroc": estimate}, explainers=["gradcam"])
    assert set(page) == {"audit: gradcam why", "audit: novelty"}


def test_layout_draws_a_margin_where_there_is_an_interval(record):
    page = charts(layout(record.metrics))
    assert page["audit: probes", "confidence"] == [
        "Margin",
        ["audit/confidence", "audit_detail/confidence/low", "audit_detail/confidence/high"],
    ]
    few = Auditor(tiny_probes(4)).audit(tiny_net())
    assert charts(layout(few.metrics))["audit: probes", "confidence"] == ["Multiline", ["audit/confidence"]]


def test_layout_carries_the_prefix_of_the_logger(record):
    tags = {tag for _kind, tags in charts(layout(record.metrics, "run7-")).values() for tag in tags}
    assert all(tag.startswith("run7-audit") for tag in tags)


def test_layout_of_probes_without_masks_has_no_localization():
    record = Auditor(ProbeSet.from_tensors(torch.rand(4, 3, 8, 8))).audit(tiny_net())
    assert set(layout(record.metrics)) == {"audit: probes", "audit: novelty"}


def test_region_that_no_probe_has_is_no_scalar():
    masks = {"core": centre_masks(4)["core"], "spurious": torch.zeros(4, 8, 8, dtype=torch.bool)}
    record = Auditor(tiny_probes(4, masks=masks)).audit(tiny_net())
    names = finite({**main_scalars(record), **detail_scalars(record)})
    assert not [name for name in names if "spurious" in name]
