"""Regions of images halved or moved elsewhere, and backgrounds of other images.

A probe without the region is an all-False row, and stays one: what comes back for it is to be counted as missing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.fills import named_generator
from xai_callbacks.probes import ProbeSet

HALVES: tuple[str, ...] = ("top", "bottom", "left", "right", "keep_object")

_OVERLAP = 0.2  # share of a placebo's area that may lie in the region itself, or in what it is to avoid


def require_region(region: str, probes: ProbeSet, argument: str, name: str) -> None:
    """Raise a `ConfigurationError` for a region that no probe has, an argument of the cue or trial `name`."""
    if region not in probes.masks:
        raise ConfigurationError(
            f"Expected `{argument}` of {name!r} to be a region of the probes, but got {region!r}. They have "
            f"{', '.join(probes.masks) or 'none; pass `masks=` when you build them'}."
        )
    if not probes.masks[region].any():
        raise ConfigurationError(
            f"Expected some probes to have the region {region!r}, `{argument}` of {name!r}, but none has. Add probes "
            "that show it."
        )


def half_masks(masks: Tensor | None, size: tuple[int, int], half: str) -> Tensor:
    """Mark the half of each image that is to be filled, one of `HALVES`: `(N, H, W)` bool; `(1, H, W)` without masks.

    Of an odd side the middle line is not marked. `keep_object` needs `masks` `(N, H, W)` bool, and marks the half
    opposite to their centre of mass, along the axis on which that is further out as a share of the side.
    """
    height, width = size
    halves = {name: torch.zeros(size, dtype=torch.bool) for name in HALVES[:-1]}
    halves["top"][: height // 2] = True
    halves["bottom"][height - height // 2 :] = True
    halves["left"][:, : width // 2] = True
    halves["right"][:, width - width // 2 :] = True
    if masks is None or half != "keep_object":
        return halves[half].expand(1 if masks is None else len(masks), -1, -1).clone()
    return torch.stack([halves[_half_without(mask)] & mask.any() for mask in masks])


def placebo_masks(
    masks: Tensor, seed: int = 0, names: Sequence[str] | None = None, avoid: Tensor | None = None
) -> Tensor:
    """Move each region `(N, H, W)` bool elsewhere: what a fill of equal shape and area does where the region is not.

    A place is drawn from all those within the image that share no more than 20 % of the area with the region itself
    and no more than 20 % with `avoid`, `(N, H, W)` bool, or as little as any. Without `names` of the images, their
    places in the batch stand in. All False where there is no region, or one too large to move away from itself.
    """
    named = map(str, range(len(masks))) if names is None else names
    rows = zip(masks, torch.zeros_like(masks) if avoid is None else avoid, named, strict=True)
    return torch.stack([_moved(mask, other, named_generator("placebo", seed, name)) for mask, other, name in rows])


def partners(labels: Tensor, kind: str = "same", seed: int = 0) -> Tensor:
    """Draw for each image another one, on whose background it is to stand: places `(N,)` int64; -1 if there is none.

    `kind` is "same" or "other", by class in `labels` `(N,)` int64, or "rand", of any class; each is equally likely.
    """
    generator = named_generator("partners", seed, kind)
    found = torch.full_like(labels, -1)
    for place in range(len(labels)):
        own = labels == labels[place]
        wanted = {"same": own, "other": ~own, "rand": torch.ones_like(own)}[kind] & (torch.arange(len(labels)) != place)
        classes = torch.unique(labels[wanted])
        if len(classes):
            label = classes[torch.randint(len(classes), (), generator=generator)] if len(classes) > 1 else classes[0]
            candidates = (wanted & (labels == label)).nonzero()[:, 0]
            found[place] = candidates[torch.randint(len(candidates), (), generator=generator)]
    return found


def _half_without(mask: Tensor) -> str:
    """Name of the half opposite to the centre of mass; any for an empty mask."""
    down, right = ((mask.nonzero().double().mean(dim=0) + 0.5) / torch.tensor(mask.shape) - 0.5).tolist()
    if abs(right) > abs(down):
        return "left" if right > 0 else "right"
    return "top" if down > 0 else "bottom"


def _moved(mask: Tensor, avoid: Tensor, generator: torch.Generator) -> Tensor:
    """One region elsewhere; all False where it cannot be."""
    moved = torch.zeros_like(mask)
    if not mask.any():
        return moved
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    shape = mask[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
    most = _OVERLAP * int(shape.sum())
    elsewhere = _shared(mask, shape) <= most
    if not elsewhere.any():
        return moved
    overlap = _shared(avoid, shape)
    places = (elsewhere & (overlap <= max(most, int(overlap[elsewhere].min())))).nonzero()
    top, left = places[int(torch.randint(len(places), (), generator=generator))].tolist()
    moved[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return moved


def _shared(region: Tensor, shape: Tensor) -> Tensor:
    """Pixels of the region under the shape, for each place of the shape's corner within the image."""
    from scipy.signal import correlate

    # Counts are whole numbers; the transform is off by far less than a half.
    shared = correlate(region.double().numpy(), shape.double().numpy(), mode="valid", method="fft")
    return torch.from_numpy(shared).round()
