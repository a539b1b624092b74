import numpy as np
import pytest

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render import ColorScale, Frame, render_filmstrip
from xai_callbacks.render.overlay import draw_tiles

SCALE = ColorScale()
QUESTIONS = ("Why boxer?", "Why boxer, rather than tiger cat?", "Why not boxer with 100 % confidence?")


def some_frames(helpers, count, rows=3):
    return [
        Frame(f"step {place * 120}", f"boxer 0.{place}", [helpers.smooth_map(10 * place + row) for row in range(rows)])
        for place in range(count)
    ]


def strip(helpers, pixels=None, rows=QUESTIONS, frames=None, **changes):
    arguments = {"title": "photo", "subtitle": "true: bull mastiff", "scale": SCALE}
    return render_filmstrip(
        helpers.photo(112, 112) if pixels is None else pixels,
        rows,
        some_frames(helpers, 8, len(rows)) if frames is None else frames,
        **(arguments | changes),
    )


def test_a_filmstrip_is_a_fresh_contiguous_rgb_picture_and_deterministic(helpers):
    picture = strip(helpers)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.flags.owndata
    np.testing.assert_array_equal(picture, strip(helpers))


def test_questions_are_rows_and_audits_are_columns_in_order(helpers):
    pixels, frames = helpers.photo(112, 112), some_frames(helpers, 8)
    picture = strip(helpers, pixels, frames=frames)
    where = np.array(
        [[helpers.places(picture, tile) for tile in draw_tiles(pixels, frame.heatmaps, (), SCALE)] for frame in frames]
    )
    assert where.shape == (8, 3, 1, 2)
    tops, lefts = where[:, :, 0, 0], where[:, :, 0, 1]
    assert (tops == tops[:1]).all()
    assert (lefts == lefts[:, :1]).all()
    assert (np.diff(tops[0]) == 120).all()
    assert (np.diff(lefts[:, 0]) == 120).all()


def test_the_image_stands_once_left_of_all_heatmaps(helpers):
    pixels = helpers.photo(112, 112)
    assert helpers.places(strip(helpers, pixels), pixels) == [(16, 16)]


def test_another_audit_changes_no_byte_of_a_tile(helpers):
    pixels, frames = helpers.photo(112, 112), some_frames(helpers, 3)
    (expected,) = draw_tiles(pixels, [frames[1].heatmaps[2]], (), SCALE)
    strong = Frame("step 9999", "cat 1.00", [helpers.smooth_map(5, peak=1e5)] * 3)
    for chosen in ([frames[1]], frames, [*frames, strong]):
        assert len(helpers.places(strip(helpers, pixels, frames=chosen), expected)) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 8, 10])
@pytest.mark.parametrize(
    "size", [(28, 28), (32, 32), (64, 64), (96, 96), (224, 224), (512, 512), (128, 256), (600, 20)]
)
def test_pictures_stay_within_bounds(helpers, count, size):
    picture = strip(helpers, helpers.photo(*size), frames=some_frames(helpers, count))
    assert 512 <= picture.shape[1] <= 1400
    assert 300 <= picture.shape[0] <= 640


@pytest.mark.parametrize("name", ["Größe 100 %", "猫", "😀", "two\nlines", "", "x" * 200, "word " * 60])
def test_no_name_raises_or_widens_the_picture(helpers, name):
    frames = [Frame(name, name, [helpers.smooth_map(0)]) for _ in range(4)]
    mask = np.ones((112, 112), dtype=bool)
    picture = strip(helpers, rows=[name], frames=frames, title=name, subtitle=name, regions={name: mask})
    assert picture.shape[1] == strip(helpers, frames=some_frames(helpers, 4)).shape[1]


def test_regions_are_outlined_on_the_image_and_named(helpers):
    mask = np.zeros((112, 112), dtype=bool)
    mask[20:60, 20:60] = True
    picture, without = strip(helpers, regions={"core": mask}), strip(helpers)
    assert picture.shape[0] > without.shape[0]
    assert (picture[16 + 20, 16 + 20 : 16 + 60] == 255).all()


def test_maps_of_one_array_are_taken_as_rows(helpers):
    maps = np.stack([helpers.smooth_map(row) for row in range(3)])
    listed, stacked = ([Frame("a", "b", heatmaps)] for heatmaps in (list(maps), maps))
    np.testing.assert_array_equal(strip(helpers, frames=listed), strip(helpers, frames=stacked))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "Expected `row_captions` to be a sequence of at least one text, but got list of length 0"),
        ({"rows": "Why?"}, "Expected `row_captions` to be a sequence"),
        ({"rows": [1, 2, 3]}, r"Expected `row_captions\[0\]` to be text"),
        ({"frames": []}, "Expected `frames` to be a sequence of 1 to 10 Frames, but got 0 of them"),
        ({"frames": [1]}, "Expected `frames` to be a sequence of 1 to 10 Frames, but got list of length 1"),
        ({"title": 1}, "Expected `title` to be text"),
        ({"subtitle": 1}, "Expected `subtitle` to be text"),
        ({"scale": None}, "Expected `scale` to be a ColorScale"),
        ({"pixels": np.zeros((4, 4))}, "Expected `pixels`"),
        ({"regions": {"a": np.zeros((4, 4), bool)}}, r"Expected `regions\['a'\]`"),
    ],
)
def test_wrong_arguments_are_named(helpers, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        strip(helpers, **{"frames": some_frames(helpers, 2), **changes})


def test_more_than_ten_audits_are_refused_with_the_way_out(helpers):
    with pytest.raises(ConfigurationError, match=r"but got 11 of them\. Thin out more with `keep_frame_indices`"):
        strip(helpers, frames=some_frames(helpers, 11))


def test_an_audit_that_lacks_a_question_is_named(helpers):
    frames = [*some_frames(helpers, 1), *some_frames(helpers, 1, rows=2)]
    with pytest.raises(ConfigurationError, match=r"Expected `frames\[1\].heatmaps` to be one map for each of the 3"):
        strip(helpers, frames=frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "b", []), "Expected `label` to be text"),
        (("a", 2, []), "Expected `caption` to be text"),
        (("a", "b", [np.zeros((2, 2)), np.zeros(3)]), r"Expected `heatmaps\[1\]` to be one map of shape \(h, w\)"),
        (("a", "b", None), "Expected `heatmaps` to be a sequence of maps"),
    ],
)
def test_a_frame_refuses_what_it_cannot_show(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Frame(*arguments)
