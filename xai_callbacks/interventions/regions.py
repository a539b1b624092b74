"""Regions of images kept, removed, halved, moved elsewhere, or set on another background.

A probe that has no such region is an all-False row of its masks. It stays one here: what comes back for it says nothing
about the model, and is to be counted as missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.interventions.fills import (
    apply_fill,
    check_masks,
    check_names,
    check_regions,
    named_generator,
)

__all__ = ["HALVES", "half_masks", "keep", "mixed_background", "partners", "placebo_masks", "remove"]

HALVES: tuple[str, ...] = ("top", "bottom", "left", "right", "keep_object")
"""Names of the halves that `half_masks` marks."""

# Share of a placebo's area that may lie in the region itself, or in what it is to avoid.
_OVERLAP = 0.2


def keep(
    images: Tensor,
    masks: Tensor,
    fill: str,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
) -> Tensor:
    """Show the region only (foreground-only): all else is filled. Arguments and errors as those of `apply_fill`.

    Of a probe without the region nothing is left.
    """
    check_regions(images, masks)
    return apply_fill(images, ~masks, fill, names=names, seed=seed, mean=mean)


def remove(
    images: Tensor,
    masks: Tensor,
    fill: str,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
) -> Tensor:
    """Show all but the region (background-only): it is filled. Arguments and errors as those of `apply_fill`.

    A probe without the region stays as it is.
    """
    return apply_fill(images, masks, fill, names=names, seed=seed, mean=mean)


def half_masks(masks: Tensor | None, size: tuple[int, int], half: str) -> Tensor:
    """Mark the half of each image that is to be filled.

    Of an odd side the middle line is not marked. `keep_object` marks the half opposite to where the centre of mass of
    the region lies, along the axis on which the centre is further from the middle as a share of the side; the lower or
    right half where it is in the middle.

    Args:
        masks: `(N, H, W)` booleans, True on the object; required by `keep_object`.
        size: Height and width of the images.
        half: One of `HALVES`.

    Returns:
        `(N, H, W)` booleans; `(1, H, W)` without masks. With `keep_object`, the row of a probe without the region is
        all False: missing.

    Raises:
        ConfigurationError: An argument has the wrong shape, type or range.
    """
    _check_half(masks, size, half)
    halves = _halves(size)
    if half != "keep_object":
        return halves[half].expand(1 if masks is None else len(masks), -1, -1).clone()
    if masks is None:
        raise ConfigurationError("Expected `masks` for 'keep_object', but got None. Pass the masks of the object.")
    found = [halves[_half_without(mask)] & mask.any().cpu() for mask in masks]
    return torch.stack(found).to(masks.device)


def placebo_masks(
    masks: Tensor, seed: int = 0, names: Sequence[str] | None = None, avoid: Tensor | None = None
) -> Tensor:
    """Move each region elsewhere: what a fill of equal shape and area does where the region is not.

    A place is drawn from all those within the image that share no more than 20 % of the area with the region itself
    and no more than 20 % with `avoid`. Where each place shares more with `avoid`, it is drawn from those that share
    least.

    Args:
        masks: `(N, H, W)` booleans.
        seed: Seed of the draw.
        names: Name of each image. Without names its place in the batch stands in.
        avoid: `(N, H, W)` booleans, as a rule the object where `masks` is the cue.

    Returns:
        `(N, H, W)` booleans. All False, missing, is the row of a probe without the region, and of a region too large
        to move away from itself within the image.

    Raises:
        ConfigurationError: An argument has the wrong shape, type or range.
    """
    check_masks("masks", masks)
    require_integer("seed", seed, minimum=0)
    names = check_names(names, len(masks))
    if avoid is not None:
        check_masks("avoid", avoid)
        if avoid.shape != masks.shape:
            raise ConfigurationError(
                f"Expected `avoid` to be {tuple(masks.shape)} as `masks`, but got {tuple(avoid.shape)}. "
                "Take both from the same probe set."
            )
    avoided = torch.zeros_like(masks) if avoid is None else avoid
    rows = zip(masks.cpu(), avoided.cpu(), names, strict=True)
    moved = [_moved(mask, other, named_generator("placebo", seed, name)) for mask, other, name in rows]
    return torch.stack(moved).to(masks.device)


def partners(labels: Tensor, kind: str = "same", seed: int = 0) -> Tensor:
    """Draw for each image another one, whose background it is to stand on.

    Args:
        labels: `(N,)` int64.
        kind: "same": another image of its class. "rand": of a class drawn at random, its own included as in
            ImageNet-9, each class equally likely whatever its size.
        seed: Seed of the draw.

    Returns:
        `(N,)` int64 places in the batch, none its own; -1 where there is no other image of the class.

    Raises:
        ConfigurationError: An argument has the wrong shape, type or range.
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ConfigurationError(
            f"Expected `labels` to be int64 (N,), but got {labels.dtype} {tuple(labels.shape)}. Pass class numbers."
        )
    if kind not in ("same", "rand"):
        raise ConfigurationError(f"Expected `kind` to be 'same' or 'rand', but got {kind!r}.")
    require_integer("seed", seed, minimum=0)
    generator = named_generator("partners", seed, kind)
    places = labels.cpu()
    found = [_partner(places, place, kind, generator) for place in range(len(places))]
    return torch.tensor(found, dtype=torch.int64, device=labels.device)


def mixed_background(
    images: Tensor,
    masks: Tensor,
    others: Tensor,
    other_masks: Tensor,
    fill: str = "local_mean",
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
) -> Tensor:
    """Set the object of each image on the background of another one, whose own object is filled first.

    An image without the region becomes the background only; another one without it is taken as it is.

    Args:
        images: `(N, C, H, W)` floats in [0, 1], before normalisation.
        masks: `(N, H, W)` booleans, True on the object.
        others: The images that lend their backgrounds, as `images`; see `partners`.
        other_masks: `(N, H, W)` booleans, True on their objects.
        fill: One of `FILLS`, for the objects of the others.
        names: Names of the others; see `apply_fill`.
        seed: See `apply_fill`.
        mean: See `apply_fill`.

    Returns:
        New images, without gradient: shape, type and device of `images`. The object is bit-identical.

    Raises:
        ConfigurationError: An argument has the wrong shape, type or range.
    """
    check_regions(images, masks)
    if others.shape != images.shape:
        raise ConfigurationError(
            f"Expected `others` to be {tuple(images.shape)} as `images`, but got {tuple(others.shape)}. Take one for "
            "each image, such as `images[partners(labels)]`."
        )
    with torch.inference_mode(mode=False), torch.no_grad():
        backgrounds = remove(others, other_masks, fill, names=names, seed=seed, mean=mean)
        return torch.where(masks.to(images.device)[:, None], images.detach(), backgrounds)


def _halves(size: tuple[int, int]) -> dict[str, Tensor]:
    height, width = size
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    lines = {
        "top": rows < height // 2,
        "bottom": rows >= height - height // 2,
        "left": columns < width // 2,
        "right": columns >= width - width // 2,
    }
    return {name: line.expand(height, width) for name, line in lines.items()}


def _half_without(mask: Tensor) -> str:
    """Name of the half opposite to the centre of mass; any for an empty mask."""
    places = mask.nonzero().double().cpu()
    down, right = ((places.mean(dim=0) + 0.5) / torch.tensor(mask.shape) - 0.5).tolist()
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
    allowed = elsewhere & (overlap <= max(most, int(overlap[elsewhere].min())))
    places = allowed.nonzero()
    top, left = places[int(torch.randint(len(places), (), generator=generator))].tolist()
    moved[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return moved


def _shared(region: Tensor, shape: Tensor) -> Tensor:
    """Pixels of the region under the shape, for each place of the shape's corner within the image."""
    size = (region.shape[0], region.shape[1])
    spectrum = torch.fft.rfft2(region.double()) * torch.fft.rfft2(shape.double(), s=size).conj()
    places = (size[0] - shape.shape[0] + 1, size[1] - shape.shape[1] + 1)
    # Counts are whole numbers; the transform is off by far less than a half.
    shared: Tensor = torch.fft.irfft2(spectrum, s=size).round()[: places[0], : places[1]]
    return shared


def _partner(labels: Tensor, place: int, kind: str, generator: torch.Generator) -> int:
    others = torch.arange(len(labels)) != place
    if kind == "rand" and others.any():
        classes = torch.unique(labels[others])
        label = classes[torch.randint(len(classes), (), generator=generator)]
    else:
        label = labels[place]
    candidates = (others & (labels == label)).nonzero().flatten()
    if not len(candidates):
        return -1
    return int(candidates[torch.randint(len(candidates), (), generator=generator)])


def _check_half(masks: Tensor | None, size: tuple[int, int], half: str) -> None:
    if half not in HALVES:
        raise ConfigurationError(f"Expected `half` to be one of {', '.join(HALVES)}, but got {half!r}.")
    for side in size:
        require_integer("size", side, minimum=2, hint="Give height and width in pixels.")
    if masks is None:
        return
    check_masks("masks", masks)
    if tuple(masks.shape[1:]) != tuple(size):
        raise ConfigurationError(
            f"Expected `masks` to be of `size` {tuple(size)}, but got {tuple(masks.shape)}. Pass the images' size."
        )
