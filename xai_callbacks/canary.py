"""`canary`: how weak a shortcut the alarm would have seen, found out by planting some in copies of the model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.access.randomised import copied
from xai_callbacks.audit import Auditor
from xai_callbacks.audit.checks import require_same_shape
from xai_callbacks.errors import AuditError, ConfigurationError, is_number, require_instance, require_integer
from xai_callbacks.history import History
from xai_callbacks.interventions.cues import PaintedCue, PatchCue
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet
from xai_callbacks.randomness import seed_generators
from xai_callbacks.record import Estimate, summarize
from xai_callbacks.rules import AlarmRule
from xai_callbacks.trials import CueTrial

__all__ = ["Planted", "Power", "canary"]


@dataclass(frozen=True)
class Planted:
    """One shortcut that was planted, and what the audit made of it."""

    strength: float  # share of the training images that had the cue of their class, what was offered; in (0, 1]
    gap: Estimate  # accuracy with the cue of the class minus that with another's, what was taken up; in [-1, 1]
    effect: Estimate  # `cue/<name>/effect` at the last audit
    state: str  # what the rule says


@dataclass(frozen=True)
class Power:
    """What an audit of so many `probes` would have seen of the shortcuts planted, `rows` by rising strength."""

    rows: tuple[Planted, ...]
    probes: int

    @property
    def weakest(self) -> Planted | None:
        """The shortcut of the smallest gap above 0 that raised an alarm, as did all of larger ones; None without."""
        seen = list(takewhile(lambda row: row.state == "alarm", self._shortcuts()))
        return seen[-1] if seen else None

    @property
    def missed(self) -> Planted | None:
        """The shortcut of the largest gap that raised no alarm; None if all above 0 did."""
        return next((row for row in self._shortcuts() if row.state != "alarm"), None)

    @property
    def sentence(self) -> str:
        """What it comes to. It holds for cues like the planted one."""
        shortcuts, weakest, missed = self._shortcuts(), self.weakest, self.missed
        if not shortcuts:
            return (
                "Nothing is known of what the audit would have seen: no copy of the model took up the cue. Fine-tune "
                "with more `epochs`, a larger `learning_rate` or stronger `strengths`."
            )
        begin = f"With these {self.probes} probes the audit would have seen"
        if weakest is None:
            return (
                f"{begin} no shortcut that was planted, not even one that costs {shortcuts[0].gap.value:.2f} of "
                "accuracy. Larger ones need more `epochs` or a larger `learning_rate`."
            )
        rest = "it missed none that was planted" if missed is None else f"it missed one of {missed.gap.value:.2f}"
        return f"{begin} a shortcut that costs {weakest.gap.value:.2f} of accuracy or more; {rest}."

    def table(self) -> str:
        """One line a shortcut, as plain text."""
        lines = [f"{'strength':<10}{'gap':<22}{'effect':<22}state"]
        lines += [f"{row.strength:<10.2f}{_words(row.gap):<22}{_words(row.effect):<22}{row.state}" for row in self.rows]
        return "\n".join(lines)

    def _shortcuts(self) -> list[Planted]:
        return sorted((row for row in self.rows if row.gap.value > 0), key=lambda row: row.gap.value, reverse=True)


def _words(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:z.2f}, {estimate.high:z.2f}]"
    return f"{estimate.value:z.2f}{interval}"


def canary(
    model: nn.Module,
    training: ProbeSet,
    probes: ProbeSet | Auditor,
    *,
    cue: PaintedCue | None = None,
    strengths: Sequence[float] = (0.4, 0.6, 0.8, 0.9, 1.0),
    unseen: ProbeSet | None = None,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    rule: AlarmRule | None = None,
    seed: int = 0,
) -> Power:
    """Plant shortcuts of rising strength in copies of a model, and say which the audit would have seen.

    For each strength a copy is fine-tuned with Adam on the training images, each with the cue of its class with that
    probability, else with another. The probes are audited after each of the last epochs, as many as the rule wants
    audits, and the rule is asked. The *gap* of a copy is its accuracy with the cue of the class less that with others.

    What is found holds for cues as visible as the planted one, and for one fine-tuning each: gaps have intervals over
    images, not over training runs. A copy that took up its cue in the last epoch is at `watch`, and counts as missed.

    The model and all random streams are as before; equal seeds give equal results on one kind of device. Cost: for each
    strength `epochs` epochs over the training images, up to five forward passes over the probes an audit, and one pass
    over `unseen` a variant of the cue; memory for a copy of the model, its gradients and the two moments of Adam.

    Args:
        model: The classifier, or the LightningModule that holds it. What needs no gradients is not fine-tuned.
        training: Some hundred training images with labels, such as `ProbeSet.from_dataset(train, per_class=100)`.
        probes: The probes whose power is wanted; or an `Auditor` of them, for `model`, `output` and the batch size.
        cue: What to plant, one variant a class, of a kind that the data do not have already. None for a patch in a
            corner, of one colour for each of the eight most frequent classes.
        strengths: How often an image has the cue of its class, in (0, 1]; at 1 / number of variants it tells nothing.
        unseen: Labelled images to measure the gap on; None for the probes. The more, the narrower its interval.
        epochs: Epochs of fine-tuning. It takes some hundred steps, and more at a smaller rate, to take up a cue.
        learning_rate: That of Adam.
        rule: When there is an alarm; None for `AlarmRule()`. It stops nothing here, and its hook is not called.
        seed: Seed of all that is random.

    Raises:
        ConfigurationError: An argument is out of range or does not suit another, or the model cannot be copied.
        AuditError: A copy could not be audited, such as one whose training diverged.
    """
    rule = AlarmRule() if rule is None else rule
    given = probes if isinstance(probes, Auditor) else Auditor(probes)
    unseen = given.probes if unseen is None else unseen
    listed: object = strengths
    if not isinstance(listed, Sequence) or not listed or not all(is_number(each) and 0 < each <= 1 for each in listed):
        raise ConfigurationError(f"Expected `strengths` to be a list of numbers in (0, 1], but got {strengths!r}.")
    require_integer("epochs", epochs, minimum=rule.audits, hint="The rule wants an audit after each of the last ones.")
    require_integer("seed", seed, minimum=0)
    cue = _checked_cue(cue, given, training, unseen)
    auditor = Auditor(
        given.probes, [], explainers=[], novelty=[], trials=[CueTrial(cue, seed=seed)], measures=[],
        model=given.model, output=given.output, chunk_size=given.chunk_size,
    )  # fmt: skip
    for sentence in rule.check(auditor.keys, len(given.probes)):
        raise ConfigurationError(sentence)
    canvas, meter = (_Canvas(images, PixelScale.of(images), cue, seed) for images in (training, unseen))
    root, rows = Subject(model).root, []
    with undisturbed(root):
        auditor.prepare(root)
        width, most = auditor.classifier(root)[0].task.width, int(torch.cat([canvas.labels, meter.labels]).max())
        if width is not None and most >= width:
            raise ConfigurationError(
                f"Expected labels below {width}, the number of classes of `model`, but got {most}."
            )
        for strength in sorted(strengths):
            seed_generators(seed)  # the same dropout, so that strengths differ in nothing else
            copy = copied(root)
            subject, _ = auditor.classifier(copy)
            history = History()
            for epoch in _tuned(subject, canvas, strength, epochs, learning_rate, auditor.chunk_size):
                if epoch > epochs - rule.audits:
                    record = auditor.audit(copy, step=epoch, epoch=epoch)
                    if record.failed:
                        raise AuditError(record.failed[0])
                    history.append(record)
            effect, finding = record.metrics[f"cue/{cue.name}/effect"], rule.conclude(history)[0]
            rows.append(Planted(strength, _gap_of(subject, meter, auditor.chunk_size), effect, finding.state))
    return Power(tuple(rows), len(given.probes))


@dataclass(frozen=True, eq=False)
class _Canvas:
    """Labelled images on which a cue can be painted."""

    images: ProbeSet
    scale: PixelScale
    cue: PaintedCue
    seed: int

    @property
    def labels(self) -> Tensor:
        return self.images.labels if self.images.labels is not None else torch.empty(0, dtype=torch.int64)

    @property
    def own(self) -> Tensor:
        """Which variants point to the class of each image, `(N, V)` bool."""
        return self.labels[:, None] == torch.tensor(self.cue.classes(self.images))

    def painted(self, rows: Tensor, variants: Tensor) -> Tensor:
        """Some images with a variant each, as the model expects them."""
        given = self.images.images[rows]
        shown = Shown(self.scale.displayed(given), rows, self.images, self.scale, self.seed)
        bare = replace(shown, images=self.cue.neutral(shown))
        return self.scale.expected(self.cue.paint(bare, variants), given)

    def drawn(self, strength: float, generator: torch.Generator) -> Tensor:
        """A variant for each image, `(N,)`; those that differ between two strengths are as few as can be."""
        own, variants = self.own, torch.zeros(len(self.labels), dtype=torch.int64)
        for label in torch.unique(self.labels):
            rows = (self.labels == label).nonzero()[:, 0]
            # Shares are kept in each class: a cue that should tell nothing would else tell a little by chance.
            rows = rows[torch.randperm(len(rows), generator=generator)]
            wrong = (~own[rows[0]]).nonzero()[:, 0]
            # Images of a class that no variant points to may have any.
            right = own[rows[0]].nonzero()[:, 0] if own[rows[0]].any() else wrong
            places, with_own = torch.arange(len(rows)), round(strength * len(rows))
            variants[rows] = torch.where(places < with_own, right[places % len(right)], wrong[places % len(wrong)])
        return variants


def _tuned(
    subject: Subject, canvas: _Canvas, strength: float, epochs: int, learning_rate: float, batch_size: int
) -> Iterator[int]:
    """Fine-tune; gives the number of each epoch, from 1, when it is over."""
    generator = torch.Generator().manual_seed(canvas.seed)
    variants, labels = canvas.drawn(strength, generator), canvas.labels
    # Batch normalisation needs two images.
    batches = min(-(-len(labels) // batch_size), len(labels) // 2)
    optimizer = torch.optim.Adam([each for each in subject.root.parameters() if each.requires_grad], lr=learning_rate)
    for epoch in range(1, epochs + 1):
        subject.root.train()
        for rows in torch.randperm(len(labels), generator=generator).tensor_split(batches):
            logits = subject(subject.images(canvas.painted(rows, variants[rows])))
            loss = cross_entropy(logits, labels[rows].to(logits.device))
            if not loss.requires_grad:
                raise ConfigurationError(
                    "Expected `model` to learn from its outputs, but got outputs without a gradient. Take "
                    "`torch.no_grad` out of its `forward`, or say where the trained part is by Auditor(model=...)."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield epoch


def _gap_of(subject: Subject, canvas: _Canvas, chunk_size: int) -> Estimate:
    """Accuracy with the cue of the class minus that with another, over images of classes with a cue."""
    own, right = canvas.own, torch.empty(canvas.own.shape, dtype=torch.float64)
    with undisturbed(subject.root), torch.no_grad():
        for variant in range(own.shape[1]):
            for rows in torch.split(torch.arange(len(own)), chunk_size):
                answers = subject(subject.images(canvas.painted(rows, torch.full_like(rows, variant)))).argmax(dim=1)
                right[rows, variant] = (answers.cpu() == canvas.labels[rows]).double()
    with_own, with_other = ((right * each).sum(dim=1) / each.sum(dim=1) for each in (own, ~own))
    return summarize(with_own - with_other, bounds=(-1.0, 1.0))


def _default_cue(training: ProbeSet) -> PaintedCue:
    """A patch of one hue a class, or grey value; more than eight are hard to tell apart."""
    frequent = Counter([] if training.labels is None else training.labels.tolist()).most_common(8)
    classes, count = sorted(label for label, _ in frequent), len(frequent)
    hues = [hsv_to_rgb(index / count, 1.0, 1.0) for index in range(count)]
    greys = [[index / max(1, count - 1)] for index in range(count)]
    return PatchCue(hues if training.images.shape[1] == 3 else greys, classes, name="canary")


def _checked_cue(cue: PaintedCue | None, auditor: Auditor, training: ProbeSet, unseen: ProbeSet) -> PaintedCue:
    """The cue, or that of `_default_cue`, once it is known that the images suit each other and the cue."""
    require_integer("chunk_size", auditor.chunk_size, minimum=2, hint="Batch normalisation needs two images.")
    both = (("training", training), ("unseen", unseen))
    for name, images in both:
        require_instance(name, images, ProbeSet, "a ProbeSet")
        images.task.require_classes("canary", single=True)
        require_same_shape(name, images, auditor.probes)
        if images.labels is None:
            raise ConfigurationError(
                f"Expected `{name}` to have labels, but got none. Label the probes, or pass others."
            )
    cue = _default_cue(training) if cue is None else cue
    require_instance("cue", cue, PaintedCue, "one that is painted, such as PatchCue(...)")
    for name, images in both:
        cue.check(images)
        classes = set(cue.classes(images))
        present = classes & set([] if images.labels is None else images.labels.tolist())
        if len(classes) < 2 or not present:
            raise ConfigurationError(
                f"Expected `cue` to point to two classes or more, and `{name}` to show some, but got variants for "
                f"classes {sorted(classes)}, of which `{name}` has {sorted(present) or 'none'}."
            )
    return cue
