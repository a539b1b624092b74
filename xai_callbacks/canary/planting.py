"""`canary`: how weak a shortcut the alarm would have seen, found out by planting some.

A monitor that is silent says nothing until it is known what it would have noticed. Copies of the model are fine-tuned
on images with a cue of rising strength, audited like the model itself, and asked how much accuracy the cue costs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from colorsys import hsv_to_rgb

from torch import nn

from xai_callbacks.access import ModelSelector, OutputSelector, Subject, trace_model, undisturbed
from xai_callbacks.audit.checks import require_same_shape
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.canary.copies import Canvas, audited, copied, gap_of, tuned
from xai_callbacks.canary.power import Planted, Power
from xai_callbacks.errors import ConfigurationError, require_instance, require_integer
from xai_callbacks.history import History
from xai_callbacks.interventions.cues import PaintedCue, PatchCue
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.probes import ProbeSet
from xai_callbacks.randomness import seed_generators
from xai_callbacks.record import AuditRecord
from xai_callbacks.rules import AlarmRule
from xai_callbacks.trials import CueTrial

__all__ = ["canary"]

# More colours than this are hard to tell apart, for a model of few pixels too.
_MOST_COLOURS = 8

# Images that the model is first looked at with.
_TRACED = 2


def canary(  # noqa: PLR0913  # the settings of an experiment
    model: nn.Module,
    training: ProbeSet,
    probes: ProbeSet,
    *,
    cue: PaintedCue | None = None,
    strengths: Sequence[float] = (0.4, 0.6, 0.8, 0.9, 1.0),
    unseen: ProbeSet | None = None,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    rule: AlarmRule | None = None,
    seed: int = 0,
    select: ModelSelector | None = None,
    output: OutputSelector | None = None,
    chunk_size: int = 16,
) -> Power:
    """Plant shortcuts of rising strength in copies of a model, and say which the audit would have seen.

    For each strength a copy is fine-tuned with Adam on the training images, each with the cue of its class with that
    probability, else with another. The probes are audited after each of the last epochs, as many as the rule wants
    audits, and the rule is asked. How much a copy uses the cue is measured, as that is not how strong the cue was: its
    *gap* is the accuracy with the cue of the class minus the mean of those with the cues of other classes.

    What is found holds for cues that are as visible as the planted one, and for one fine-tuning each: gaps have
    intervals over images, not over training runs. A copy that took up its cue in the very last epoch is at `watch`, and
    counts as missed though an audit more might have seen it.

    The model, its random streams, buffers and gradients are as before. Equal seeds give equal results on one kind of
    device. Cost: for each strength `epochs` epochs over the training images, up to four forward passes over the probes
    an audit, and one pass over `unseen` a variant of the cue; memory for one copy of the model, its gradients and the
    two moments of Adam.

    Args:
        model: The classifier, or the LightningModule that holds it, in any state of training; wrappers are looked
            through. What does not require gradients is not fine-tuned.
        training: Some hundred training images with labels, such as `ProbeSet.from_dataset(train, per_class=100)`.
        probes: The probes whose power is wanted, at least as many as the rule wants.
        cue: What to plant, one variant a class, of a kind that the data do not have already. None for a patch in a
            corner: one colour for each of the eight most frequent classes.
        strengths: How often an image has the cue of its class, each in (0, 1]. One divided by the number of variants is
            a cue that tells nothing: a control that should raise no alarm.
        unseen: Labelled images to measure the gap on; None for the probes. The more, the narrower its interval.
        epochs: Epochs of fine-tuning, at least as many as the rule wants audits. It takes some hundred steps, and
            more at a smaller rate, until a copy takes up a cue.
        learning_rate: That of Adam.
        batch_size: Images in one step, 2 or more.
        rule: When there is an alarm; None for `AlarmRule()`. It stops nothing here, and its hook is not called.
        seed: Seed of all that is random.
        select: Which part of the model classifies images, see `Subject`.
        output: Which part of what the model returns holds the logits, see `Subject`.
        chunk_size: Images in one forward pass of the audit.

    Raises:
        ConfigurationError: An argument is out of range or does not suit another, or the model cannot be copied or
            fine-tuned.
        AuditError: A copy could not be audited, such as one whose training diverged.
    """
    rule = AlarmRule() if rule is None else rule
    unseen = probes if unseen is None else unseen
    _check_strengths(strengths)
    _check_fit(epochs, learning_rate, batch_size, rule)
    require_integer("seed", seed, minimum=0)
    require_integer("chunk_size", chunk_size, minimum=1)
    _check_sets(training, probes, unseen, rule)
    cue = _default_cue(training) if cue is None else cue
    _check_cue(cue, training, unseen)
    runner = TrialRunner(probes, [CueTrial(cue, seed=seed)])
    canvas = Canvas(training, PixelScale.of(training), cue, seed)
    meter = Canvas(unseen, PixelScale.of(unseen), cue, seed)
    root, rows = Subject(model).root, []
    with undisturbed(root):
        subject = Subject(root, select=select, output=output)
        _look(subject, runner, training, unseen)
        for strength in sorted(strengths):
            seed_generators(seed)  # the same dropout, so that strengths differ in nothing else
            copy = Subject(copied(root), select=select, output=output)
            copy.probabilities = subject.probabilities
            history = History()
            for epoch in tuned(copy, canvas, strength, epochs, learning_rate, batch_size):
                if epoch > epochs - rule.audits:
                    effect = audited(copy, runner, chunk_size)
                    history.append(AuditRecord(step=epoch, epoch=epoch, metrics={f"cue/{cue.name}/effect": effect}))
            state = rule.conclude(history)[0].state
            rows.append(Planted(strength, gap_of(copy, meter, chunk_size), effect, state))
    return Power(tuple(rows), len(probes))


def _check_fit(epochs: int, learning_rate: float, batch_size: int, rule: AlarmRule) -> None:
    if not _is_number(learning_rate) or not 0 < learning_rate < float("inf"):
        raise ConfigurationError(f"Expected `learning_rate` to be positive and finite, but got {learning_rate!r}.")
    require_integer("epochs", epochs, minimum=rule.audits, hint="The rule wants an audit after each of the last ones.")
    require_integer("batch_size", batch_size, minimum=2, hint="Batch normalisation needs two images.")


def _check_strengths(strengths: object) -> None:
    fits = isinstance(strengths, Sequence) and not isinstance(strengths, str) and len(strengths) > 0
    if not fits or not all(_is_number(value) and 0 < value <= 1 for value in strengths):  # type: ignore[attr-defined]
        raise ConfigurationError(
            f"Expected `strengths` to be a list of numbers in (0, 1], but got {strengths!r}. They are probabilities."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_sets(training: ProbeSet, probes: ProbeSet, unseen: ProbeSet, rule: AlarmRule) -> None:
    given = {"probes": probes, "training": training, "unseen": unseen}
    for name, each in given.items():
        require_instance(name, each, ProbeSet, "a ProbeSet")
        if each.task.kind != "single-label":
            raise ConfigurationError(
                f"Expected `{name}` to have one label each, but got {each.task.kind} probes. A cue points to a class."
            )
        require_same_shape(name, each, probes)
    if len(probes) < rule.min_count:
        raise ConfigurationError(
            f"Expected `probes` to be {rule.min_count} or more, but got {len(probes)}: without an interval there is "
            "never an alarm, and no shortcut would have been seen. Add probes."
        )
    for name in ("training", "unseen"):
        if given[name].labels is None:
            hint = " Pass some, or label the probes." if name == "unseen" else ""
            raise ConfigurationError(f"Expected `{name}` to have labels, but got none.{hint}")


def _default_cue(training: ProbeSet) -> PaintedCue:
    """A patch of one colour a class: hues, or grey values where there are not three channels."""
    frequent = Counter([] if training.labels is None else training.labels.tolist()).most_common(_MOST_COLOURS)
    classes = sorted(label for label, _ in frequent)
    shares = [index / max(1, len(classes) - 1) for index in range(len(classes))]
    hues = [hsv_to_rgb(index / len(classes), 1.0, 1.0) for index in range(len(classes))]
    colours = hues if training.images.shape[1] == 3 else [[share] for share in shares]
    return PatchCue(colours, classes, name="canary")


def _check_cue(cue: PaintedCue, training: ProbeSet, unseen: ProbeSet) -> None:
    if not isinstance(cue, PaintedCue):
        raise ConfigurationError(
            f"Expected `cue` to be one that is painted, such as PatchCue(...), but got {type(cue).__name__}."
        )
    for name, images in (("training", training), ("unseen", unseen)):
        cue.check(images)
        classes = set(cue.classes(images))
        present = classes & set([] if images.labels is None else images.labels.tolist())
        if len(classes) < 2 or not present:
            raise ConfigurationError(
                f"Expected `cue` to point to two classes or more, and `{name}` to show some, but got variants for "
                f"classes {sorted(classes)}, of which `{name}` has {sorted(present) or 'none'}."
            )


def _look(subject: Subject, runner: TrialRunner, training: ProbeSet, unseen: ProbeSet) -> None:
    """Bring mistakes to light before anything is trained; call inside `undisturbed`."""
    if not any(parameter.requires_grad for parameter in subject.module.parameters()):
        raise ConfigurationError(
            "Expected `model` to have parameters to fine-tune, but got none that requires gradients. Unfreeze those "
            "that training changes: parameter.requires_grad_(True)."
        )
    trace = trace_model(subject, runner.probes.images[:_TRACED])
    subject.learn_outputs(trace.outputs.detach(), trace.ending())
    given = subject.interpret(trace.outputs).detach()
    for name, images in (("training", training), ("unseen", unseen)):
        most = 0 if images.labels is None else int(images.labels.max())
        if most >= given.shape[1]:
            raise ConfigurationError(
                f"Expected the labels of `{name}` to be below {given.shape[1]}, the number of classes of the model, "
                f"but got {most}."
            )
    runner.look(subject, given)
