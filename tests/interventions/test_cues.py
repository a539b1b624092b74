"""Cues: which variant an image gets, which class it points to, functions of users, and images of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interventions.paint import noise, painted
from tests.trials.exact import COLOURS, scenes
from tests.trials.exact import shown_of as shown
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.cues import FunctionCue, PatchCue, TextureCue, TintCue, WatermarkCue
from xai_callbacks.interventions.cues.painted import paired_variants

# ---- which variant


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=40),
    seed=st.integers(0, 10**6),
)
def test_a_labelled_image_gets_another_class_and_its_twin_its_own_or_none(classes, labels, seed):
    """Case by case, as the sentence says it."""
    labels = torch.tensor(labels)
    first, second = paired_variants(classes, len(labels), seed, labels)
    for label, one, other in zip(labels.tolist(), first.tolist(), second.tolist(), strict=True):
        to, twin = classes[one], None if other < 0 else classes[other]
        if label < 0:
            assert twin != to
            assert (twin is None) == (set(classes) == {to})
        elif set(classes) == {label}:
            assert (to, twin) == (label, None)
        else:
            assert to != label
            assert twin == (label if label in classes else None)
    assert all(map(torch.equal, paired_variants(classes, len(labels), seed, labels), (first, second)))


@given(classes=st.lists(st.integers(0, 4), min_size=1, max_size=6), count=st.integers(1, 70), seed=st.integers(0, 99))
def test_without_labels_variants_are_equally_frequent_and_twins_point_to_another_class(classes, count, seed):
    first, second = paired_variants(classes, count, seed, None)
    frequent = torch.bincount(first, minlength=len(classes))
    assert int(frequent.max() - frequent.min()) <= 1
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        assert (other < 0) == (len(set(classes)) == 1)
        assert other < 0 or classes[one] != classes[other]


def test_each_other_class_is_equally_frequent_and_seeds_differ():
    labels = torch.arange(4000) % 4
    first, _ = paired_variants([0, 1, 2, 3, 3], 4000, 0, labels)
    points_to = torch.tensor([0, 1, 2, 3, 3])[first]
    for label in range(4):
        frequent = torch.bincount(points_to[labels == label], minlength=4).tolist()
        assert frequent.pop(label) == 0
        assert frequent == pytest.approx([1000 / 3] * 3, abs=1.5)  # dealt in turn
    assert not torch.equal(first, paired_variants([0, 1, 2, 3, 3], 4000, 1, labels)[0])


def test_one_variant_is_compared_with_the_very_image_as_it_is():
    given = shown(scenes())
    twins = PatchCue([1.0, 0, 0], "red").twins(given)
    assert twins.absent is given.images
    assert twins.neutral is given.images
    assert twins.points_to.tolist() == [0] * 12


def test_several_variants_are_compared_with_another_one_each():
    given = shown(scenes())
    twins = PatchCue(COLOURS, [0, 1, 2], size=0.3).twins(given)
    rows = zip(*twins[:2], twins.points_to.tolist(), given.probes.labels.tolist(), twins.region, strict=True)
    for present, absent, cue, label, region in rows:
        assert cue != label
        assert present[:, region].unique(dim=1).T.tolist() == [list(COLOURS[cue])]
        assert absent[:, region].unique(dim=1).T.tolist() == [list(COLOURS[label])]
        assert torch.equal(present[:, ~region], absent[:, ~region])


# ---- which class


@pytest.mark.parametrize(("points_to", "expected"), [("blue", (2,)), (1, (1,)), (["green", 0], (1, 0))])
def test_classes_are_given_by_name_or_index(points_to, expected):
    count = 1 if isinstance(points_to, (str, int)) else len(points_to)
    assert PatchCue([[0.0]] * count, points_to).classes(scenes()) == expected


@pytest.mark.parametrize(
    ("points_to", "fields", "message"),
    [
        ("bleu", {}, "Expected `points_to` of the cue `patch` to name a class, but got 'bleu'. Did you mean 'blue'?"),
        ("wolf", {}, "but got 'wolf'. A class is one of red, green, blue."),
        ("red", {"class_names": None}, "but got 'red'. A class has no names: give its index."),
        (3, {}, "to be the index of a class below 3, the number of outputs, but got 3"),
        (-1, {"class_names": None}, "to be the index of a class, but got -1"),
    ],
)
def test_a_class_that_is_not_there_is_refused(points_to, fields, message):
    with pytest.raises(ConfigurationError) as caught:
        PatchCue([0.0], points_to).check(scenes(**fields))
    assert message in str(caught.value)


@pytest.mark.parametrize("points_to", [None, [], True, 1.0, [0, None], b"x", torch.tensor([0])])
def test_what_is_no_class_is_refused_at_construction(points_to):
    with pytest.raises(ConfigurationError, match="to be an index or a name of a class for each variant, but got"):
        TintCue([1.0], points_to)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é!", None, 5, ["a"]])
def test_a_name_that_would_break_a_key_is_refused(name):
    with pytest.raises(ConfigurationError, match="Expected `name` of a cue to be letters"):
        PatchCue([0.0], 0, name=name)


def test_variants_of_one_class_are_compared_with_the_image_without_any():
    given, cue = shown(scenes(labels=None)), PatchCue(COLOURS[:2], ["blue", 2], size=0.3)
    cue.check(given.probes)
    twins = cue.twins(given)
    assert twins.absent is twins.neutral is given.images
    assert twins.points_to.tolist() == [2] * 12
    rows = zip(twins.present, twins.region, strict=True)
    colours = [tuple(image[:, region][:, 0].tolist()) for image, region in rows]
    assert [colours.count(colour) for colour in COLOURS[:2]] == [6, 6]


def test_a_twin_never_has_a_variant_of_the_same_class():
    twins = PatchCue(COLOURS, ["red", "red", "blue"], size=0.3).twins(shown(scenes(30, labels=None)))
    for absent, points_to, region in zip(twins.absent, twins.points_to.tolist(), twins.region, strict=True):
        seen = absent[:, region][:, 0].tolist()
        assert seen in ([list(COLOURS[2])] if points_to == 0 else [list(COLOURS[0]), list(COLOURS[1])])


def test_regression_probes_are_refused():
    probes = scenes(labels=None, class_names=None, targets=torch.linspace(0, 1, 12))
    with pytest.raises(ConfigurationError, match="probes with labels for `the cue patch`, but got regression probes"):
        PatchCue([0.0], 0).check(probes)


# ---- the user's own


def test_an_own_function_gets_images_and_variants_and_may_edit_what_it_gets():
    def brighten(images, variants):
        images *= 1 - 0.1 * variants[:, None, None, None]
        variants.zero_()
        return images

    probes = noise(6)
    given = shown(probes)
    before = given.images.clone()
    twins = FunctionCue(brighten, [0, 1]).twins(given)

    assert torch.equal(given.images, before)
    variant = twins.points_to
    torch.testing.assert_close(twins.present, before * (1 - 0.1 * variant[:, None, None, None]))
    torch.testing.assert_close(twins.absent, before * (0.9 + 0.1 * variant[:, None, None, None]))
    assert twins.region is None


def test_an_own_function_may_be_off_by_rounding_and_return_another_float_type():
    found = painted(FunctionCue(lambda images, _: (images + 1).double().clamp(max=1 + 5e-5), 0), noise())
    assert found.dtype == torch.float32
    assert float(found.max()) == 1


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda images, _: images * 2 - 1, "values from -"),
        (lambda images, _: images * torch.nan, "values from nan to nan"),
        (lambda images, _: images[:, :1], r"torch.float32 \(4, 1, 12, 10\)"),
        (lambda images, _: images[0], r"torch.float32 \(3, 12, 10\)"),
        (lambda images, _: (images * 255).to(torch.uint8), "torch.uint8"),
        (lambda images, _: images.numpy(), "ndarray"),
        (lambda images, _: None, "NoneType"),
    ],
)
def test_what_an_own_function_may_not_return_is_named(function, got):
    with pytest.raises(ConfigurationError, match=rf"`function` of the cue 'own' to return images .* but got {got}"):
        painted(FunctionCue(function, 0), noise())


def test_an_own_region_is_used_and_checked():
    probes = noise()
    cue = FunctionCue(lambda images, _: images, 0, region=lambda images: images[:, 0] > 0.5)
    assert torch.equal(cue.twins(shown(probes)).region, probes.images[:, 0] > 0.5)
    for wrong in (lambda images: images[:, 0], lambda images: images > 0.5, lambda _: None):
        with pytest.raises(ConfigurationError, match=r"`region` of the cue 'own' to return booleans \(4, 12, 10\)"):
            FunctionCue(lambda images, _: images, 0, region=wrong).twins(shown(probes))


@pytest.mark.parametrize("wrong", [{"function": "blur"}, {"region": "core"}])
def test_what_cannot_be_called_is_refused_at_construction(wrong):
    with pytest.raises(ConfigurationError, match=r"to be callable, but got str"):
        FunctionCue(**{"function": lambda images, _: images, "points_to": 0} | wrong)


# ---- any images


@settings(max_examples=25)
@given(
    height=st.integers(5, 40), width=st.integers(5, 40), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 10**4)
)
def test_edited_images_of_any_shape_lie_in_the_display_range(height, width, channels, seed):
    images = (torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 1.5).clamp(max=1)
    probes = ProbeSet.from_tensors(images, pixels=torch.zeros(2, height, width, 3, dtype=torch.uint8))
    generator = np.random.default_rng(seed)
    opacity, size = generator.uniform(0.01, 1, 2)
    for cue in (
        PatchCue([1.0], 0, opacity=opacity, size=size),
        PatchCue([0.0], 0, opacity=opacity, size=size),
        TintCue([float(size) * 3], 0),
        TextureCue("rings", 0, opacity=opacity),
        WatermarkCue("ab", 0, opacity=opacity, width=size),
    ):
        present = cue.twins(shown(probes)).present
        assert present.shape == images.shape
        assert ((present >= 0) & (present <= 1)).all()
