"""Trials of regions: filled, set on other backgrounds, or the half of the image opposite to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_choice, require_instance, require_integer, require_name
from xai_callbacks.interventions.fills import FILLS, apply_fill, dilate
from xai_callbacks.interventions.regions import HALVES, half_masks, partners, placebo_masks, require_region
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics.cues import answers_with, spread
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import Key, Measured, PerProbe, summarize
from xai_callbacks.trials.base import Answers, Trial, Views

_HIDES = 0.2  # a placebo that hides more of another region than this shows what that region does


class RegionTrial(Trial):
    """Fills a region, and elsewhere a place of the same shape, and looks how much accuracy is lost.

    `region/<region>/drop` is accuracy as shown minus accuracy with the region filled, mean over the fills, and
    `drop_minus_placebo` that beside the same fill elsewhere, away from `core` and `spurious`; `keys` has all. Those
    of placebos are NaN, and counted, for a region too large to move away from itself, or whose place elsewhere would
    hide more than a fifth of `core` or `spurious`.

    Of the object, a *small* drop is suspicious; of a cue, a large one where it agrees with the label, and one below 0
    where it contradicts. Cost: two forward passes a probe and fill.

    Args:
        region: Name of the region.
        fills: See `interventions.fills`; three or more, as each leaves a mark. `swap` takes a probe of a random class.
        grow: Pixels by which the region grows first, so that no rim stays behind.
        seed: Seed of fills and draws.
    """

    def __init__(
        self, region: str, fills: Sequence[str] = ("local_mean", "blur", "swap"), *, grow: int = 1, seed: int = 0
    ) -> None:
        _require_arguments(region, grow, seed)
        self.fills = _require_fills(fills)
        self.region, self.grow, self.seed = region, grow, seed
        self.name = f"region/{region}"

    def keys(self) -> Sequence[Key]:
        """See `Trial.keys`."""
        words = {
            "drop": "accuracy lost with the region filled, mean over the fills",
            **{f"drop/{fill}": f"accuracy lost with the region filled by {fill}" for fill in self.fills},
            "placebo_drop": "accuracy lost with as much filled elsewhere",
            "drop_minus_placebo": "accuracy lost with the region, beyond what is lost with as much elsewhere",
        }
        return [Key(f"{self.name}/{key}", meaning, -1.0, 1.0, "0") for key, meaning in words.items()]

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; needs labels and the region, and two probes to swap."""
        _require_labelled(probes, self.region, self.name)
        if "swap" in self.fills and len(probes) < 2:
            raise ConfigurationError(f"Expected two probes or more for the fill 'swap' of {self.name}, but got one.")

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        region = shown.probes.masks[self.region][shown.rows]
        masks = dilate(region, self.grow)
        others = self._others(shown)
        placebo = placebo_masks(masks, self.seed, shown.names, avoid=others)
        hidden = (placebo & others).flatten(1).sum(dim=1) > _HIDES * others.flatten(1).sum(dim=1)
        images = {}
        for fill in self.fills:
            images[fill] = _filled(shown, masks, fill, self.seed)
            images[f"placebo {fill}"] = _filled(shown, placebo, fill, self.seed)
        facts = {"has": region.flatten(1).any(dim=1), "moved": placebo.flatten(1).any(dim=1) & ~hidden}
        return Views(images, facts)

    def judge(self, probes: ProbeSet, answers: Answers) -> Measured:
        """See `Trial.judge`."""
        given, has = answers_with(answers.given, _labels(probes)), answers.facts["has"]
        lost = {name: given - answers_with(outputs, _labels(probes)) for name, outputs in answers.views.items()}
        drops = {fill: lost[fill] for fill in self.fills}
        placebo = torch.stack([lost[f"placebo {fill}"] for fill in self.fills]).mean(dim=0)
        drop = torch.stack(list(drops.values())).mean(dim=0)
        compared = {
            "drop": drop,
            **{f"drop/{fill}": values for fill, values in drops.items()},
            "placebo_drop": placebo.where(answers.facts["moved"], torch.nan),
            "drop_minus_placebo": (drop - placebo).where(answers.facts["moved"], torch.nan),
        }
        zero = torch.zeros_like(drop).where(has, torch.nan)
        return {f"{self.name}/{key}": PerProbe(values.where(has, torch.nan), zero) for key, values in compared.items()}

    def _others(self, shown: Shown) -> Tensor:
        """Pixels that a placebo should leave alone, `(n, H, W)`: the object, the cue, or both."""
        names = {"core", "spurious"} & set(shown.probes.masks) - {self.region}
        none = torch.zeros(len(shown.images), *shown.images.shape[-2:], dtype=torch.bool)
        return torch.stack([none, *(shown.probes.masks[name][shown.rows] for name in names)]).any(dim=0)


class BackgroundTrial(Trial):
    """Sets objects on backgrounds of other probes, of the same class and of another one.

    `bg/gap` is accuracy on backgrounds of the own class minus that on those of another class, each equally likely. The
    Mixed-Rand of ImageNet-9 (Xiao et al. 2021) draws the own class, too: its gap is (K - 1) / K of this one.
    `bg/only_acc` is what the background alone gives away, `fg/only_acc` what the object alone does.

    The gap shows use of backgrounds only as far as those of the probes go with their labels, as in training; a note
    says where that is in doubt. `CueTrial(BackgroundCue(...))` needs no such probes. Objects should leave a good part
    of the image to the background, and be large enough to be known without it. Probes lend that have the region and a
    background. `bg/other_acc` and `bg/gap` are NaN for probes of a single class. Cost: four forward passes a probe.

    Args:
        region: Region of the object.
        fill: Takes the place of an object. Its outline stays, and of a `blur` its colours, too, which may tell the
            class and add to `bg/only_acc`. Backgrounds are filled with the mean colour of all probes, which tells none.
        grow: Pixels by which an object grows before it is filled, so that no rim stays behind.
        seed: Seed of fills and draws.
    """

    def __init__(self, region: str = "core", fill: str = "local_mean", *, grow: int = 1, seed: int = 0) -> None:
        _require_arguments(region, grow, seed)
        (self.fill,) = _require_fills([fill], without=["swap"])
        self.region, self.grow, self.seed = region, grow, seed
        self.name = "bg"

    def keys(self) -> Sequence[Key]:
        """See `Trial.keys`."""
        shares = {
            "bg/same_acc": "right on backgrounds of the own class",
            "bg/other_acc": "right on backgrounds of another class",
            "bg/only_acc": "right with the object filled",
            "fg/only_acc": "right with the background filled",
        }
        gap = Key("bg/gap", "accuracy on backgrounds of the own class minus that on others", -1.0, 1.0, "0")
        return [*(Key(key, words, 0.0, 1.0, "1 / K", "share") for key, words in shares.items()), gap]

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; needs labels and the region."""
        _require_labelled(probes, self.region, self.name)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        probes = shown.probes
        masks = probes.masks[self.region]
        own, pixels = masks[shown.rows], masks.flatten(1)
        has = pixels.any(dim=1) & ~pixels.all(dim=1)  # an object, and a background
        plain = shown.scale.displayed(probes.images.mean(dim=(0, 2, 3), keepdim=True))
        foreground = torch.where(own[:, None], shown.images, plain)
        images = {"background": self._filled(shown.images, own, shown.names), "foreground": foreground}
        facts = {"has": has[shown.rows]}
        for kind in ("same", "other"):
            places = _lenders(_labels(probes), has, kind, self.seed)[shown.rows]
            facts[kind] = places >= 0
            places = torch.where(places >= 0, places, shown.rows)
            others = shown.scale.displayed(probes.images[places])
            names = [probes.names[place] for place in places.tolist()]
            images[kind] = torch.where(own[:, None], shown.images, self._filled(others, masks[places], names))
        return Views(images, facts)

    def judge(self, probes: ProbeSet, answers: Answers) -> Measured:
        """See `Trial.judge`."""
        right = {name: answers_with(outputs, _labels(probes)) for name, outputs in answers.views.items()}
        chance = torch.full_like(right["same"], 1 / answers.given.shape[1])
        has, same, other = (answers.facts[name] for name in ("has", "same", "other"))

        def over(values: Tensor, where: Tensor, level: Tensor) -> PerProbe:
            # A probe with an object should have a value; one that no other lends a background to has none.
            return PerProbe(values.where(where, torch.nan), level.where(has, torch.nan))

        return {
            "bg/same_acc": over(right["same"], same, chance),
            "bg/other_acc": over(right["other"], other, chance),
            "bg/gap": over(right["same"] - right["other"], same & other, torch.zeros_like(chance)),
            "bg/only_acc": over(right["background"], has, chance),
            "fg/only_acc": over(right["foreground"], has, chance),
        }

    def notes(self, answers: Answers, judged: Measured) -> Sequence[str]:
        """See `Trial.notes`; whether `bg/gap` can show use of the background."""
        parts = (judged["bg/gap"], judged["bg/only_acc"])
        found = [summarize(each.values, bounds=(-1.0, 1.0)) for each in parts if isinstance(each, PerProbe)]
        gap, only = (each.value if each.low is None else each.low for each in found)
        if gap > 0 or only > 1 / answers.given.shape[1]:
            return ()
        return (
            "`bg/gap` is no evidence that the model ignores the background: by the backgrounds of these probes it is "
            "right no more often than by chance (`bg/only_acc`), and perhaps they do not go with the labels. Try the "
            "backgrounds of training, CueTrial(BackgroundCue(...)).",
        )

    def _filled(self, images: Tensor, masks: Tensor, names: list[str]) -> Tensor:
        return apply_fill(images, dilate(masks, self.grow), self.fill, names=names, seed=self.seed)


class HalfTrial(Trial):
    """Overwrites half of the image in several ways: does the answer depend on what stands in the other half?

    `fill/tv` is the mean total variation distance of the answers from their mean, `fill/disagree` the share of probes
    whose answers differ, and `fill/changed/<fill>` that of probes whose answer is another than that of the whole image.
    Clean models fail it, too: it measures how a model stands missing parts, not shortcuts. Read it beside its value
    before training. Cost: one forward pass a probe and fill.

    Args:
        half: What to overwrite: `top`, `bottom`, `left`, `right`, or with `keep_object` the half opposite to `core`.
        fills: Two or more.
        seed: Seed of the fills.
        name: Beginning of the keys; another one is needed for a second half.
    """

    def __init__(
        self,
        half: str = "keep_object",
        fills: Sequence[str] = ("white", "black", "uniform"),
        *,
        seed: int = 0,
        name: str = "fill",
    ) -> None:
        require_choice("half", half, HALVES)
        _require_arguments(seed=seed)
        self.fills = _require_fills(fills, min_count=2, without=["swap"])
        require_name("`name` of HalfTrial", name)
        self.half, self.seed, self.name = half, seed, name

    def keys(self) -> Sequence[Key]:
        """See `Trial.keys`."""
        tv = Key(f"{self.name}/tv", "distance of the answers from their mean over the fills", 0.0, 1.0)
        shares = {"disagree": "answered differently by what fills the other half"} | {
            f"changed/{fill}": f"answered differently with half the image filled by {fill}" for fill in self.fills
        }
        return [tv, *(Key(f"{self.name}/{key}", words, 0.0, 1.0, unit="share") for key, words in shares.items())]

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`; `keep_object` needs the region `core`."""
        probes.task.require_classes("HalfTrial", single=True)
        if self.half == "keep_object":
            require_region("core", probes, "half='keep_object'", self.name)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        height, width = shown.images.shape[-2:]
        masks = half_masks(shown.region("core"), (height, width), self.half).expand(len(shown.images), -1, -1)
        images = {fill: apply_fill(shown.images, masks, fill, names=shown.names, seed=self.seed) for fill in self.fills}
        return Views(images, {"has": masks.flatten(1).any(dim=1)})

    def judge(self, probes: ProbeSet, answers: Answers) -> Measured:
        """See `Trial.judge`."""
        distance, disagree = spread(torch.stack([answers.views[fill] for fill in self.fills]))
        has = answers.facts["has"]
        whole = probes.task.predictions(answers.given)
        changed = {f"changed/{fill}": 1 - answers_with(answers.views[fill], whole) for fill in self.fills}
        found = {"tv": distance, "disagree": disagree} | changed
        return {f"{self.name}/{key}": PerProbe(values.where(has, torch.nan)) for key, values in found.items()}


def _filled(shown: Shown, masks: Tensor, fill: str, seed: int) -> Tensor:
    """One fill; `swap` takes its pixels from another probe of the whole set, whatever the chunk."""
    if fill != "swap":
        return apply_fill(shown.images, masks, fill, names=shown.names, seed=seed)
    # Not from a place further in the set: where that is ordered, it would be one of the same class.
    places = partners(_labels(shown.probes), "rand", seed)[shown.rows]
    others = shown.scale.displayed(shown.probes.images[places])
    return torch.where(masks[:, None], others, shown.images)


def _lenders(labels: Tensor, suited: Tensor, kind: str, seed: int) -> Tensor:
    """The probe that lends its background to each, `(N,)`: one whose object can be removed; -1 if there is none."""
    rows = suited.nonzero()[:, 0]
    found = torch.full_like(labels, -1)
    if kind == "same" or len(torch.unique(labels[rows])) > 1:
        places = partners(labels[rows], kind, seed)
        found[rows] = torch.where(places >= 0, rows[places], -1)
    return found


def _require_arguments(region: object = "", grow: object = 0, seed: object = 0) -> None:
    """Check what most trials are given: the name of a region, pixels by which it grows, and a seed."""
    require_instance("region", region, str, "the name of a region")
    require_integer("grow", grow, minimum=0, hint="It is a number of pixels.")
    require_integer("seed", seed, minimum=0)


def _require_labelled(probes: ProbeSet, region: str, name: str) -> None:
    """Refuse probes of the trial `name` without labels that exclude each other, or without the region."""
    if probes.labels is None:
        raise ConfigurationError(
            f"Expected labelled probes for the trial {name!r}, which counts right answers, but got none. Pass "
            "`labels=` when you build them."
        )
    probes.task.require_classes(name, single=True)
    require_region(region, probes, "region", name)


def _labels(probes: ProbeSet) -> Tensor:
    """Labels of probes that `_require_labelled` let pass."""
    assert probes.labels is not None  # noqa: S101  # narrows the type
    return probes.labels


def _require_fills(fills: Sequence[str], *, min_count: int = 1, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of `min_count` or more different fills, but for `without`."""
    known = [fill for fill in FILLS if fill not in without]
    usable = isinstance(fills, list | tuple) and all(isinstance(fill, str) and fill in known for fill in fills)
    if not usable or len(fills) < min_count:
        raise ConfigurationError(
            f"Expected `fills` to be a list of {min_count} or more of {', '.join(known)}, but got {fills!r}."
        )
    if len(set(fills)) < len(fills):
        raise ConfigurationError(f"Expected `fills` to be different ones, but got {fills!r}. Name each once.")
    return tuple(fills)
