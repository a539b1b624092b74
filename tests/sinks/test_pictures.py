"""Which probes are drawn, in which units, and what is written on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.explaining import Brightness
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import Auditor, GradCAM, IntegratedGradients, Occlusion, ProbeSet, Why
from xai_callbacks.render import ColorScale, Tile, render_panel
from xai_callbacks.sinks import Film, PictureBook, color_scale
from xai_callbacks.sinks.pictures import density, truth


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
        assert (scale.limit, scale.unit) == (pytest.approx(limit), "units of the score")


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


# ---- several labels, several values


def of_logits(logits, **fields):
    """Probes of which a net gives these logits, and its record."""
    logits = torch.tensor(logits)
    probes = ProbeSet.from_tensors(torch.rand(len(logits), 3, 8, 8), names=list("abcdef"[: len(logits)]), **fields)
    rows = {image.numpy().tobytes(): row for image, row in zip(probes.images, logits, strict=True)}

    def net(images):
        return torch.stack([rows[image.numpy().tobytes()] for image in images])

    return probes, Auditor(probes, explainers=[], novelty=[]).audit(net)


LABELS = torch.tensor(
    [[1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [-1, 0, -1, 0, 0], [-1] * 5, [0, 1, 0, -1, 0]]
)
LOGITS = [
    [2.0, -1.0, -1.0, 0.5, -3.0],
    [1.0, 1.0, 1.0, 1.0, 1.0],
    [-1.0, -2.0, -0.5, -3.0, -3.0],
    [1.0, -1.0, -1.0, -1.0, -1.0],
    [-1.0, 3.0, -1.0, -1.0, -1.0],
    [-1.0, 3.0, -1.0, -1.0, -1.0],
]
NAMES = ("rain", "snow", "fog", "hail", "wind")


def test_captions_of_several_labels_are_those_that_the_model_finds_and_their_probabilities():
    probes, record = of_logits(LOGITS, labels=LABELS, class_names=NAMES)
    book = PictureBook(probes, 16)
    assert [book.caption(record, index) for index in range(6)] == [
        "rain (0.88), hail (0.62)",
        "rain (0.73), snow (0.73), fog (0.73) and 2 more",
        "none, at most fog (0.38)",
        "rain (0.73)",
        "snow (0.95)",
        "snow (0.95)",
    ]


def test_the_truth_of_several_labels_is_what_is_known():
    probes, _ = of_logits(LOGITS, labels=LABELS, class_names=NAMES)
    assert [truth(probes, index) for index in range(6)] == [
        "true: rain, hail",
        "true: rain, snow, fog and 2 more",
        "true: none of the labels",
        "true: none of the known labels",
        "",
        "true: snow",
    ]


def test_several_labels_are_right_if_all_that_are_known_are():
    probes, record = of_logits(LOGITS, labels=LABELS, class_names=NAMES)
    pictures = [PictureBook(probes, 16).panel(record, index) for index in range(6)]
    for index, verdict in enumerate(("right", "right", "right", "right", "unknown", "right")):
        known = truth(probes, index)
        said = f"predicted: {PictureBook(probes, 16).caption(record, index)}"
        expected = render_panel(
            probes.pixels[index].numpy(),
            [Tile("Image")],
            title=f"{probes.names[index]} | step 0",
            subtitle=f"{known} | {said}" if known else said,
            verdict=verdict,
            scale=ColorScale(),
        )
        assert np.array_equal(pictures[index], expected), index
    some = torch.tensor([[1, 0, 0, 0, 0]]).expand(6, 5)
    probes, record = of_logits(LOGITS, labels=some, class_names=NAMES)
    # One label of five is wrong.
    assert not np.array_equal(PictureBook(probes, 16).panel(record, 0), pictures[0])
    assert record.correct[0] == pytest.approx(0.8)


def test_captions_of_several_values_name_each():
    targets = torch.tensor([[0.5, 12.345, 0.25, 7.0], [1.0, 2.0, 3.0, 4.0]])
    values = [[0.125, 1.0, 2.5, 4.0], [1.0, 2.0, 3.0, 4.0]]
    probes, record = of_logits(values, targets=targets, target_names=("blur", "grain", "noise", "tilt"))
    assert PictureBook(probes, 2).caption(record, 0) == "blur 0.125, grain 1, noise 2.5 and 1 more"
    assert truth(probes, 0) == "true: blur 0.5, grain 12.3, noise 0.25 and 1 more"


# ---- several explainers, and none


def tiles_of(record, index, several):
    tiles = [Tile("Image")]
    for name, maps in record.maps.items():
        for question, titles in enumerate(record.titles):
            caption = f"{titles[index]}\n({name})" if several else titles[index]
            tiles.append(Tile(caption, density(maps.heatmaps[question, index])))
    return tiles


@pytest.mark.parametrize(
    "explainers",
    [[GradCAM()], [GradCAM(), IntegratedGradients(8), Occlusion(4)], [Occlusion(2)], []],
    ids=["one", "three", "pixels", "none"],
)
def test_a_panel_has_a_tile_for_each_explainer_and_question_that_names_it_if_there_are_several(explainers):
    probes = tiny_probes()
    record = Auditor(probes, explainers=explainers).audit(tiny_net(), step=7)
    book = PictureBook(probes, 16)
    right = record.predictions == probes.labels
    for index in (0, 4):
        expected = render_panel(
            probes.pixels[index].numpy(),
            tiles_of(record, index, len(explainers) > 1),
            title=f"probe_{index:03d} | step 7",
            subtitle=f"{truth(probes, index)} | predicted: {book.caption(record, index)}",
            verdict="right" if bool(right[index]) else "wrong",
            regions={name: mask[index].numpy() for name, mask in probes.masks.items()},
            scale=book.scale,
        )
        assert np.array_equal(book.panel(record, index), expected)


def test_a_panel_without_heatmaps_is_the_image_with_what_is_said_of_it_and_no_scale():
    probes = tiny_probes()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    record = Auditor(probes).audit(net)
    bare, full = (PictureBook(probes, 1).panel(each, 0) for each in (record, Auditor(probes).audit(tiny_net())))

    assert bare.shape[0] < full.shape[0] / 1.5
    assert bare.shape[1] >= 224
    # Its image stands there as large as beside heatmaps.
    image = probes.pixels[0].numpy()
    colours = {tuple(colour) for colour in image.reshape(-1, 3)}
    found = {tuple(colour) for colour in bare.reshape(-1, 3)}
    assert len(colours & found) == len(colours)


def test_an_explainer_about_the_image_has_one_tile_under_its_name():
    probes = tiny_probes()
    record = Auditor(probes, [Why()], explainers=[Brightness()]).audit(tiny_net())
    book = PictureBook(probes, 1)
    expected = render_panel(
        probes.pixels[0].numpy(),
        [Tile("Image"), Tile("brightness", density(record.maps["brightness"].heatmaps[0, 0]))],
        title="probe_000 | step 0",
        subtitle=f"{truth(probes, 0)} | predicted: {book.caption(record, 0)}",
        verdict="right" if bool(record.correct[0]) else "wrong",
        regions={name: mask[0].numpy() for name, mask in probes.masks.items()},
        scale=book.scale,
    )
    assert np.array_equal(book.panel(record, 0), expected)
