"""Fills: what takes the place of a region of an image, to see whether a model used it.

A fill is a second change beside the loss of the region: its colour and the shape of the region tell a model something,
too. So ask with three fills or more, `swap` or `road` among them, and report their spread.

| fill | what a pixel of the region becomes |
|---|---|
| `black`, `white` | 0, 1 |
| `mean` | the argument `mean`, as a rule that of the training images |
| `local_mean` | the mean of the pixels outside the region, by channel |
| `blur` | its value in the whole image blurred: Gaussian, standard deviation H / 8 both ways, borders mirrored |
| `uniform` | noise, uniform on [0, 1] |
| `gauss` | noise, normal with mean and standard deviation of the pixels outside, by channel; cut to [0, 1] |
| `shuffle` | another pixel of the region, all channels together |
| `swap` | the same pixel of another image of the batch |
| `road` | noisy linear imputation: the mean of its eight neighbours, direct ones weighted twice, solved for all pixels of the region at once; plus normal noise of standard deviation 0.01; cut to [0, 1] |

`road` is that of Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (ICML 2022).
"""  # noqa: E501 - a row of a table cannot be broken

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["FILLS", "apply_fill", "dilate"]

FILLS: tuple[str, ...] = ("black", "white", "mean", "local_mean", "blur", "uniform", "gauss", "shuffle", "swap", "road")
"""Names of the fills."""

_GREY = 0.5
_ROAD_NOISE = 0.01

# Resizing in float32 leaves [0, 1] by rounding.
_ROUNDING = 1e-4

# Residual of the imputation relative to its start. In float64, large regions lose some six digits of it.
_SOLVED, _MOST_STEPS = 1e-12, 10_000


def apply_fill(
    images: Tensor,
    masks: Tensor,
    fill: str,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
) -> Tensor:
    """Replace a region of each image.

    Pixels outside the region are bit-identical; a region without pixels leaves its image as it is. What is random
    depends on `seed`, the fill, the name of the image and its shape only: epochs are paired, and an image is filled the
    same in every batch. The exception is `swap`, whose source lies a number of places further in the batch, round its
    end; the number depends on `seed` and the size of the batch. Where the region is the whole image, `local_mean`,
    `gauss` and `road` have nothing to go by: they fill with `mean`, or grey (0.5) without one, and add no noise. All is
    computed on the CPU in float64, image by image; global random states are neither read nor advanced.

    Args:
        images: `(N, C, H, W)` floats in [0, 1], before normalisation.
        masks: `(N, H, W)` booleans, True where to fill.
        fill: One of `FILLS`.
        names: Name of each image. Without names its place in the batch stands in, and batches are no longer paired.
        seed: Seed of what is random.
        mean: One value in [0, 1], or one a channel. Required by the fill `mean`.

    Returns:
        New images, without gradient: shape, type and device of `images`.

    Raises:
        ConfigurationError: An argument has the wrong shape, type or range, or `swap` has one image only.
    """
    check_regions(images, masks)
    names = check_names(names, len(images))
    colour = _check_fill(fill, images, seed, mean)
    # Tensors made in inference mode could never take part in a gradient, which is what images are for.
    with torch.inference_mode(mode=False), torch.no_grad():
        working = images.detach().to("cpu", torch.float64, copy=True)
        regions = masks.detach().to("cpu", copy=True)
        if fill == "swap":
            filled = working.roll(-_swap_distance(seed, len(images)), dims=0)
        else:
            generators = (named_generator(fill, seed, name) for name in names)
            rows = zip(working, regions, generators, strict=True)
            filled = torch.stack([_filled(*row, fill, colour) for row in rows])
        filled = filled.clamp(0, 1).to(images.device, images.dtype)
        return torch.where(masks.to(images.device)[:, None], filled, images.detach())


def dilate(masks: Tensor, pixels: int) -> Tensor:
    """Grow regions by a number of pixels in all eight directions, so that no rim of what is removed stays behind.

    Args:
        masks: `(N, H, W)` booleans.
        pixels: By how many pixels; 0 leaves the regions as they are.

    Returns:
        New masks `(N, H, W)`.

    Raises:
        ConfigurationError: An argument has the wrong shape, type or range.
    """
    check_masks("masks", masks)
    require_integer("pixels", pixels, minimum=0)
    return max_pool2d(masks[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0


def named_generator(purpose: str, seed: int, name: str) -> torch.Generator:
    """A stream of its own for each purpose and image, whichever batch the image is in."""
    digest = hashlib.sha256(repr((purpose, seed, name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _filled(image: Tensor, region: Tensor, generator: torch.Generator, fill: str, colour: Tensor) -> Tensor:
    """What stands in the region `(C, H, W)`; outside of it the values mean nothing."""
    if not region.any():
        return image
    match fill:
        case "black":
            return torch.zeros_like(image)
        case "white":
            return torch.ones_like(image)
        case "blur":
            return _blurred(image, image.shape[1] / 8)
        case "uniform":
            return torch.rand(image.shape, generator=generator, dtype=image.dtype)
        case "shuffle":
            return _shuffled(image, region, generator)
        case _:
            return _coloured(image, region, generator, fill, colour)


def _coloured(image: Tensor, region: Tensor, generator: torch.Generator, fill: str, colour: Tensor) -> Tensor:
    """Fills that go by the pixels outside the region, or by a colour where there are none."""
    if fill == "mean" or region.all():
        return colour.expand_as(image)
    outside = image[:, ~region]
    local_mean = outside.mean(dim=1)[:, None, None]
    if fill == "local_mean":
        return local_mean.expand_as(image)
    noise = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    if fill == "gauss":
        return local_mean + outside.std(dim=1, correction=0)[:, None, None] * noise
    return _imputed(image, region, local_mean) + _ROAD_NOISE * noise


def _blurred(image: Tensor, sigma: float) -> Tensor:
    rows, columns = (_blur_matrix(side, sigma) for side in image.shape[1:])
    return rows @ image @ columns.T


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Weights of the pixels of a line `(side, side)`: Gaussian, cut at four sigma, mirrored at the border."""
    radius = int(4 * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma).square())
    period = max(2 * side - 2, 1)
    sources = (torch.arange(side)[:, None] + steps) % period
    sources = torch.minimum(sources, period - sources) if side > 1 else sources
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, (weights / weights.sum()).expand(side, -1))


def _shuffled(image: Tensor, region: Tensor, generator: torch.Generator) -> Tensor:
    pixels = image[:, region]
    shuffled = image.clone()
    shuffled[:, region] = pixels[:, torch.randperm(pixels.shape[1], generator=generator)]
    return shuffled


def _imputed(image: Tensor, region: Tensor, start: Tensor) -> Tensor:
    """Solve for the region: each pixel the weighted mean of its neighbours; those beyond the border do not count.

    Each row times the sum of its weights makes the system symmetric and positive definite, as long as one pixel of the
    image is known. Conjugate gradients solve it without ever building it.
    """
    weights = _neighbours(torch.ones_like(image[:1]))
    known = image.masked_fill(region, 0.0)
    inside = region.to(image.dtype)
    solution = start * inside
    residual = (_neighbours(known) - weights * solution + _neighbours(solution)) * inside
    direction, energy = residual.clone(), _dot(residual, residual)
    enough = energy * _SOLVED**2
    for _ in range(_MOST_STEPS):
        if bool((energy <= enough).all()):
            break
        image_of = (weights * direction - _neighbours(direction)) * inside
        # A channel that is solved exactly has nothing left to divide by.
        step = energy / _dot(direction, image_of).clamp(min=torch.finfo(image.dtype).tiny)
        solution = solution + step * direction
        residual = residual - step * image_of
        before, energy = energy, _dot(residual, residual)
        direction = residual + energy / before.clamp(min=torch.finfo(image.dtype).tiny) * direction
    return known + solution


def _neighbours(values: Tensor) -> Tensor:
    """Sum of the eight neighbours `(C, H, W)`: direct ones 1/6, diagonal ones 1/12, none beyond the border."""
    padded = pad(values, (1, 1, 1, 1))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * values) / 12


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(1, 2), keepdim=True)


def _swap_distance(seed: int, count: int) -> int:
    return int(torch.randint(1, count, (), generator=named_generator("swap", seed, str(count))))


def check_masks(name: str, masks: Tensor) -> None:
    """Refuse what is not `(N, H, W)` booleans."""
    if masks.ndim != 3 or masks.dtype != torch.bool or masks.numel() == 0:
        raise ConfigurationError(
            f"Expected `{name}` to be booleans (N, H, W), but got {masks.dtype} {tuple(masks.shape)}. "
            "Compare a map with a threshold to make a mask of it."
        )


def check_regions(images: Tensor, masks: Tensor) -> None:
    """Refuse images that are not as they are displayed, and masks that do not fit them."""
    if images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        raise ConfigurationError(
            f"Expected `images` to be floats (N, C, H, W), but got {images.dtype} {tuple(images.shape)}. "
            "Divide uint8 pixels by 255."
        )
    low, high = float(images.detach().min()), float(images.detach().max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is refused, too
        raise ConfigurationError(
            f"Expected `images` to lie in [0, 1], but got values from {low:.3g} to {high:.3g}. "
            "Undo the normalisation first."
        )
    check_masks("masks", masks)
    expected = (images.shape[0], *images.shape[2:])
    if masks.shape != expected:
        raise ConfigurationError(
            f"Expected `masks` to be {expected}, one for each image, but got {tuple(masks.shape)}. "
            "Resize or select the masks as the images were."
        )


def check_names(names: Sequence[str] | None, count: int) -> Sequence[str]:
    """Names of the images; their places without names."""
    if names is None:
        return [str(place) for place in range(count)]
    if isinstance(names, str) or len(names) != count:
        raise ConfigurationError(
            f"Expected `names` to be {count} names, one for each image, but got {names!r}. "
            "Pass the names of the probe set."
        )
    return names


def _check_fill(fill: str, images: Tensor, seed: int, mean: Sequence[float] | None) -> Tensor:
    """The colour `(C, 1, 1)` where there is nothing to go by."""
    if fill not in FILLS:
        raise ConfigurationError(f"Expected `fill` to be one of {', '.join(FILLS)}, but got {fill!r}.")
    require_integer("seed", seed, minimum=0)
    count, channels = images.shape[:2]
    if fill == "swap" and count == 1:
        raise ConfigurationError("Expected `images` to be two or more for 'swap', but got 1. Use another fill.")
    if fill == "mean" and mean is None:
        raise ConfigurationError(
            "Expected `mean` to be given for the fill 'mean', but got None. Pass the mean of the training images, or "
            "use 'local_mean'."
        )
    values = [_GREY] if mean is None else [float(value) for value in mean]
    if len(values) not in (1, channels) or not all(0 <= value <= 1 for value in values):
        raise ConfigurationError(
            f"Expected `mean` to be one value in [0, 1], or one for each of {channels} channels, but got {mean!r}. "
            "Give it in units of [0, 1] pixels."
        )
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
