"""`share_around`: how much of what the outputs see of the image goes around a layer, where no gradient shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.access.addresses import Address
from xai_callbacks.access.layouts import FeatureLayout
from xai_callbacks.access.locality import changed_at_places
from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Returned, watching

__all__ = ["share_around"]

# Every so many of the places are enough: what is asked is whether outputs move, not where.
_EVERY = 8
# Outputs that differ by more than this share on the same image are drawn at random.
_ROUNDING = 1e-3


@torch.no_grad()
def share_around(subject: Subject, image: Tensor, name: str, layout: FeatureLayout, *, chunk_size: int) -> float:
    """Share of what outputs move with the image that is left when a layer is held as it was.

    It is 0 where everything goes through the layer. It is more where a part of the model runs without gradients, is
    detached or rounds, or where the model keeps the tensor and reads it in another place than that of the name. Call
    inside `undisturbed`. Cost: six forward passes.

    Args:
        subject: The model.
        image: One image, `(C, H, W)`.
        name: Address of the layer.
        layout: How it is read.
        chunk_size: Images in one forward pass.

    Returns:
        In [0, 1], or above; 0 also where outputs do not move, or differ at random.
    """
    image = subject.images(image)
    images = torch.cat([image[None], changed_at_places(image, brighter=True)[0][::_EVERY]])
    held: list[Tensor] = []
    axis = layout.name.index("N")

    def keep(returned: Returned) -> None:
        if not held and address.matches(returned.address):
            held.append(returned.tensor.narrow(axis, 0, 1).clone())

    def hold(returned: Returned) -> Tensor | None:
        if not address.matches(returned.address):
            return None
        if returned.in_place:
            returned.tensor.copy_(held[0])
            return None
        return held[0].expand_as(returned.tensor).clone()

    address = Address.parse(name)
    runs = []
    for each in (keep, hold):
        parts = []
        for some in torch.split(images, chunk_size):
            # Calls are counted anew in each pass.
            with watching(subject.module, each, functions=address.function is not None):
                parts.append(subject.select(subject.run(some), len(some)))
        runs.append(torch.cat(parts).double())
    free, bound = (run[1:] - run[:1] for run in runs)
    largest = float(runs[0].abs().amax())
    same = bool((runs[0][0] - runs[1][0]).abs().amax() <= _ROUNDING * largest)
    if not same or float(free.abs().amax()) <= _ROUNDING**2 * largest:
        return 0.0
    return float(bound.norm() / free.norm())
