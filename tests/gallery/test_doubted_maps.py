"""Heatmaps that failed their tests are grey, and it is said, wherever they are drawn; others look as ever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.gallery.records import audit_of, places, probes_of, said
from xai_callbacks.gallery.evidence import clusters
from xai_callbacks.gallery.pages import all_probes, filmstrip, overview, panel
from xai_callbacks.render import Cell, ColorScale, Row, overlay, render_page
from xai_callbacks.render.overlay import LUMA

SCALE = ColorScale()
FAILS = "fails the randomisation test"


def colourful(picture):
    """Whether any pixel is far from grey."""
    return int((picture.max(axis=2).astype(int) - picture.min(axis=2)).max()) > 40


def grey_photos(count=6):
    """Probes without colours of their own: what is colourful in a tile is heat."""
    grey = torch.full((count, 64, 64, 3), 120, dtype=torch.uint8)
    return probes_of(count, size=(64, 64), pixels=grey)


def two_explainers(probes, **verdicts):
    record = audit_of(probes, peak=40.0)
    maps = {"guided_backprop": record.maps["gradcam"], "gradcam": record.maps["gradcam"]}
    return replace(record, maps=maps, trust={key.replace("__", "/"): each for key, each in verdicts.items()})


def test_a_grey_tile_is_the_tile_without_colours():
    photo = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    heatmap = np.linspace(-60, 60, 49).reshape(7, 7)
    rows = [Row([Cell(photo, "a", heatmap, grey=True)])]
    page = render_page(rows, title="t", scale=SCALE)
    tile = overlay(photo, heatmap, SCALE).astype(np.float32) @ LUMA
    expected = np.rint(tile).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert len(places(page, expected)) == 1


def test_a_panel_greys_and_labels_the_maps_that_failed_and_no_others(monkeypatch):
    probes = grey_photos()
    tile = overlay(probes.pixels[0].numpy().repeat(2, 0)[:112, :112], np.zeros((7, 7)), SCALE)
    assert not colourful(tile)
    plain, words = said(monkeypatch, lambda: panel(probes, two_explainers(probes), 0, SCALE))
    assert "fails" not in words
    record = two_explainers(
        probes, guided_backprop__why=FAILS, gradcam__why="passed", gradcam__why_label="not tested: x"
    )
    page, words = said(monkeypatch, lambda: panel(probes, record, 0, SCALE))
    assert words.count("fails the") == 1
    assert words.index("guided_backprop") < words.index("fails the") < words.index("gradcam ", words.index("fails the"))
    assert page.shape[0] >= plain.shape[0]
    assert np.array_equal(plain, panel(probes, two_explainers(probes, guided_backprop__why="passed"), 0, SCALE))


def test_overviews_grey_the_heat_of_the_first_question_and_say_why(monkeypatch):
    probes = grey_photos()
    for draw in (overview, all_probes):
        sound = draw(probes, two_explainers(probes, guided_backprop__why_label=FAILS), list(range(6)), SCALE)
        failed = two_explainers(probes, guided_backprop__why=FAILS)
        page, words = said(monkeypatch, lambda failed=failed, draw=draw: draw(probes, failed, list(range(6)), SCALE))
        assert f"grey heat {FAILS}" in words
        orange = [((each[..., 0].astype(int) - each[..., 2]) > 60).sum() for each in (sound, page)]
        assert orange[0] > 500
        assert orange[1] < orange[0] / 2  # the colour bar


def test_a_filmstrip_greys_the_audits_at_which_maps_failed(monkeypatch):
    probes = grey_photos()
    audits = [replace(two_explainers(probes), step=100, epoch=1), two_explainers(probes, guided_backprop__why=FAILS)]
    _, words = said(monkeypatch, lambda: filmstrip(probes, audits, 0, SCALE))
    assert words.count(f"grey heat {FAILS}") == 1
    _, words = said(monkeypatch, lambda: filmstrip(probes, audits[:1] * 2, 0, SCALE))
    assert "grey" not in words


def test_kinds_of_heatmaps_that_failed_are_grey(monkeypatch):
    probes = grey_photos()
    numbers = {"cluster/number": torch.zeros(6, dtype=torch.float64)}
    record = replace(two_explainers(probes, guided_backprop__why=FAILS), per_probe=numbers)
    _, words = said(monkeypatch, lambda: list(clusters(probes, record, SCALE)))
    assert f"grey heat {FAILS}" in words
    _, words = said(monkeypatch, lambda: list(clusters(probes, replace(record, trust={}), SCALE)))
    assert "grey" not in words
