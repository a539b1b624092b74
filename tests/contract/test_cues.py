"""What every cue must hold to, ready made or the user's own; a new one needs a line in `BUILD`."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch

from tests.tiny import random_streams
from tests.trials.exact import CUE, HEIGHT, OBJECT, WIDTH, Constant, scenes, values
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions import cues
from xai_callbacks.interventions.cues import Cue, PaintedCue, Twins
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.trials import CueTrial


def darker(images, variants):
    """Of a user: half or a quarter as bright."""
    return images * (0.5 - 0.25 * variants)[:, None, None, None]


def bright(images):
    return images[:, 0] > 0.3


def darker_where_bright(images, variants):
    return torch.where(bright(images)[:, None], darker(images, variants), images)


class OwnPainted(PaintedCue):
    """A line of the first variant, or of the second."""

    def __init__(self, points_to):
        super().__init__("line", points_to)

    def paint(self, shown, variants):
        painted = shown.images.clone()
        painted[:, :, 1] = variants[:, None, None].to(painted.dtype)
        return painted

    def region(self, shown):
        marked = torch.zeros(len(shown.images), *shown.images.shape[-2:], dtype=torch.bool)
        marked[:, 1] = True
        return marked


class Own(Cue):
    """The mirror image, with a neutral version of its own."""

    def __init__(self, points_to=1):
        super().__init__("mirror", points_to)

    def twins(self, shown):
        points_to = torch.full((len(shown.images),), self.classes(shown.probes)[0])
        return Twins(shown.images.flip(3), shown.images, shown.images.flip(2), points_to, None)


PICTURES = torch.rand(2, 1, 6, 20, generator=torch.Generator().manual_seed(5))

# Each by the classes it points to: as many as it has variants.
BUILD = {
    cues.PatchCue: [
        lambda *to: cues.PatchCue([[0.9], [0.1]][: len(to)], to, size=0.3),
        lambda *to: cues.PatchCue([[0.9], [0.1]][: len(to)], to, at="spurious", opacity=0.6),
    ],
    cues.TintCue: [lambda *to: cues.TintCue([[1.4], [0.6]][: len(to)], to)],
    cues.TextureCue: [
        lambda *to: cues.TextureCue(["rings", "checks"][: len(to)], to),
        lambda *to: cues.TextureCue(["stripes", "dots"][: len(to)], to, keep="core", opacity=1.0),
    ],
    cues.WatermarkCue: [lambda *to: cues.WatermarkCue(["ab", "cd"][: len(to)], to)],
    cues.FunctionCue: [
        lambda *to: cues.FunctionCue(darker, to),
        lambda *to: cues.FunctionCue(darker_where_bright, to, region=bright),
    ],
    cues.FrameCue: [lambda *to: cues.FrameCue([[0.9], [0.1]][: len(to)], to, width=0.1, opacity=0.8)],
    cues.QualityCue: [
        lambda *to: cues.QualityCue(["jpeg", "blur"][: len(to)], to, level=5),
        lambda *to: cues.QualityCue(["darkening", "jpeg"][: len(to)], to, level=2),
    ],
    cues.BackgroundCue: [
        lambda *to: cues.BackgroundCue(PICTURES[: len(to)], to),
        lambda *to: cues.BackgroundCue("probes", to, opacity=0.7),
    ],
    cues.ShiftCue: [
        lambda *to: cues.ShiftCue([[0.1, -0.2], [-0.25, 0.0]][: len(to)], to),
        lambda *to: cues.ShiftCue([[0.1, -0.2], [-0.25, 0.0]][: len(to)], to, region="core"),
    ],
    cues.PasteCue: [lambda *to: cues.PasteCue(to[0]), lambda *to: cues.PasteCue(to[0], fill="gauss", grow=0)],
    OwnPainted: [lambda *to: OwnPainted(to)],
    Own: [lambda *to: Own(to[0])],
}
CASES = [(kind, make) for kind, makes in BUILD.items() for make in makes]
every_cue = pytest.mark.parametrize("make", [make for _, make in CASES], ids=[kind.__name__ for kind, _ in CASES])


def masks(count, height=HEIGHT, width=WIDTH):
    """An object and a cue; every third probe has no cue, every fourth no object."""
    found = {"core": torch.zeros(count, height, width, dtype=torch.bool)}
    found["core"][:, height // 2 : height // 2 + 4, 4:8] = True
    found["spurious"] = torch.zeros_like(found["core"])
    found["spurious"][:, :3, :3] = True
    found["spurious"][2::3] = False
    found["core"][3::4] = False
    return found


def noise(count=7, channels=3, height=HEIGHT, width=WIDTH, **fields):
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(8))
    given = {"labels": torch.arange(count) % 2, "masks": masks(count, height, width)} | fields
    return ProbeSet.from_tensors(images, **given)


def normalised(count=7):
    plain = noise(count)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = (plain.images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return ProbeSet.from_tensors(images, plain.labels, masks=plain.masks, mean=mean, std=std)


PROBES = {
    "colour": noise,
    "grey": lambda: noise(channels=1),
    "wide": lambda: noise(height=10, width=17),
    "normalised": normalised,
    "one": lambda: noise(1),
    "objects": scenes,
}
every_kind = pytest.mark.parametrize("probes", [make() for make in PROBES.values()], ids=PROBES)


def shown_of(probes, rows=None, seed=0):
    scale = PixelScale.of(probes)
    rows = torch.arange(len(probes)) if rows is None else rows
    return Shown(scale.displayed(probes.images[rows]), rows, probes, scale, seed)


def same(one, other):
    """All parts bit-identical."""
    return all(
        first is second if first is None or second is None else torch.equal(first, second)
        for first, second in zip(one, other, strict=True)
    )


def refusal(what, probes):
    """Why a cue or a trial does not take these probes, in the house's form; nothing if it does."""
    try:
        what.check(probes)
    except ConfigurationError as error:
        return str(error)
    return ""


def suited(make, probes, *to):
    """A cue that takes these probes; else the test ends here, as the refusal is in the house's form."""
    cue = make(*to)
    why = refusal(cue, probes)
    if why:
        assert why.startswith("Expected ")
        assert ", but got " in why
        pytest.skip(why)
    return cue


def part(twins, rows):
    return [None if tensor is None else tensor[rows] for tensor in twins]


def test_the_contract_covers_what_is_exported():
    exported = (getattr(cues, name) for name in cues.__all__)
    concrete = {kind for kind in exported if inspect.isclass(kind) and not inspect.isabstract(kind)} - {Twins}
    assert concrete == {kind for kind in BUILD if kind.__module__.startswith("xai_callbacks.")}
    assert all(issubclass(kind, Cue) for kind in BUILD)


@every_cue
@every_kind
def test_twins_are_images_as_displayed_and_point_to_classes(make, probes):
    cue = suited(make, probes, 0, 1)
    given = shown_of(probes)
    twins = cue.twins(given)
    for images in (twins.present, twins.absent, twins.neutral):
        assert (images.shape, images.dtype) == (given.images.shape, torch.float32)
        assert ((images >= 0) & (images <= 1)).all()
        assert not images.requires_grad
    assert twins.points_to.dtype == torch.int64
    assert twins.points_to.shape == (len(probes),)
    assert set(twins.points_to.tolist()) <= {-1, *cue.classes(probes)}
    if twins.region is not None:
        assert (twins.region.shape, twins.region.dtype) == (probes.images[:, 0].shape, torch.bool)
    if twins.added is not None:
        assert (twins.added.shape, twins.added.dtype) == ((len(probes),), torch.bool)


@every_cue
@every_kind
def test_some_twins_differ_in_the_region_of_the_cue_and_nowhere_else(make, probes):
    twins = suited(make, probes, 0, 1).twins(shown_of(probes))
    differ = (twins.present != twins.absent).any(dim=1)
    assert differ.any() or len(probes) == 1
    if twins.region is not None:
        assert not (differ & ~twins.region).any()
        assert not ((twins.present != twins.neutral).any(dim=1) & ~twins.region).any()


@every_cue
@every_kind
def test_edits_are_the_same_at_every_call_and_in_every_chunk(make, probes):
    cue = suited(make, probes, 0, 1)
    whole = cue.twins(shown_of(probes))
    torch.manual_seed(77)
    assert same(whole, cue.twins(shown_of(probes)))
    for size in (1, 3):
        for rows in torch.split(torch.arange(len(probes)), size):
            assert same(part(whole, rows), cue.twins(shown_of(probes, rows)))


@every_cue
def test_neither_random_streams_nor_what_is_shown_change(make):
    probes = noise()
    given = shown_of(probes)
    images, regions = given.images.clone(), {name: mask.clone() for name, mask in probes.masks.items()}
    before = random_streams()
    make(0, 1).twins(given)
    assert random_streams() == before
    assert torch.equal(given.images, images)
    assert torch.equal(probes.images, images)
    assert all(torch.equal(mask, regions[name]) for name, mask in probes.masks.items())


@every_cue
def test_pixels_that_are_not_edited_reach_the_model_bit_identical(make):
    probes = normalised()
    given = shown_of(probes)
    twins = make(0, 1).twins(given)
    kept = 0
    for images in (twins.present, twins.absent, twins.neutral):
        untouched = images == given.images
        assert torch.equal(given.scale.expected(images, probes.images)[untouched], probes.images[untouched])
        kept += int(untouched.sum())
    assert kept > 0


@every_cue
def test_a_labelled_probe_gets_the_variant_of_another_class_and_one_alone_is_compared_with_none(make):
    probes = noise(40)
    several, single = make(0, 1), make(1)
    twins = several.twins(shown_of(probes))
    if len(several.points_to) == 2:
        assert torch.equal(twins.points_to, 1 - probes.labels)
    twins = single.twins(shown_of(probes))
    assert set(twins.points_to.tolist()) <= {1, -1}
    if isinstance(single, PaintedCue):
        assert twins.absent is twins.neutral


@every_cue
def test_what_is_painted_is_said_in_words(make):
    for to in ((0, 1), (1,)):
        said = make(*to).describe(noise())
        assert said == " ".join(said.split())
        assert 10 < len(said) < 200
        if len(make(*to).points_to) == 2 and not any(word in said for word in ("whatever", "the class", "picture")):
            assert "for '0' and " in said
            assert "for '1'" in said


@every_cue
def test_a_constant_model_shows_exactly_no_effect(make):
    cue = make(0, 1)
    found = values(Constant(0.4, 0.1, 0.2), noise(), CueTrial(cue))
    for key in ("effect", "effect_logit", "tv", "flip_rate"):
        estimate = found[f"cue/{cue.name}/{key}"]
        assert estimate.value == 0, key
        assert estimate.valid + estimate.degenerate == 7


@every_cue
def test_classes_and_tasks_that_do_not_suit_are_refused(make):
    named = scenes()
    make("red", "green").check(named)
    for classes, message in (
        (("red", "gren"), "Did you mean 'green'"),
        ((0, 3), "below 3, .* but got 3"),
        ((-1, 0), "-1"),
    ):
        if len(make(0, 1).points_to) == 2 or classes[0] == -1:
            with pytest.raises(ConfigurationError, match=message):
                make(*classes).check(named)
    regression = ProbeSet.from_tensors(named.images, targets=torch.zeros(12), masks=named.masks)
    with pytest.raises(ConfigurationError, match="regression"):
        make(0, 1).check(regression)


@every_cue
def test_what_needs_a_region_that_is_missing_says_so_and_all_else_runs(make):
    bare = ProbeSet.from_tensors(noise().images)
    cue = make(0, 1)
    refused = refusal(cue, bare)
    if refused:
        assert "to be a region of the probes" in refused
    else:
        assert cue.twins(shown_of(bare)).present.shape == bare.images.shape


@every_cue
def test_a_cue_can_be_sent_to_another_process(make):
    cue = make(0, 1)
    twin = pickle.loads(pickle.dumps(cue))
    assert same(cue.twins(shown_of(noise())), twin.twins(shown_of(noise())))


def test_the_masks_of_these_tests_have_what_they_promise():
    assert not (masks(4)["core"] & masks(4)["spurious"]).any()
    assert torch.equal(masks(1)["spurious"][0], CUE)
    assert int(masks(1)["core"].sum()) == int(OBJECT.sum())
