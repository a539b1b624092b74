"""What hiding a part of an image does to a class: logits with the part hidden against those of the whole image."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from xai_callbacks.errors import require_number
from xai_callbacks.metrics.cues import flip_rate


class HidingEffect(NamedTuple):
    """Changes of each image, `(N,)` float64, in logits but for the last three; NaN where there is no answer."""

    target: Tensor  # gain of the class asked about; what hiding pixels that hinder it should raise
    rival: Tensor  # loss of the strongest other class of the whole image; what hiding its pixels should raise
    others: Tensor  # loss of the logsumexp of all other classes
    moved: Tensor  # mean absolute change of the other classes
    flips: Tensor  # 1 where the class is answered with the part hidden and was not without, else 0
    before: Tensor  # probability of the class, whole
    after: Tensor  # and with the part hidden


def hiding_effect(whole: Tensor, hidden: Tensor, classes: Tensor) -> HidingEffect:
    """Effect of hiding a part of each image on the class asked about, and apart from it on the others.

    The two are told apart because a probability rises by either. The mean over the other classes is no measure of the
    second: where one rival falls, the rest may rise. Compare masks at equal area alone, see `most_relevant`.

    Args:
        whole: Logits `(N, K)` of the images, of two classes at least.
        hidden: Logits of the same images with a part hidden.
        classes: Class asked about, `(N,)` int64; -1 for none.

    Raises a `ConfigurationError` where shapes do not fit.
    """
    flips = flip_rate(hidden, whole, classes)
    asked = one_hot(classes.clamp(min=0), whole.shape[1]).bool()
    before, after = whole.double(), hidden.double()
    gained = after - before
    rivals = before.masked_fill(asked, -torch.inf)
    found = (
        gained[asked],
        -gained.gather(1, rivals.argmax(dim=1, keepdim=True))[:, 0],
        rivals.logsumexp(dim=1) - after.masked_fill(asked, -torch.inf).logsumexp(dim=1),
        gained.abs().masked_fill(asked, 0).sum(dim=1) / (whole.shape[1] - 1),
        flips,
        before.softmax(dim=1)[asked],
        after.softmax(dim=1)[asked],
    )
    return HidingEffect(*(torch.where(flips.isnan(), torch.nan, each) for each in found))


def most_relevant(heatmaps: Tensor, area: float) -> Tensor:
    """Masks `(..., h, w)` in [0, 1] of the cells with the highest values, whose mean is `area` exactly.

    The last cell counts in part; of equal cells the earlier ones come first. Raises a `ConfigurationError` unless
    `area` is in (0, 1).
    """
    require_number("area", area, 0, 1, ends="()")
    ranks = heatmaps.flatten(-2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    shares = (area * ranks.shape[-1] - ranks.double()).clamp(0, 1)
    return shares.reshape(heatmaps.shape).to(torch.promote_types(heatmaps.dtype, torch.float32))
