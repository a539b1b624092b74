"""What a cue does to an answer: one image with the cue against the same image without it.

Outputs are logits `(N, K)` of the same model; `classes` `(N,)` int64 are the classes that the cue points to, -1 where
there is no such pair. Results are `(N,)` float64: NaN where there is no pair, or a logit is not finite.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from xai_callbacks.errors import ConfigurationError


def cue_effect(present: Tensor, absent: Tensor, classes: Tensor) -> Tensor:
    """How much the cue raises the probability of the class it points to, in [-1, 1]; 0 for a model that ignores it."""
    return _where(_of_class(_gained(present, absent, classes), classes), present, absent, classes)


def cue_pull(present: Tensor, absent: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """How much the cue moves the probability of the label, in [-1, 1], positive if towards the class it points to.

    Where the cue points to the label, what the label gains by it; else what the label loses. Mean over classes it is
    the accuracy gap of a model whose answers are certain, whatever the number of classes. NaN for label -1.
    """
    return _towards(_gained(present, absent, classes), present, absent, classes, labels)


def cue_gap(present: Tensor, absent: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """The same for right answers: 1, 0 or -1; mean over classes, accuracy with the own cue less that with another."""
    _check(present, absent, classes)
    right = [one_hot(each.argmax(dim=1), each.shape[1]).double() for each in (present, absent)]
    return _towards(right[0] - right[1], present, absent, classes, labels)


def cue_effect_logit(present: Tensor, absent: Tensor, classes: Tensor) -> Tensor:
    """The same in logits, each centred on the mean over the classes; does not saturate, any real number."""
    _check(present, absent, classes)
    gained = present.double() - absent.double()
    return _where(_of_class(gained - gained.mean(dim=1, keepdim=True), classes), present, absent, classes)


def flip_rate(present: Tensor, absent: Tensor, classes: Tensor) -> Tensor:
    """1 where the answer is the class of the cue with it and another one without, else 0."""
    _check(present, absent, classes)
    flipped = (present.argmax(dim=1) == classes) & (absent.argmax(dim=1) != classes)
    return _where(flipped.double(), present, absent, classes)


def spurious_score(present: Tensor, neutral: Tensor, classes: Tensor) -> Tensor:
    """Of images not answered so without any cue: 1 where the cue makes the model answer its class, else 0.

    NaN where the answer is that class anyway. Source: Adebayo et al. 2022, who call a model spurious above .85.
    """
    _check(present, neutral, classes)
    flipped = (present.argmax(dim=1) == classes).double()
    free = neutral.argmax(dim=1) != classes
    return _where(torch.where(free, flipped, torch.nan), present, neutral, classes)


def total_variation(present: Tensor, absent: Tensor, classes: Tensor) -> Tensor:
    """Total variation distance of the two answers, in [0, 1]: how much the cue changes, whatever it points to."""
    return _where(_gained(present, absent, classes).abs().sum(dim=1) / 2, present, absent, classes)


def risen_class(present: Tensor, absent: Tensor, classes: Tensor, labels: Tensor) -> tuple[int, Tensor]:
    """The class whose probability a cue raises most, and the pull `(N,)` towards that class.

    Asked of the images of other classes, as those of the class itself have nowhere to rise to.
    """
    gained = _gained(present, absent, classes)
    valid = (classes >= 0) & gained.isfinite().all(dim=1) & (labels >= 0)
    others = valid[:, None] & (labels[:, None] != torch.arange(gained.shape[1]))
    risen = int(gained.where(others, torch.nan).nanmean(dim=0).nan_to_num(nan=-torch.inf).argmax())
    return risen, cue_pull(present, absent, torch.where(classes < 0, -1, risen), labels)


def consistency(present: Tensor, absent: Tensor, classes: Tensor) -> Tensor:
    """1 where the answer is the same with the cue and without, else 0."""
    _check(present, absent, classes)
    return _where((present.argmax(dim=1) == absent.argmax(dim=1)).double(), present, absent, classes)


def pair_accuracy(present: Tensor, absent: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """1 where both answers are right, `labels` `(N,)`, else 0; stricter than accuracy."""
    _check(present, absent, classes)
    right = (present.argmax(dim=1) == labels) & (absent.argmax(dim=1) == labels)
    return _where(right.double(), present, absent, classes)


def answers_with(outputs: Tensor, classes: Tensor) -> Tensor:
    """1 where the answer is the given class, else 0; NaN for class -1 and for logits that are not finite."""
    _check(outputs, outputs, classes)
    return _where((outputs.argmax(dim=1) == classes).double(), outputs, outputs, classes)


def spread(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """How far answers to several versions `(F, N, K)` of N images lie apart; both `(N,)` float64, in [0, 1].

    Mean total variation distance from their mean; and 1 where the classes differ, else 0. NaN for logits not finite.
    """
    probabilities = outputs.double().softmax(dim=2)
    distance = (probabilities - probabilities.mean(dim=0)).abs().sum(dim=2).mean(dim=0) / 2
    answers = outputs.argmax(dim=2)
    disagree = (answers != answers[0]).any(dim=0).double()
    finite = outputs.isfinite().all(dim=2).all(dim=0)
    return distance.where(finite, torch.nan), disagree.where(finite, torch.nan)


def _gained(present: Tensor, absent: Tensor, classes: Tensor) -> Tensor:
    """What the probabilities `(N, K)` gain by the cue; refuses arguments that do not fit."""
    _check(present, absent, classes)
    return present.double().softmax(dim=1) - absent.double().softmax(dim=1)


def _towards(gained: Tensor, present: Tensor, absent: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """What the label gains, of gains `(N, K)`, with the sign of what it should gain."""
    own = _of_class(gained, labels)
    values = torch.where(labels == classes, own, -own)
    return _where(values.where(labels >= 0, torch.nan), present, absent, classes)


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes.clamp(min=0)[:, None])[:, 0]


def _where(values: Tensor, one: Tensor, other: Tensor, classes: Tensor) -> Tensor:
    valid = (classes >= 0) & one.isfinite().all(dim=1) & other.isfinite().all(dim=1)
    return torch.where(valid, values, torch.nan)


def _check(one: Tensor, other: Tensor, classes: Tensor) -> None:
    if one.ndim != 2 or one.shape != other.shape:
        raise ConfigurationError(
            f"Expected logits (N, K) of the same images with the cue and without, but got {tuple(one.shape)} and "
            f"{tuple(other.shape)}."
        )
    if classes.shape != one.shape[:1] or classes.dtype != torch.int64:
        raise ConfigurationError(
            f"Expected `classes` to be int64 ({len(one)},), but got {classes.dtype} {tuple(classes.shape)}."
        )
    if len(classes) and not -1 <= int(classes.min()) <= int(classes.max()) < one.shape[1]:
        raise ConfigurationError(
            f"Expected `classes` to be -1 or below {one.shape[1]}, the number of classes of the model, but got "
            f"{int(classes.min())} to {int(classes.max())}."
        )
