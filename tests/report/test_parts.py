"""Pictures, curves, stops and numbers of the page, each against what it must be."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.gallery.records import audit_of, history_of, photos, probes_of
from tests.report.pages import KEYS, audit, data_of, page_of, runs, set_of
from xai_callbacks.gallery.heat import heat
from xai_callbacks.record import Estimate
from xai_callbacks.render import ColorScale
from xai_callbacks.report.cards import asked_in, stops_of
from xai_callbacks.report.curves import curve
from xai_callbacks.report.pictures import PLACES, Layers, enlarged, layer_size, photo
from xai_callbacks.report.texts import Brief, asides, interval, judged, letter, number, straight


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2] or text)))


def test_photos_are_small_webp_that_look_alike():
    pixels = photos(1, (448, 672))[0].numpy()
    small = opened(photo(pixels))
    assert small.format == "WEBP"
    assert small.size == (224, 149)
    exact = Image.fromarray(pixels).resize(small.size)
    error = np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(exact, float))
    assert error.mean() < 3
    tiny = photos(1, (32, 32))[0].numpy()
    assert (np.asarray(opened(photo(tiny)).convert("RGB")) == tiny).all()


@pytest.mark.parametrize("value", [-60.0, -7.0, -0.2, 0.0, 0.2, 7.0, 60.0])
def test_a_layer_has_the_colours_of_the_scale(value):
    scale = ColorScale()
    layers = Layers(scale)
    place = layers.add(np.full((8, 8), value, np.float32))
    layer = np.asarray(opened(layers.images[place]).convert("RGBA"), float)
    assert layer.shape == (8, 8, 4)
    rgb, opacity = scale.colorize(np.array(value))
    assert np.ptp(layer.reshape(-1, 4), axis=0).max() == 0
    # Colours come in 20 steps on either side.
    assert abs(layer[0, 0, 3] / 255 - opacity) < 0.03
    assert opacity == 0 or np.abs(layer[0, 0, :3] - rgb).max() < 25


def test_the_same_value_has_the_same_colour_in_all_models_and_epochs(tmp_path):
    probes = set_of(12)
    strong, weak = audit(probes, 1), audit(probes, 1)
    weak.maps["gradcam"].heatmaps.mul_(0.01)
    data = data_of(page_of(tmp_path, {"a": history_of(strong), "b": history_of(weak)}, probes).read_text("utf-8"))
    first, second, less = (each[0] for each in data["cards"][0]["heat"][0])
    opacity = [np.asarray(opened(data["images"][place]).convert("RGBA"))[..., 3].max() for place in (first, second)]
    assert opacity[1] < opacity[0] / 2
    assert PLACES[data["places"][less]].startswith("all against it")


def test_what_looks_alike_is_held_once():
    layers = Layers(ColorScale())
    one = np.random.default_rng(0).normal(0, 9, (8, 8)).astype(np.float32)
    assert layers.add(one) == layers.add(one.copy()) == 1
    assert layers.add(-one) == 2
    assert len(layers.images) == len(layers.places) == 3


@pytest.mark.parametrize(
    ("cell", "value", "words"),
    [
        ((0, 0), 9.0, "strongest at the upper left"),
        ((4, 4), 9.0, "strongest at the middle centre"),
        ((8, 5), 9.0, "strongest at the lower centre"),
        ((0, 8), -9.0, "all against it, strongest at the upper right"),
        ((2, 2), 0.0, "no heat"),
        ((2, 2), np.nan, "no heat"),
    ],
)
def test_where_heat_is_strongest_is_said_in_words(cell, value, words):
    field = np.zeros((9, 9), np.float32)
    field[cell] = value
    layers = Layers(ColorScale())
    assert PLACES[layers.places[layers.add(field)]] == words


def test_the_contour_goes_round_strong_heat():
    field = np.zeros((12, 12), np.float32)
    field[4:8, 4:8] = 50
    layers = Layers(ColorScale())
    layers.add(field)
    alpha = np.asarray(opened(layers.images[1]).convert("RGBA"))[..., 3]
    assert (alpha[:4] == 0).all()
    assert (alpha[4, 4:8] == 255).all()
    assert alpha[5, 5] == round(0.4 * 255)


def test_differences_are_those_of_the_heat_that_is_shown(tmp_path):
    probes = set_of(12)
    a, b = audit(probes, 1, place=0), audit(probes, 3, place=30)
    data = data_of(page_of(tmp_path, {"a": history_of(a), "b": history_of(b)}, probes).read_text("utf-8"))
    size = layer_size(12 * 3 * 3, 32, 32)
    scale = ColorScale()
    layers = Layers(scale)
    fields = [enlarged(heat(each.maps["gradcam"], [5], scale), size)[0, 0] for each in (a, b)]
    layers.add(fields[1] - fields[0])
    assert data["images"][data["cards"][5]["heat"][0][2][0]] == layers.images[1]


def test_layers_are_smaller_where_there_are_many():
    assert layer_size(1, 224, 224) == (60, 60)
    assert layer_size(3000, 100, 200) == (30, 60)
    assert layer_size(12000, 224, 224) == (30, 30)
    assert layer_size(10**9, 224, 224) == (24, 24)


def test_a_stop_shows_the_latest_audit_up_to_an_epoch():
    probes = probes_of(3)
    a = history_of(*(audit_of(probes, number=epoch) for epoch in (0, 2, 4)))
    b = history_of(*(audit_of(probes, number=epoch) for epoch in (1, 4, 6)))
    stops = [[record.epoch for record in stop] for stop in stops_of([a, b])]
    assert stops == [[0, 1], [2, 1], [4, 4], [4, 6]]
    alone = [[record.epoch for record in stop] for stop in stops_of([history_of(b[0]), history_of(a[2])])]
    assert alone == [[1, 4]]


def test_stops_are_audits_of_the_same_probes_and_questions():
    probes = probes_of(3)
    other = audit_of(probes_of(3), number=1)
    fewer = audit_of(probes, number=2, questions=())
    history = history_of(audit_of(probes, number=0), other, fewer, audit_of(probes, number=3))
    assert [stop[0].epoch for stop in stops_of([history])] == [0, 3]


def test_of_many_audits_twenty_are_shown():
    probes = probes_of(3)
    history = history_of(*(audit_of(probes, number=epoch) for epoch in range(16)))
    many = type(history)(keep=40)
    for epoch in range(40):
        many.append(audit_of(probes, number=epoch))
    assert len(stops_of([history])) == 16
    epochs = [stop[0].epoch for stop in stops_of([many])]
    assert len(epochs) == 20
    assert (epochs[0], epochs[-1]) == (0, 39)


def test_kinds_of_heat_are_named_by_the_question():
    record = audit_of(probes_of(3))
    assert [each.key for each in asked_in([record])] == [f"gradcam/{name}" for name in record.questions]
    assert asked_in([record])[0].words == "Why P?"


def values(path):
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.rstrip("Z"))[1:]]


def test_a_curve_is_where_its_values_are():
    probes = set_of()
    drawn = curve("cue/patch/pull", runs(probes))
    left, top, right, bottom = drawn["edges"]
    assert [each["place"] for each in drawn["series"]] == [0, 1]
    assert [words for _, words in drawn["ticks_x"]][::-1] == ["start", "1", "2"]
    # Pixels are a straight function of values: fitted on ticks, it holds for dots, ends of intervals and thresholds.
    ticks = [(float(words.replace("−", "-")), y) for y, words in drawn["ticks_y"]]
    slope, offset = np.polyfit(*zip(*ticks, strict=True), 1)
    estimates = [record.metrics["cue/patch/pull"] for record in runs(probes)["leaning"]]
    series = drawn["series"][0]
    line = values(series["line"])
    assert [y for _, y in line] == pytest.approx([slope * each.value + offset for each in estimates], abs=0.2)
    assert [x for x, _ in line] == pytest.approx([left, (left + right) / 2, right], abs=0.2)
    ends = [each.high for each in estimates] + [each.low for each in estimates[::-1]]
    assert [y for _, y in values(series["band"])] == pytest.approx([slope * each + offset for each in ends], abs=0.2)
    assert drawn["thresholds"][0][0] == pytest.approx(slope * 0.03 + offset, abs=0.2)
    assert all(top <= y <= bottom for _, y in values(series["band"]))
    assert "leaning: 0.00 [−0.05, 0.05] before training, 0.40 [0.35, 0.45] at epoch 2; chance 0" in drawn["described"]


def test_one_audit_is_no_curve():
    probes = set_of(12)
    assert curve("accuracy", {"": history_of(audit(probes, 1))}) is None
    assert curve("accuracy", {"": history_of(audit(probes, 1), audit(probes, 2))}) is not None
    assert curve("unheard_of", runs(probes)) is None


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-9, 1e12])
def test_a_constant_has_a_curve_too(value):
    given = [audit_of(probes_of(3), number=place, metrics={"odd": Estimate(value)}, keys=KEYS) for place in range(2)]
    drawn = curve("odd", {"": history_of(*given)})
    assert len(drawn["ticks_y"]) >= 2
    (top, bottom), (_, y) = (drawn["edges"][1], drawn["edges"][3]), values(drawn["series"][0]["line"])[0]
    assert y == pytest.approx((top + bottom) / 2, abs=0.2)


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (None, "–"),
        (Estimate(float("nan")), "–"),
        (Estimate(0.58217), "0.582"),
        (Estimate(0.58217, 0.5412, 0.6319), "0.58 [0.54, 0.63]"),
        (Estimate(-0.00061, -0.07, 0.069), "0.00 [−0.07, 0.07]"),
        (Estimate(-47.9, -52.2, -43.04), "−48 [−52, −43]"),
        (Estimate(1.0, 0.91, 1.0), "1.00 [0.91, 1.00]"),
        (Estimate(2.0, 2.0, 2.0), "2 [2, 2]"),
        (Estimate(0.00312, 0.0027, 0.0036), "0.0031 [0.0027, 0.0036]"),
        (Estimate(1234567.0), "1234567"),
        (Estimate(-0.081, -0.16, -0.0028), "−0.08 [−0.16, −0.003]"),
        (Estimate(0.05, 0.00351, 0.5), "0.05 [0.004, 0.50]"),
        (Estimate(0.05, 0.0, 0.5), "0.05 [0.00, 0.50]"),
        (Estimate(0.05, 1e-17, 0.5), "0.05 [0.00, 0.50]"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_leaves(estimate, words):
    assert interval(estimate) == words


def test_differences_have_a_sign():
    assert interval(Estimate(0.3, 0.2, 0.4), sign=True) == "+0.3 [0.2, 0.4]"
    assert interval(Estimate(-0.3, -0.4, -0.2), sign=True) == "−0.3 [−0.4, −0.2]"
    assert interval(Estimate(0.0, 0.0, 0.0), sign=True) == "0 [0, 0]"
    assert interval(Estimate(float("nan")), sign=True) == "–"
    assert number(-0.0) == "0"


def test_long_remarks_in_brackets_are_set_apart():
    long = f" (colours (0, 0, 0), {'and more, ' * 8}others)"
    assert asides(f"the cue 'patch'{long}: it moves (a little)") == [
        ("the cue 'patch'", False),
        (long, True),
        (": it moves (a little)", False),
    ]
    assert asides("") == []
    assert len(asides(" (" * 20_000)) == 1


def test_long_names_lose_their_middle_and_differ_still():
    names = ["short", *(f"{'x' * 30}{middle}{'x' * 60}" for middle in "abc")]
    brief = Brief(names, 40)
    shown = [brief(name) for name in names]
    assert shown[0] == "short"
    assert len(set(shown)) == 4
    assert max(map(len, shown)) == 80
    assert brief.used == dict(zip(shown[1:], names[1:], strict=True))
    brief = Brief(["a" * 50 + "z", "b"], 40)
    assert brief(f"Ship {'a' * 50}z: b is worse.") == f"Ship {'a' * 26}…{'a' * 12}z: b is worse."
    assert Brief([], 40)("any text") == "any text"


def test_what_turns_text_is_shown_as_an_escape():
    assert straight({"\u202ea": ["b\u2069", 3, None, ("c", "ü 猫")]}) == {
        r"\u202ea": [r"b\u2069", 3, None, ["c", "ü 猫"]]
    }


def test_models_have_letters():
    assert [letter(place) for place in (0, 1, 25, 26)] == ["A", "B", "Z", "27"]


def test_what_rules_are_about_comes_first():
    probes = set_of(12)
    record = audit(probes, 3, pull=0.4)
    assert judged([record]) == ["accuracy", "cue/patch/pull"]
    assert judged([audit_of(probes, metrics={})]) == []


def test_heat_of_an_explainer_that_one_model_lacks_is_left_empty(tmp_path):
    probes = set_of(12)
    without = audit(probes, 1)
    object.__setattr__(without, "maps", {})
    data = data_of(page_of(tmp_path, {"a": history_of(audit(probes, 1)), "b": history_of(without)}, probes).read_text())
    assert all(each[0] > 0 for each in data["cards"][0]["heat"][0][:1])
    assert data["cards"][0]["heat"][0][1:] == [[0, 0, 0], [0, 0, 0]]
    assert torch.isfinite(torch.tensor(data["says"])).all()
