"""`CueTrial`: does the model answer by a cue?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.interventions.cues import Cue, Twins
from xai_callbacks.interventions.fills import apply_fill, dilate
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics import cues
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet
from xai_callbacks.tasks import binary_logits
from xai_callbacks.trials.base import Answers, Judged, Trial, Views

__all__ = ["CueTrial"]

# A cue that hides more of the object than this takes away what the model should go by.
_HIDES = 0.2


class CueTrial(Trial):
    """Shows probes with a cue and without it, everything else being equal.

    | key, after `cue/<name>/` | meaning | range | chance |
    |---|---|---|---|
    | `effect` | rise of the probability of the class that the cue points to | [-1, 1] | 0 |
    | `effect_logit` | the same in logits, which do not saturate | any | 0 |
    | `flip_rate` | share answered by the class of the cue with it, and otherwise without | [0, 1] | - |
    | `tv` | total variation distance of the two answers | [0, 1] | - |
    | `consistency` | share answered alike with and without | [0, 1] | - |
    | `spurious_score` | of those not answered so anyway, share that the cue makes answer its class | [0, 1] | 0 |
    | `only_acc` | share answered by the class of the cue, the object blotted out; needs `core` | [0, 1] | 1 / K |
    | `object_only_acc` | share answered as labelled without any cue; needs labels | [0, 1] | 1 / K |
    | `pair_acc` | share answered as labelled both with and without; needs labels | [0, 1] | - |
    | `effect_added`, `effect_removed` | `effect` where the cue was put in or taken out (`PasteCue`) | [-1, 1] | 0 |

    A probe is left out, and counted, where the cue would hide more than a fifth of the region `core`, where there is no
    pair, or where both of a pair are the same, such as a black patch on black. Cost: up to four forward passes a probe:
    with the cue, without, without any variant, and without the object; one less for each view that is a probe as it is
    or another view. A multi-label model is asked about the label that the cue points to, present or not.

    Args:
        cue: The cue.
        seed: Seed of what is random.
    """

    def __init__(self, cue: Cue, *, seed: int = 0) -> None:
        if not isinstance(cue, Cue):
            raise ConfigurationError(
                f"Expected `cue` to be a cue such as PatchCue(...), but got {type(cue).__name__}. A function of images "
                "becomes one by FunctionCue(function, points_to=...)."
            )
        require_integer("seed", seed, minimum=0)
        self.cue = cue
        self.seed = seed
        self.name = f"cue/{cue.name}"

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
        facts = {}
        if core is not None:
            points_to = torch.where(_hidden(core, twins.region) > _HIDES, -1, points_to)
            blot = _with_rim(core, twins.region)
            blotted = apply_fill(shown.images, blot, "local_mean", names=shown.names, seed=self.seed)
            images["only"] = self._twins(replace(shown, images=blotted)).present
            facts["has_core"] = core.flatten(1).any(dim=1)
        if twins.added is not None:
            facts["added"] = twins.added
        return Views(images, {**facts, "points_to": points_to})

    def judge(self, probes: ProbeSet, answers: Answers) -> Judged:
        """See `Trial.judge`."""
        self._check_classes(probes, answers.given.shape[1])
        labels = probes.labels
        if probes.task.kind == "multi-label":
            answers, labels = _about_label(answers, labels)
        present, absent, neutral = (answers.views[name] for name in ("present", "absent", "neutral"))
        classes = answers.facts["points_to"]
        zero = torch.zeros(len(classes), dtype=torch.float64)
        answered_anyway = (neutral.argmax(dim=1) == classes) & neutral.isfinite().all(dim=1)
        effect = cues.cue_effect(present, absent, classes)
        judged = {
            "effect": PerProbe(effect, zero),
            "effect_logit": PerProbe(cues.cue_effect_logit(present, absent, classes), zero),
            "flip_rate": PerProbe(cues.flip_rate(present, absent, classes)),
            "tv": PerProbe(cues.total_variation(present, absent, classes)),
            "consistency": PerProbe(cues.consistency(present, absent, classes)),
            "spurious_score": PerProbe(
                cues.spurious_score(present, neutral, classes), zero.masked_fill(answered_anyway, torch.nan)
            ),
            **self._accuracies(labels, answers, torch.full_like(zero, 1 / present.shape[1])),
        }
        if "added" in answers.facts:
            for key, where in (("added", answers.facts["added"]), ("removed", ~answers.facts["added"])):
                # NaN as a chance level says that a probe is of the other kind.
                judged[f"effect_{key}"] = PerProbe(effect.where(where, torch.nan), zero.where(where, torch.nan))
        return {f"{self.name}/{key}": values for key, values in judged.items()}

    def _twins(self, shown: Shown) -> Twins:
        """The twins, checked: a cue may be the user's own."""
        twins = self.cue.twins(shown)
        count, *_, height, width = shown.images.shape
        expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            **dict.fromkeys(("present", "absent", "neutral"), (shown.images.dtype, tuple(shown.images.shape))),
            "points_to": (torch.int64, (count,)),
            "region": (torch.bool, (count, height, width)),
            "added": (torch.bool, (count,)),
        }
        for name, (dtype, shape) in expected.items():
            part = getattr(twins, name)
            if part is not None and (part.dtype, tuple(part.shape)) != (dtype, shape):
                raise ConfigurationError(
                    f"Expected `{name}` of the twins of the cue {self.cue.name!r} to be {dtype} {shape}, but got "
                    f"{part.dtype} {tuple(part.shape)}."
                )
        return twins

    def _check_classes(self, probes: ProbeSet, count: int) -> None:
        most = max(self.cue.classes(probes))
        if most >= count:
            raise ConfigurationError(
                f"Expected `points_to` of the cue {self.cue.name!r} to be below {count}, the number of classes of the "
                f"model, but got {most}."
            )

    def _accuracies(self, labels: Tensor | None, answers: Answers, chance: Tensor) -> dict[str, PerProbe]:
        found = {}
        classes = answers.facts["points_to"]
        if "only" in answers.views:
            blotted = answers.facts["has_core"]
            values = cues.answers_with(answers.views["only"], classes)
            found["only_acc"] = PerProbe(values.where(blotted, torch.nan), chance.where(blotted, torch.nan))
        if labels is not None:
            found["object_only_acc"] = PerProbe(cues.answers_with(answers.views["neutral"], labels), chance)
            pairs = cues.pair_accuracy(answers.views["present"], answers.views["absent"], classes, labels)
            found["pair_acc"] = PerProbe(pairs.where(labels >= 0, torch.nan))
        return found


def _about_label(answers: Answers, labels: Tensor | None) -> tuple[Answers, Tensor | None]:
    """Answers of a multi-label model about the label that the cue points to alone: class 1 if present, 0 if not."""
    asked = answers.facts["points_to"]

    def about(outputs: Tensor) -> Tensor:
        return binary_logits(outputs.gather(1, asked.clamp_min(0)[:, None]))

    known = None if labels is None else labels.gather(1, asked.clamp_min(0)[:, None])[:, 0].masked_fill(asked < 0, -1)
    facts = {**answers.facts, "points_to": torch.where(asked < 0, -1, 1)}
    views = {name: about(outputs) for name, outputs in answers.views.items()}
    return Answers(about(answers.given), views, facts), known


def _with_rim(core: Tensor, region: Tensor | None) -> Tensor:
    """The object and a rim of one pixel, but for what of the rim is cue."""
    rim = dilate(core, 1)
    return rim if region is None else core | (rim & ~region)


def _hidden(core: Tensor, region: Tensor | None) -> Tensor:
    """Share of the object that the cue hides, `(n,)`; 0 for probes without an object, and for a tint."""
    if region is None:
        return torch.zeros(len(core))
    return (core & region).flatten(1).sum(dim=1) / core.flatten(1).sum(dim=1).clamp(min=1)
