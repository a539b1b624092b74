"""The picture of the clusters of a class."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render import ColorScale
from xai_callbacks.render.clusters import MAX_EXAMPLES, ClusterExample, ClusterRow, render_clusters
from xai_callbacks.render.furniture import WRONG_COLOR
from xai_callbacks.render.overlay import overlay, soften
from xai_callbacks.render.page import PAPER
from xai_callbacks.render.resample import fit_image

SCALE = ColorScale()


def picture_of(color, size=(64, 64)):
    return np.full((*size, 3), color, np.uint8)


def example(color=(200, 30, 30), value=0.0, caption="", wrong=False, size=(64, 64)):
    return ClusterExample(picture_of(color, size), np.full((4, 4), value, np.float32), caption, wrong)


def row(number=0, examples=(), mean=None, **known):
    return ClusterRow(number, "dog", 31, mean or example(), list(examples), **known)


def drawn(*rows, title="t", **words):
    return render_clusters(rows, title=title, scale=SCALE, **words)


def count(picture, color):
    return int((picture == np.array(color, np.uint8)).all(axis=2).sum())


def test_equal_arguments_give_equal_bytes():
    one, other = (drawn(row(examples=[example(value=3.0)]), subtitle="s") for _ in range(2))
    assert one.tobytes() == other.tobytes()
    assert one.dtype == np.uint8
    assert one.flags.c_contiguous


def test_each_example_is_shown_above_its_map(helpers):
    image = helpers.photo(64, 64)
    heatmap = helpers.smooth_map(0, (8, 8))
    picture = drawn(row(examples=[ClusterExample(image, heatmap)]))
    (image_at,) = helpers.places(picture, image)
    (map_at,) = helpers.places(picture, overlay(soften(image), heatmap, SCALE))
    assert image_at[1] == map_at[1]
    assert image_at[0] < map_at[0]


def test_the_mean_map_lies_over_the_mean_image_and_is_as_high_as_a_pair(helpers):
    mean = ClusterExample(helpers.photo(64, 64, 1), helpers.smooth_map(1, (8, 8)))
    image = helpers.photo(64, 64)
    picture = drawn(row(mean=mean, examples=[ClusterExample(image, mean.heatmap)]))
    large = overlay(soften(fit_image(mean.pixels, (134, 134))), mean.heatmap, SCALE)
    (mean_at,) = helpers.places(picture, large)
    (image_at,) = helpers.places(picture, image)
    (map_at,) = helpers.places(picture, overlay(soften(image), mean.heatmap, SCALE))
    assert mean_at[0] == image_at[0]
    assert mean_at[0] + 134 == map_at[0] + 64
    assert mean_at[1] + 134 < image_at[1]


def test_clusters_stand_in_the_order_given_and_examples_from_left_to_right():
    red, green, blue = (220, 10, 10), (10, 200, 10), (10, 10, 220)
    picture = drawn(row(0, [example(red), example(green)]), row(1, [example(blue)]))
    places = [np.argwhere((picture == np.array(color, np.uint8)).all(axis=2)) for color in (red, green, blue)]
    assert [len(pixels) for pixels in places] == [64 * 64] * 3
    assert (places[0][:, 0] == places[1][:, 0]).all()
    assert places[0][:, 1].max() < places[1][:, 1].min()
    assert places[1][:, 0].max() < places[2][:, 0].min()


def test_no_more_examples_are_drawn_than_have_room():
    blue = (10, 10, 220)
    assert count(drawn(row(examples=[example(blue)] * 3)), blue) == 3 * 64 * 64
    assert count(drawn(row(examples=[example(blue)] * 9)), blue) == MAX_EXAMPLES * 64 * 64
    many, six = (drawn(row(examples=[example()] * number)) for number in (9, 6))
    np.testing.assert_array_equal(many, six)


def test_a_cluster_without_examples_shows_its_mean_alone():
    assert drawn(row()).shape == drawn(row(examples=[example()])).shape


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (224, 224), (100, 300), (300, 100), (1, 1)])
def test_images_of_any_size_fit_the_page(size):
    shown = example((10, 10, 220), size=size)
    picture = drawn(row(mean=shown, examples=[shown] * MAX_EXAMPLES))
    assert 592 <= picture.shape[1] <= 692
    margin = np.concatenate(
        [picture[:15].reshape(-1, 3), picture[:, :15].reshape(-1, 3), picture[:, -15:].reshape(-1, 3)]
    )
    assert (margin == np.array(PAPER, np.uint8)).all()


def test_wrong_answers_are_told_apart():
    plain, marked = (drawn(row(examples=[example(caption="says cat", wrong=wrong)])) for wrong in (False, True))
    assert count(plain, WRONG_COLOR) == 0
    assert count(marked, WRONG_COLOR) > 10


def test_long_words_stay_on_the_page():
    short, long = (
        drawn(row(examples=[example(caption=word)], regions={word: (0.5, 2.0)}), title=word, subtitle=word)
        for word in ("a", "long_name_" * 60)
    )
    assert short.shape[1] == long.shape[1]
    assert (long[:, -16:] == np.array(PAPER, np.uint8)).all()


def test_a_map_that_is_not_finite_is_explained_in_the_legend():
    broken = ClusterExample(picture_of((9, 9, 9)), np.full((4, 4), np.nan, np.float32))
    assert drawn(row(examples=[broken])).shape[0] > drawn(row(examples=[example()])).shape[0]


# ---- the caption


def test_the_caption_says_what_is_known():
    cluster = row(2, accuracy=0.61, interval=(0.44, 0.76), p=0.003, regions={"spurious": (0.62, 17.31)})
    assert cluster.caption == (
        "cluster 2 of class dog: 31 probes, accuracy 0.61 (0.44-0.76), p = 0.003\n"
        "62 % of the relevance in `spurious` (17.3 x area)"
    )


def test_the_caption_leaves_out_what_is_not_known():
    assert row().caption == "cluster 0 of class dog: 31 probes"
    assert row(accuracy=0.5).caption == "cluster 0 of class dog: 31 probes, accuracy 0.50"
    assert ClusterRow(1, "7", 1, example(), []).caption == "cluster 1 of class 7: 1 probe"
    regions = {"none": (math.nan, math.nan), "core": (0.4, 1.2), "all": (1.0, math.nan)}
    assert row(regions=regions).caption.splitlines()[1] == (
        "40 % of the relevance in `core` (1.2 x area), 100 % in `all`"
    )
    assert "\n" not in row(regions={"none": (math.nan, math.nan)}).caption


@pytest.mark.parametrize(
    ("p", "words"),
    [(0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.0094, "p = 0.009"), (0.043, "p = 0.04"), (1.0, "p = 1.00")],
)
def test_small_p_values_are_not_rounded_to_zero(p, words):
    assert row(p=p).caption.endswith(words)


def test_the_caption_is_drawn():
    assert (drawn(row(p=0.2)) != drawn(row(p=0.3))).any()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: render_clusters([], title="t", scale=SCALE), "at least one ClusterRow"),
        (lambda: render_clusters("ab", title="t", scale=SCALE), "at least one ClusterRow"),
        (lambda: drawn(row(), title=3), "`title` to be text"),
        (lambda: drawn(row(), subtitle=None), "`subtitle` to be text"),
        (lambda: render_clusters([row()], title="t", scale=3), "`scale` to be a ColorScale"),
        (lambda: drawn(row(examples=[example(size=(8, 8))])), "all `pixels` to be of one size"),
        (lambda: drawn(row(), row(mean=example(size=(8, 8)))), "all `pixels` to be of one size"),
        (lambda: row(number=-1), "`number` to be an integer of 0 or more"),
        (lambda: ClusterRow(0, 7, 3, example(), []), "`class_name` to be text"),
        (lambda: ClusterRow(0, "a", 0, example(), []), "`size` to be an integer of 1 or more"),
        (lambda: ClusterRow(0, "a", 3, None, []), "`mean` to be a ClusterExample"),
        (lambda: ClusterRow(0, "a", 3, example(), [3]), "`examples` to be a sequence of ClusterExamples"),
        (lambda: ClusterRow(0, "a", 3, example(), ""), "`examples` to be a sequence"),
        (lambda: ClusterExample(np.zeros((3, 3)), np.zeros((3, 3))), "`pixels` to be one RGB image"),
        (lambda: ClusterExample(picture_of(0), np.zeros(3)), "`heatmap` to be one map"),
        (lambda: example(caption=3), "`caption` to be text"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ConfigurationError, match=match):
        make()
