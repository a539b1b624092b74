"""Which probes are drawn, in which units, and what is written on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import Auditor, Why
from xai_callbacks.sinks import Film, PictureBook, color_scale
from xai_callbacks.sinks.pictures import density


@pytest.mark.parametrize(
    ("count", "most", "drawn"),
    [
        (6, 16, [0, 1, 2, 3, 4, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (6, 1, [0]),
        (6, 0, []),
    ],
)
def test_drawn_probes_are_evenly_spaced_from_the_first_to_the_last(count, most, drawn):
    assert PictureBook(tiny_probes(count), most).drawn == drawn


@pytest.mark.parametrize("count", range(1, 40, 3))
def test_as_many_probes_are_drawn_as_were_asked_for(count):
    probes = tiny_probes(count)
    for most in range(2, count + 1):
        assert len(set(PictureBook(probes, most).drawn)) == most


def test_density_is_in_logits_whatever_the_grid():
    """A map that says the same everywhere reads as the score itself, on any grid."""
    for side in (1, 4, 7):
        maps = torch.full((2, 3, side, side), 5.0 / side**2)
        assert density(maps) == pytest.approx(np.full((2, 3, side, side), 5.0))


def test_mean_density_is_the_logit_of_a_net_with_global_average_pooling():
    net = tiny_net()
    record = Auditor(tiny_probes(), [Why(of=0)]).audit(net)
    logits = record.outputs[:, 0] - net[6].bias[0].detach()
    assert density(record.heatmaps[0]).mean(axis=(1, 2)) == pytest.approx(logits.numpy(), rel=1e-4)


def test_classifiers_share_one_scale_and_regression_follows_the_range_of_the_targets():
    assert color_scale(tiny_probes()) == color_scale(tiny_probes(3, labels=None))
    for spread, limit in [(0.5, 1.0), (1.0, 1.0), (30.0, 100.0), (0.02, 0.1)]:
        targets = torch.tensor([2.0, 2.0 + spread, 2.0])
        scale = color_scale(tiny_probes(3, labels=None, class_names=None, targets=targets))
        assert (scale.limit, scale.unit) == (pytest.approx(limit), "target units")


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_targets_have_a_scale_too(value):
    targets = torch.full((3,), value)
    assert color_scale(tiny_probes(3, labels=None, class_names=None, targets=targets)).limit >= max(value, 1.0)


def test_caption_says_what_the_model_answered():
    probes = tiny_probes()
    record = Auditor(probes).audit(tiny_net())
    book = PictureBook(probes, 16)
    predicted = ("cat", "dog", "owl")[int(record.predictions[3])]
    assert book.caption(record, 3) == f"{predicted} ({float(record.confidences[3]):.2f})"


def test_caption_of_regression_is_the_value():
    probes = tiny_probes(3, labels=None, class_names=None, targets=torch.rand(3))
    record = Auditor(probes).audit(tiny_net(classes=1))
    assert PictureBook(probes, 3).caption(record, 1) == f"{float(record.predictions[1]):.3g}"


@pytest.mark.parametrize(
    "fields",
    [{}, {"labels": None}, {"labels": None, "class_names": None, "targets": torch.rand(6)}, {"masks": None}],
    ids=["labelled", "unlabelled", "regression", "without masks"],
)
def test_panels_and_filmstrips_are_pictures_that_depend_on_the_probe(fields):
    probes = tiny_probes(6, **fields)
    record = Auditor(probes).audit(tiny_net(classes=1 if "targets" in fields else 3))
    book, film = PictureBook(probes, 2), Film()
    film.add(record, book.drawn, tuple(book.caption(record, index) for index in book.drawn))

    panels = [book.panel(record, index) for index in book.drawn]
    strips = [book.filmstrip(film.frames, record.headings, position) for position in range(2)]
    for one, other in (panels, strips):
        assert one.dtype == np.uint8
        assert one.ndim == 3
        assert one.shape[2] == 3
        assert one.shape != other.shape or not np.array_equal(one, other)


def test_right_and_wrong_predictions_are_drawn_differently():
    right = tiny_probes(2)
    record = Auditor(right).audit(tiny_net())
    panels = []
    for label in (int(record.predictions[0]), (int(record.predictions[0]) + 1) % 3):
        probes = tiny_probes(2, labels=[label, 0], class_names=("same", "same ", "same  "))
        panels.append(PictureBook(probes, 1).panel(Auditor(probes).audit(tiny_net()), 0))
    assert not np.array_equal(*panels)
