"""Copies of a model that learn with a cue, and what they make of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.interventions.cues import PaintedCue
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.metrics.summary import summarize
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import Estimate, PerProbe

__all__ = ["Canvas", "audited", "copied", "gap_of", "tuned"]


@dataclass(frozen=True, eq=False)
class Canvas:
    """Images on which a cue can be painted."""

    images: ProbeSet
    scale: PixelScale
    cue: PaintedCue
    seed: int

    @property
    def labels(self) -> Tensor:
        """Class of each image, `(N,)`."""
        assert self.images.labels is not None  # noqa: S101  # checked before; narrows the type
        return self.images.labels

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
        """A variant for each image, `(N,)`; those that differ between two strengths are as few as can be.

        Shares are kept in each class to one image: a cue that should tell nothing would else tell a little by chance.
        """
        own, variants = self.own, torch.zeros(len(self.labels), dtype=torch.int64)
        for label in torch.unique(self.labels):
            rows = (self.labels == label).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator)]
            wrong = (~own[rows[0]]).nonzero()[:, 0]
            # Images of a class that no variant points to may have any.
            right = own[rows[0]].nonzero()[:, 0] if own[rows[0]].any() else wrong
            places, with_own = torch.arange(len(rows)), round(strength * len(rows))
            variants[rows] = torch.where(places < with_own, right[places % len(right)], wrong[places % len(wrong)])
        return variants


def tuned(
    subject: Subject, canvas: Canvas, strength: float, epochs: int, learning_rate: float, batch_size: int
) -> Iterator[int]:
    """Fine-tune; gives the number of each epoch, from 1, when it is over.

    Raises:
        ConfigurationError: The outputs have no gradient.
    """
    generator = torch.Generator().manual_seed(canvas.seed)
    variants, labels = canvas.drawn(strength, generator), canvas.labels
    count = len(labels)
    batches = min(-(-count // batch_size), count // 2)  # batch normalisation needs two images
    optimizer = torch.optim.Adam([each for each in subject.root.parameters() if each.requires_grad], lr=learning_rate)
    for epoch in range(1, epochs + 1):
        subject.root.train()
        for rows in torch.randperm(count, generator=generator).tensor_split(batches):
            logits = subject(subject.images(canvas.painted(rows, variants[rows])))
            loss = cross_entropy(logits, labels[rows].to(logits.device))
            if not loss.requires_grad:
                raise ConfigurationError(
                    "Expected `model` to be one that learns from its outputs, but got outputs without a gradient. Take "
                    "`torch.no_grad` out of its `forward`, or point `select` to the part that is trained."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield epoch


def audited(subject: Subject, runner: TrialRunner, chunk_size: int) -> Estimate:
    """The effect of the cue on the probes.

    Raises:
        AuditError: The outputs are not finite, or the trial failed.
    """
    with undisturbed(subject.root):
        given = _answers(subject, torch.split(runner.probes.images, chunk_size))
        tried = runner.run(subject, given, chunk_size=chunk_size)
    if not given.isfinite().all():
        raise AuditError(
            "Expected a fine-tuned copy to give finite outputs, but got NaN or inf. Fine-tune with a smaller "
            "`learning_rate`."
        )
    if tried.failed:
        raise AuditError(tried.failed[0])
    effect = tried.judged[f"{runner.trials[0].name}/effect"]
    return summarize(effect.values, chance=effect.chance) if isinstance(effect, PerProbe) else effect


def gap_of(subject: Subject, canvas: Canvas, chunk_size: int) -> Estimate:
    """Accuracy with the cue of the class minus that with another, over images of classes with a cue."""
    own, labels = canvas.own, canvas.labels
    chunks = torch.split(torch.arange(len(own)), chunk_size)
    right = torch.empty(own.shape, dtype=torch.float64)
    with undisturbed(subject.root):
        for variant in range(own.shape[1]):
            images = (canvas.painted(rows, torch.full_like(rows, variant)) for rows in chunks)
            right[:, variant] = (_answers(subject, images).argmax(dim=1) == labels).double()
    means = [(right * each).sum(dim=1) / each.sum(dim=1) for each in (own, ~own)]
    return summarize(means[0] - means[1])


def copied(root: nn.Module) -> nn.Module:
    """A copy of a model.

    Raises:
        ConfigurationError: It cannot be copied.
    """
    # Results of a forward pass kept as attributes have a graph and refuse to be copied.
    kept = [value for each in root.modules() for value in vars(each).values() if isinstance(value, Tensor)]
    memo: dict[int, object] = {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    try:
        copy = deepcopy(root, memo)
    except Exception as error:  # whatever a user's attributes make of it
        raise ConfigurationError(
            f"Expected `model` to be one that copy.deepcopy can copy, but got {type(root).__name__}, where it raised "
            f"{type(error).__name__}: {error}. Keep what cannot be copied out of the model's attributes."
        ) from error
    return copy


def _answers(subject: Subject, chunks: Iterable[Tensor]) -> Tensor:
    """Logits `(N, K)` on the CPU."""
    with torch.no_grad():
        return torch.cat([subject(subject.images(images)).cpu() for images in chunks])
