"""`TrialRunner`: shows a model the edited probes of several trials."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.audit.checks import require_instances
from xai_callbacks.audit.measuring import require_measured
from xai_callbacks.errors import ConfigurationError, in_words, require_different
from xai_callbacks.interventions.fills import ROUNDING
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import Estimate, Key, PerProbe
from xai_callbacks.trials import Trial
from xai_callbacks.trials.base import Answers, Views


class Tried(NamedTuple):
    """Metrics by key, which trials failed and why, and what metrics cannot show, in sentences."""

    judged: dict[str, PerProbe | Estimate]
    failed: tuple[str, ...]
    notes: tuple[str, ...] = ()


class TrialRunner:
    """Runs trials, each with a name of its own, on one probe set.

    Raises a `ConfigurationError` if a trial does not suit the probes, two have one name, or it is unknown which values
    of the images are black and white.
    """

    def __init__(self, probes: ProbeSet, trials: Sequence[Trial]) -> None:
        require_instances("trials", trials, Trial, "Pass trials such as [CueTrial(PatchCue(...))].")
        hint = "Give a cue another `name=`; of other trials, keep one, as both would have the same keys."
        require_different("trials", (trial.name for trial in trials), hint)
        for trial in trials:
            trial.check(probes)
        self.probes, self.trials = probes, tuple(trials)
        self._found: dict[str, str] = {}
        if trials:
            self._scale = PixelScale.of(probes)  # raises if it is unknown

    @property
    def keys(self) -> tuple[Key, ...]:
        """Declarations of the metrics of all trials; those that a trial does not declare, once it has been run."""
        declared = [key for trial in self.trials for key in trial.keys()]  # noqa: SIM118  # no mapping
        if not self._found:
            return tuple(declared)
        others = [key for key in self._found if not any(each.matches(key) for each in declared)]
        given = [each for each in declared if any(each.matches(key) for key in self._found)]
        return (*given, *(Key(key, key.replace("/", " ").replace("_", " ")) for key in others))

    def look(self, subject: Subject, given: Tensor, taken: Collection[str] = ()) -> None:
        """Run all trials on the first probes, of which the model says `given` `(n, K)`, before training begins.

        Raises a `ConfigurationError` if a trial does not suit the model, edits probes in another way at each call, or
        judges by a key that is `taken` by a measure, or of another trial.
        """
        first = self.probes.select(range(len(given)))
        judged = self._found = {}
        for trial in self.trials:
            shown, views = next(self._views(trial, len(given)))
            _, alone = next(self._views(trial, 1))
            _check_repeatable(trial.name, views, alone)
            answers = _answer(subject, shown, views, given.cpu())
            for key in _judge(trial, first, Answers(given.cpu(), answers, views.facts)):
                if key in taken or judged.setdefault(key, trial.name) != trial.name:
                    other = "a measure" if key in taken else repr(judged[key])
                    raise ConfigurationError(
                        f"Expected each trial to judge by keys of its own, but got {key!r} from {trial.name!r} and "
                        f"{other}. Begin keys with the name of the trial."
                    )

    def run(self, subject: Subject, given: Tensor | None, *, chunk_size: int) -> Tried:
        """Run all trials; call inside `undisturbed`.

        `given` is what the model says of the probes as they are, `(N, K)` on the CPU; None if there are no trials.
        """
        judged: dict[str, PerProbe | Estimate] = {}
        failed, notes = [], list[str]()
        for trial in self.trials:
            assert given is not None  # noqa: S101  # as there are trials; narrows the type
            try:
                answers = self._answers(subject, trial, given, chunk_size)
                found = _judge(trial, self.probes, answers)
                notes += trial.notes(answers, found)
                judged.update(found)
            except Exception as error:  # told; the rest of the audit must not be lost for it
                failed.append(f"The trial {trial.name!r} failed and was left out. {in_words(error)}")
        return Tried(judged, tuple(failed), tuple(notes))

    def _answers(self, subject: Subject, trial: Trial, given: Tensor, chunk_size: int) -> Answers:
        outputs: dict[str, list[Tensor]] = {}
        facts: dict[str, list[Tensor]] = {}
        for shown, views in self._views(trial, chunk_size):
            for name, values in _answer(subject, shown, views, given[shown.rows]).items():
                outputs.setdefault(name, []).append(values)
            for name, values in views.facts.items():
                facts.setdefault(name, []).append(values)
        joined = [{name: torch.cat(chunks) for name, chunks in parts.items()} for parts in (outputs, facts)]
        return Answers(given, *joined)

    def _views(self, trial: Trial, chunk_size: int) -> Iterator[tuple[Shown, Views]]:
        for rows in torch.split(torch.arange(len(self.probes)), chunk_size):
            images = self._scale.displayed(self.probes.images[rows])
            shown = Shown(images, rows, self.probes, self._scale, seed=0)  # seeds are those of the trials
            views = trial.views(shown)
            _check_views(trial.name, shown, views)
            yield shown, views


def _check_views(name: str, shown: Shown, views: Views) -> None:
    """Refuse what a trial of the user's own may do by mistake, and what nobody would see in the figures."""
    if not torch.equal(shown.images, shown.scale.displayed(shown.probes.images[shown.rows])):
        raise ConfigurationError(
            f"Expected the trial {name!r} to leave the images that it is shown as they are, but got them changed in "
            "place. Edit a clone."
        )
    for view, images in views.images.items():
        found = f"{images.dtype} {tuple(images.shape)}"
        if images.shape == shown.images.shape and images.is_floating_point():
            low, high = (float(end) for end in images.aminmax())
            if low >= -ROUNDING and high <= 1 + ROUNDING:  # false for NaN, too
                continue
            found = f"values from {low:.3g} to {high:.3g}"
        raise ConfigurationError(
            f"Expected the view {view!r} of the trial {name!r} to be float images {tuple(shown.images.shape)} in "
            f"[0, 1], but got {found}. Trials edit images as they are displayed, before normalisation."
        )


def _check_repeatable(name: str, views: Views, alone: Views) -> None:
    """Refuse edits of which epochs would not be paired: the first probe of `views` must look as it does `alone`."""
    pairs = ((images[:1], alone.images.get(view)) for view, images in views.images.items())
    if not all(other is not None and torch.allclose(one, other, rtol=0, atol=ROUNDING) for one, other in pairs):
        raise ConfigurationError(
            f"Expected the trial {name!r} to edit a probe in the same way at every call, whichever probes are shown "
            "with it, but got two ways. Draw what is random from a generator with a seed of the probe's own."
        )


def _judge(trial: Trial, probes: ProbeSet, answers: Answers) -> dict[str, PerProbe | Estimate]:
    judged = dict(trial.judge(probes, answers))
    require_measured(f"the trial {trial.name!r}", judged, len(probes))
    return judged


def _answer(subject: Subject, shown: Shown, views: Views, given: Tensor) -> dict[str, Tensor]:
    """Logits of each view, on the CPU; an image that is as it was shown, or as in an earlier view, is not run again."""
    seen, original, found = [(shown.images, given)], shown.probes.images[shown.rows], {}
    with torch.no_grad():
        for name, images in views.images.items():
            known, answer = torch.zeros(len(images), dtype=torch.bool), torch.empty_like(given)
            for earlier, outputs in seen:
                alike = _alike(images, earlier) & ~known
                answer[alike], known = outputs[alike], known | alike
            if not known.all():
                expected = shown.scale.expected(images[~known], original[~known])
                answer[~known] = subject(subject.images(expected)).cpu().to(answer)
            seen.append((images, answer))
            found[name] = answer
    return found


def _alike(images: Tensor, others: Tensor) -> Tensor:
    """Which images of two batches are the same, `(n,)`; those are compared whole that agree on a grid."""
    grid = (..., slice(None, None, max(1, images.shape[2] // 8)), slice(None, None, max(1, images.shape[3] // 8)))
    same = (images[grid] == others[grid]).flatten(1).all(dim=1)
    same[same.clone()] = (images[same] == others[same]).flatten(1).all(dim=1)
    return same
