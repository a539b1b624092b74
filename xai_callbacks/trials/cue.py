"""`CueTrial`: does the model answer by a cue?"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.interventions.controls import CONTROLS, NEARBY, control_of, neighbour_of
from xai_callbacks.interventions.cues import Cue, Twins
from xai_callbacks.interventions.fills import apply_fill, dilate
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics import cues
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import FEWEST_FOR_INTERVAL, Estimate, Key, Measured, PerProbe, summarize
from xai_callbacks.tasks import binary_logits
from xai_callbacks.trials.base import Answers, Trial, Views

_KEYS = (
    Key("pull", "how much the cue moves the probability of the label towards the class it points to", -1.0, 1.0, "0"),
    Key("gap", "accuracy with the cue of the own class less that with another", -1.0, 1.0, "0"),
    Key("gain", "what the label gains by the cue of its own class, against none", -1.0, 1.0, "0"),
    Key("loss", "what the label loses by the cue of another class, against none", -1.0, 1.0, "0"),
    Key("room", "what the label can gain, 1 less its probability without any cue; of three classes or more", 0.0, 1.0),
    Key("control", "pull of the strongest control, an edit of the same place and contrast", -1.0, 1.0, "0"),
    Key("excess", "pull beyond that of the strongest control, cut to [-1, 1]", -1.0, 1.0, "0"),
    Key("nearby/*", "pull of a cue almost like it", -1.0, 1.0, "0"),
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
    Key("raises/*", "rise of the class that rises most, where it is not that of the cue", -1.0, 1.0, "0"),
)

# Edits that no data taught may happen to go with one class or two in the order that was asked about.
_PAIRED_BY_NO_CHANCE = 3
_HIDES = 0.2  # a cue that hides more of the object than this takes away what the model should go by
_SEEN = 0.05  # change of a pixel, in [0, 1], from which on it is hidden
_ALIKE, _HIDDEN, _UNPAIRED = 1, 2, 3  # why a probe is left out
_WHY = {
    _ALIKE: "look the same with the cue and without",
    _HIDDEN: "would have more than a fifth of their object hidden",
    _UNPAIRED: "cannot be given the cue",
}


class CueTrial(Trial):
    """Shows probes with a cue and without it, everything else being equal.

    A labelled probe is shown with the cue of another class, and with that of its own or without any.
    `cue/<name>/pull`, in [-1, 1], is what the probability of the label moves towards the class that the cue points to;
    `cue/<name>/gap` is the same of right answers, the accuracy gap itself. Both are means over classes, so that neither
    the number of classes nor the mix of the probes matters. `excess` is the pull beyond that of the strongest of some
    controls, edits of the same place and contrast that no data taught: what a model makes of any such edit is no use of
    the cue. `nearby/...` are pulls of neighbours of the cue. `keys` declares all; of these `pull`, `gap`, `control`,
    `excess`, `object_only_acc` and `pair_acc` need labels, `only_acc` the region `core`, and `effect_added` and
    `effect_removed` a cue that is put in and taken out (`PasteCue`).

    A probe is left out, and counted, where the cue would hide more than a fifth of the region `core`, where there is no
    pair, or where both of a pair are the same, such as a black patch on black. Cost: up to four forward passes a probe
    (with the cue, with that of the own class, without any, and without the object), one or two for each control and
    neighbour; none for a view of a probe as it is. Multi-label models are asked about the label that the cue points to.

    Args:
        cue: The cue.
        controls: Controls to compare with, see `interventions.controls`; none for no `excess`.
        nearby: Neighbours of the cue to try, too: some of `left`, `right`, `up`, `down`, `weaker`, `stronger`,
            `smaller` and `larger`. Their intervals are wider, as several are tried.
        seed: Seed of variants and places.
    """

    def __init__(
        self, cue: Cue, *, controls: Sequence[str] = CONTROLS, nearby: Sequence[str] = (), seed: int = 0
    ) -> None:
        if not isinstance(cue, Cue):
            raise ConfigurationError(
                f"Expected `cue` to be a cue such as PatchCue(...), but got {type(cue).__name__}. A function of images "
                "becomes one by FunctionCue(function, points_to=...)."
            )
        for argument, given, known in (("controls", controls, CONTROLS), ("nearby", nearby, NEARBY)):
            if not isinstance(given, list | tuple) or any(each not in known for each in given):
                raise ConfigurationError(
                    f"Expected `{argument}` to be a list of some of {', '.join(known)}, but got {given!r}."
                )
        require_integer("seed", seed, minimum=0)
        self.cue, self.seed = cue, seed
        self.controls, self.nearby = tuple(controls), tuple(nearby)
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
        why = torch.where((twins.present == twins.absent).flatten(1).all(dim=1), _ALIKE, 0)
        images = {"present": twins.present, "absent": twins.absent, "neutral": twins.neutral}
        facts = {} if twins.added is None else {"added": twins.added}
        if core is not None:
            region = torch.zeros_like(core) if twins.region is None else twins.region
            changed = (twins.present - twins.neutral).abs().amax(dim=1) > _SEEN
            hidden = (core & region & changed).flatten(1).sum(dim=1) > _HIDES * core.flatten(1).sum(dim=1)
            why = torch.where(hidden, _HIDDEN, why)
            # The object and a rim of one pixel, but for the cue in the rim.
            blot = core | (dilate(core, 1) & ~region)
            blotted = apply_fill(shown.images, blot, "local_mean", names=shown.names, seed=self.seed)
            images["only"] = self._twins(replace(shown, images=blotted)).present
            facts["has_core"] = core.flatten(1).any(dim=1)
        if shown.probes.labels is not None:
            images |= self._beside(twins, shown)
        why = torch.where(twins.points_to < 0, _UNPAIRED, why)
        own = (twins.absent != twins.neutral).flatten(1).any(dim=1)
        points_to = twins.points_to.masked_fill(why > 0, -1)
        return Views(images, {**facts, "why": why, "own": own, "points_to": points_to})

    def judge(self, probes: ProbeSet, answers: Answers) -> Measured:
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
        judged: dict[str, PerProbe | Estimate] = {
            "effect": PerProbe(effect, zero, labels),
            "effect_logit": PerProbe(cues.cue_effect_logit(present, absent, classes), zero, labels),
            "flip_rate": PerProbe(cues.flip_rate(present, absent, classes), None, labels),
            "tv": PerProbe(cues.total_variation(present, absent, classes), None, labels),
            "consistency": PerProbe(cues.consistency(present, absent, classes), None, labels),
            "spurious_score": PerProbe(score, zero.masked_fill(anyway, torch.nan), labels),
        }
        if "only" in answers.views:
            blotted = answers.facts["has_core"]
            values = cues.answers_with(answers.views["only"], classes)
            judged["only_acc"] = PerProbe(values.where(blotted, torch.nan), chance.where(blotted, torch.nan))
        if labels is not None:
            read = self._of_labels(answers, labels)
            judged |= {**read, **self._near(answers, labels)}
            pointed, single = set(self.cue.classes(probes)), probes.task.kind == "single-label"
            if single and len(pointed) >= _PAIRED_BY_NO_CHANCE:
                known = neutral.double().softmax(dim=1).gather(1, labels.clamp_min(0)[:, None])[:, 0]
                judged["room"] = PerProbe((1 - known).where(read["gain"].values.isfinite(), torch.nan), None, labels)
            elif single and len(pointed) == 1:
                other, towards = cues.risen_class(present, neutral, classes, labels)
                if other not in pointed:
                    judged[f"raises/{probes.task.name(other)}"] = PerProbe(towards, zero, labels)
        if "added" in answers.facts:
            for key, where in (("added", answers.facts["added"]), ("removed", ~answers.facts["added"])):
                # NaN as a chance level says that a probe is of the other kind.
                judged[f"effect_{key}"] = PerProbe(effect.where(where, torch.nan), zero.where(where, torch.nan))
        return {f"{self.name}/{key}": values for key, values in judged.items()}

    def notes(self, answers: Answers, judged: Measured) -> Sequence[str]:
        """See `Trial.notes`; why few probes are valid."""
        why = answers.facts["why"].tolist()
        if why.count(0) >= FEWEST_FOR_INTERVAL:
            return ()
        reasons = [f"{why.count(code)} {words}" for code, words in _WHY.items() if code in why]
        return (
            f"Of {len(why)} probes {why.count(0)} suit the cue {self.cue.name!r}, and with fewer than "
            f"{FEWEST_FOR_INTERVAL} there is no interval{''.join(f'; {reason}' for reason in reasons)}.",
        )

    def _beside(self, twins: Twins, shown: Shown) -> dict[str, Tensor]:
        """Controls and neighbours of both of each pair; of a twin without the cue, the very same."""
        plain, found = twins.neutral, dict[str, Tensor]()
        edits = {kind: partial(control_of, kind, shown=shown, plain=plain) for kind in self.controls}
        edits |= {kind: partial(neighbour_of, kind, plain=plain) for kind in self.nearby}
        for kind, edit in edits.items():
            found[f"{kind} present"] = edit(twins.present)
            found[f"{kind} absent"] = plain if twins.absent is plain else edit(twins.absent)
        return found

    def _of_labels(self, answers: Answers, labels: Tensor) -> dict[str, PerProbe]:
        present, absent, neutral = (answers.views[name] for name in ("present", "absent", "neutral"))
        classes = answers.facts["points_to"]
        zero = torch.zeros(len(classes), dtype=torch.float64).masked_fill(labels < 0, torch.nan)
        pull = cues.cue_pull(present, absent, classes, labels)
        mine, own = classes == labels, answers.facts["own"]
        with_own = torch.where(mine[:, None], present, absent)
        gain = cues.cue_pull(with_own, neutral, classes.where(classes < 0, labels), labels)
        loss = cues.cue_pull(present, neutral, classes, labels)
        pairs = cues.pair_accuracy(present, absent, classes, labels)
        judged = {
            "pull": PerProbe(pull, zero, labels),
            "gap": PerProbe(cues.cue_gap(present, absent, classes, labels), zero, labels),
            "gain": PerProbe(gain.where(mine | own, torch.nan), zero.where(mine | own, torch.nan), labels),
            "loss": PerProbe(loss.where(~mine, torch.nan), zero.where(~mine, torch.nan), labels),
            "object_only_acc": PerProbe(cues.answers_with(neutral, labels), zero + 1 / present.shape[1]),
            "pair_acc": PerProbe(pairs.where(labels >= 0, torch.nan)),
        }
        if self.controls:
            side = 1.0 if summarize(pull, strata=labels).value >= 0 else -1.0
            controls = [_pull_of(kind, answers, labels) for kind in self.controls]
            strongest = max(controls, key=lambda each: side * summarize(each, strata=labels).value)
            judged["control"] = PerProbe(strongest, zero, labels)
            judged["excess"] = PerProbe((side * (pull - strongest)).clamp(-1, 1), zero, labels)
        return judged

    def _near(self, answers: Answers, labels: Tensor) -> dict[str, Estimate]:
        """Pulls of the neighbours, with intervals for as many as there are."""
        bounds, level, found = (-1.0, 1.0), 1 - 0.05 / max(1, len(self.nearby)), dict[str, Estimate]()
        for kind in self.nearby:
            pull = _pull_of(kind, answers, labels)
            found[f"nearby/{kind}"] = summarize(pull, strata=labels, bounds=bounds, confidence=level)
        return found

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


def _pull_of(kind: str, answers: Answers, labels: Tensor) -> Tensor:
    """Pull of a control or a neighbour, `(N,)`."""
    present, absent = (answers.views[f"{kind} {side}"] for side in ("present", "absent"))
    return cues.cue_pull(present, absent, answers.facts["points_to"], labels)


def _about_label(answers: Answers, labels: Tensor | None) -> tuple[Answers, Tensor | None]:
    """Answers of a multi-label model about the label that the cue points to alone: class 1 if present, 0 if not."""
    asked = answers.facts["points_to"]

    def about(outputs: Tensor) -> Tensor:
        return binary_logits(outputs.gather(1, asked.clamp_min(0)[:, None]))

    known = None if labels is None else labels.gather(1, asked.clamp_min(0)[:, None])[:, 0].masked_fill(asked < 0, -1)
    facts = {**answers.facts, "points_to": torch.where(asked < 0, -1, 1)}
    views = {name: about(outputs) for name, outputs in answers.views.items()}
    return Answers(about(answers.given), views, facts), known
