"""`CueTrial`: does the model answer by a cue?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.interventions.cues import Cue, Twins
from xai_callbacks.interventions.fills import apply_fill, dilate
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics import cues
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import Key, PerProbe
from xai_callbacks.tasks import binary_logits
from xai_callbacks.trials.base import Answers, Judged, Trial, Views

__all__ = ["CueTrial"]

_KEYS = (
    Key("effect", "rise of the probability of the class that the cue points to", -1.0, 1.0, "0"),
    Key("effect_logit", "the same in logits, which do not saturate", chance="0", unit="logits"),
    Key("flip_rate", "answered by the class of the cue with it, and otherwise without", 0.0, 1.0, unit="share"),
    Key("tv", "total variation distance of the answers with and without the cue", 0.0, 1.0),
    Key("consistency", "answered alike with and without the cue", 0.0, 1.0, unit="share"),
    Key("spurious_score", "made to answer the class of the cue, of the others", 0.0, 1.0, "0", "share"),
    Key("only_acc", "answered by the class of the cue, the object blotted out", 0.0, 1.0, "1 / K", "share"),
    Key("object_only_acc", "answered as labelled without any cue", 0.0, 1.0, "1 / K", "share"),
    Key("pair_acc", "answered as labelled both with and without the cue", 0.0, 1.0, unit="share"),
    Key("effect_added", "effect where the cue was put in", -1.0, 1.0, "0"),
    Key("effect_removed", "effect where the cue was taken out", -1.0, 1.0, "0"),
)

# A cue that hides more of the object than this takes away what the model should go by.
_HIDES = 0.2


class CueTrial(Trial):
    """Shows probes with a cue and without it, everything else being equal.

    `cue/<name>/effect` is the rise of the probability of the class that the cue points to, in [-1, 1]; the others are
    declared in `keys`. `only_acc` needs the region `core`; `object_only_acc` and `pair_acc` need labels;
    `effect_added` and `effect_removed` are of cues that are put in and taken out (`PasteCue`).

    A probe is left out, and counted, where the cue would hide more than a fifth of the region `core`, where there is no
    pair, or where both of a pair are the same, such as a black patch on black. Cost: up to four forward passes a probe:
    with the cue, without, without any variant, and without the object; one less for each view that is a probe as it is
    or another view. A multi-label model is asked about the label that the cue points to, present or not.

    Args:
        cue: The cue.
        seed: Seed of variants and places.
    """

    def __init__(self, cue: Cue, *, seed: int = 0) -> None:
        if not isinstance(cue, Cue):
            raise ConfigurationError(
                f"Expected `cue` to be a cue such as PatchCue(...), but got {type(cue).__name__}. A function of images "
                "becomes one by FunctionCue(function, points_to=...)."
            )
        require_integer("seed", seed, minimum=0)
        self.cue, self.seed = cue, seed
        self.name = f"cue/{cue.name}"

    def keys(self) -> Sequence[Key]:
        """See `Trial.keys`."""
        return [key._replace(key=f"{self.name}/{key.key}") for key in _KEYS]

    def check(self, probes: ProbeSet) -> None:
        """See `Trial.check`."""
        self.cue.check(probes)

    def views(self, shown: Shown) -> Views:
        """See `Trial.views`."""
        shown = replace(shown, seed=self.seed)
        twins = self._twins(shown)
        core = shown.region("core")
        # Two images that are the same would say that the cue has no effect, whatever the model.
        alike = (twins.present == twins.absent).flatten(1).all(dim=1)
        points_to = torch.where(alike, -1, twins.points_to)
        images = {"present": twins.present, "absent": twins.absent, "neutral": twins.neutral}
        facts = {} if twins.added is None else {"added": twins.added}
        if core is not None:
            region = torch.zeros_like(core) if twins.region is None else twins.region
            hidden = (core & region).flatten(1).sum(dim=1) > _HIDES * core.flatten(1).sum(dim=1)
            points_to = torch.where(hidden, -1, points_to)
            # The object and a rim of one pixel, but for the cue in the rim.
            blot = core | (dilate(core, 1) & ~region)
            blotted = apply_fill(shown.images, blot, "local_mean", names=shown.names, seed=self.seed)
            images["only"] = self._twins(replace(shown, images=blotted)).present
            facts["has_core"] = core.flatten(1).any(dim=1)
        return Views(images, {**facts, "points_to": points_to})

    def judge(self, probes: ProbeSet, answers: Answers) -> Judged:
        """See `Trial.judge`."""
        most, count = max(self.cue.classes(probes)), answers.given.shape[1]
        if most >= count:
            raise ConfigurationError(
                f"Expected `points_to` of the cue {self.cue.name!r} to be below {count}, the number of classes of the "
                f"model, but got {most}."
            )
        labels = probes.labels
        if probes.task.kind == "multi-label":
            answers, labels = _about_label(answers, labels)
        present, absent, neutral = (answers.views[name] for name in ("present", "absent", "neutral"))
        classes = answers.facts["points_to"]
        zero = torch.zeros(len(classes), dtype=torch.float64)
        chance = torch.full_like(zero, 1 / present.shape[1])
        anyway = (neutral.argmax(dim=1) == classes) & neutral.isfinite().all(dim=1)
        score = cues.spurious_score(present, neutral, classes)
        effect = cues.cue_effect(present, absent, classes)
        judged = {
            "effect": PerProbe(effect, zero),
            "effect_logit": PerProbe(cues.cue_effect_logit(present, absent, classes), zero),
            "flip_rate": PerProbe(cues.flip_rate(present, absent, classes)),
            "tv": PerProbe(cues.total_variation(present, absent, classes)),
            "consistency": PerProbe(cues.consistency(present, absent, classes)),
            "spurious_score": PerProbe(score, zero.masked_fill(anyway, torch.nan)),
        }
        if "only" in answers.views:
            blotted = answers.facts["has_core"]
            values = cues.answers_with(answers.views["only"], classes)
            judged["only_acc"] = PerProbe(values.where(blotted, torch.nan), chance.where(blotted, torch.nan))
        if labels is not None:
            judged["object_only_acc"] = PerProbe(cues.answers_with(neutral, labels), chance)
            pairs = cues.pair_accuracy(present, absent, classes, labels)
            judged["pair_acc"] = PerProbe(pairs.where(labels >= 0, torch.nan))
        if "added" in answers.facts:
            for key, where in (("added", answers.facts["added"]), ("removed", ~answers.facts["added"])):
                # NaN as a chance level says that a probe is of the other kind.
                judged[f"effect_{key}"] = PerProbe(effect.where(where, torch.nan), zero.where(where, torch.nan))
        return {f"{self.name}/{key}": values for key, values in judged.items()}

    def _twins(self, shown: Shown) -> Twins:
        """The twins, checked: a cue may be the user's own."""
        twins = self.cue.twins(shown)
        size = tuple(shown.images.shape)
        images, booleans = (shown.images.dtype, size), (torch.bool, (size[0], *size[2:]))
        expected = (images, images, images, (torch.int64, size[:1]), booleans, (torch.bool, size[:1]))
        for name, part, (dtype, shape) in zip(Twins._fields, twins, expected, strict=True):
            if part is not None and (part.dtype, tuple(part.shape)) != (dtype, shape):
                raise ConfigurationError(
                    f"Expected `{name}` of the twins of the cue {self.cue.name!r} to be {dtype} {shape}, but got "
                    f"{part.dtype} {tuple(part.shape)}."
                )
        return twins


def _about_label(answers: Answers, labels: Tensor | None) -> tuple[Answers, Tensor | None]:
    """Answers of a multi-label model about the label that the cue points to alone: class 1 if present, 0 if not."""
    asked = answers.facts["points_to"]

    def about(outputs: Tensor) -> Tensor:
        return binary_logits(outputs.gather(1, asked.clamp_min(0)[:, None]))

    known = None if labels is None else labels.gather(1, asked.clamp_min(0)[:, None])[:, 0].masked_fill(asked < 0, -1)
    facts = {**answers.facts, "points_to": torch.where(asked < 0, -1, 1)}
    views = {name: about(outputs) for name, outputs in answers.views.items()}
    return Answers(about(answers.given), views, facts), known
