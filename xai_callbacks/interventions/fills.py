"""Fills: what takes the place of a region of an image, to see whether a model used it.

The colour of a fill and the shape of the region tell a model something, too: ask with three fills or more.

| fill | what a pixel of the region becomes |
|---|---|
| `black`, `white` | 0, 1 |
| `local_mean` | the mean of the pixels outside the region, by channel |
| `blur` | its value in the whole image blurred: Gaussian, standard deviation H / 8 both ways, borders mirrored |
| `uniform` | noise, uniform on [0, 1] |
| `gauss` | noise, normal with mean and standard deviation of the pixels outside, by channel; cut to [0, 1] |
| `shuffle` | another pixel of the region, all channels together |
| `swap` | the same pixel of another image of the batch |
| `road` | noisy linear imputation: the mean of its eight neighbours, direct ones weighted twice, solved for all pixels of the region at once; plus normal noise of standard deviation 0.01; cut to [0, 1] |

`road` is that of Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (ICML 2022).
"""  # noqa: E501 - a row of a table cannot be broken

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

from xai_callbacks.errors import ConfigurationError, require_choice

FILLS: tuple[str, ...] = ("black", "white", "local_mean", "blur", "uniform", "gauss", "shuffle", "swap", "road")
ROUNDING = 1e-4  # resizing in float32 leaves [0, 1] by rounding
_GREY = 0.5
_ROAD_NOISE = 0.01


def apply_fill(
    images: Tensor, masks: Tensor, fill: str, *, names: Sequence[str] | None = None, seed: int = 0
) -> Tensor:
    """Replace a region of each image, in a copy without gradient; all else is bit-identical.

    The random part depends on `seed`, the fill, the name of the image and its shape only: an image is filled the same
    in every batch and epoch. The exception is `swap`, whose source lies a number of places further in the batch. Where
    the region is the whole image, `local_mean`, `gauss` and `road` fill with grey (0.5). All is computed on the CPU in
    float64, image by image; global random states are neither read nor advanced.

    Args:
        images: `(N, C, H, W)` floats in [0, 1], before normalisation.
        masks: `(N, H, W)` booleans, True where to fill.
        fill: One of `FILLS`.
        names: Name of each image. Without names its place in the batch stands in, and batches are no longer paired.
        seed: Seed of the random part.

    Raises a `ConfigurationError` if an argument has the wrong shape, type or range, or `swap` has one image only.
    """
    check_images("images", images, "Undo the normalisation first.")
    size = (len(images), *images.shape[2:])
    if masks.shape != size or masks.dtype != torch.bool:
        raise ConfigurationError(
            f"Expected `masks` to be booleans {size}, one for each image, but got {masks.dtype} {tuple(masks.shape)}. "
            "Resize them as the images were; compare a map with a threshold."
        )
    require_choice("fill", fill, FILLS)
    if fill == "swap" and len(images) == 1:
        raise ConfigurationError("Expected `images` to be two or more for 'swap', but got 1. Use another fill.")
    named = map(str, range(len(images))) if names is None else names
    # Tensors made in inference mode could never take part in a gradient, which is what images are for.
    with torch.inference_mode(mode=False), torch.no_grad():
        working = images.detach().to("cpu", torch.float64, copy=True)
        regions = masks.detach().to("cpu", copy=True)
        if fill == "swap":
            generator = named_generator("swap", seed, str(len(images)))
            filled = working.roll(-int(torch.randint(1, len(images), (), generator=generator)), dims=0)
        else:
            generators = (named_generator(fill, seed, name) for name in named)
            filled = torch.stack([_filled(*row, fill) for row in zip(working, regions, generators, strict=True)])
        filled = filled.clamp(0, 1).to(images.device, images.dtype)
        return torch.where(masks.to(images.device)[:, None], filled, images.detach())


def dilate(masks: Tensor, pixels: int) -> Tensor:
    """Grow regions `(N, H, W)` bool by a number of pixels in all eight directions, so that no rim stays behind."""
    return max_pool2d(masks[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0


def named_generator(purpose: str, seed: int, name: str | int) -> torch.Generator:
    """A stream of its own for each purpose and image, whichever batch the image is in."""
    digest = hashlib.sha256(repr((purpose, seed, name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def check_images(argument: str, images: Tensor, advice: str) -> None:
    """Refuse images that are not floats `(N, C, H, W)` in [0, 1], as they are displayed."""
    if images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        raise ConfigurationError(
            f"Expected `{argument}` to be floats (N, C, H, W), but got {images.dtype} {tuple(images.shape)}. "
            "Divide uint8 pixels by 255."
        )
    low, high = (float(end) for end in images.detach().aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is refused, too
        raise ConfigurationError(
            f"Expected `{argument}` to lie in [0, 1], but got values from {low:.3g} to {high:.3g}. {advice}"
        )


def _filled(image: Tensor, region: Tensor, generator: torch.Generator, fill: str) -> Tensor:
    """Content of the region `(C, H, W)`; outside of it the values mean nothing."""
    if not region.any():
        return image
    match fill:
        case "black":
            return torch.zeros_like(image)
        case "white":
            return torch.ones_like(image)
        case "blur":
            from scipy.ndimage import gaussian_filter

            sigma = image.shape[1] / 8
            return torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="mirror", truncate=4.0))
        case "uniform":
            return torch.rand(image.shape, generator=generator, dtype=image.dtype)
        case "shuffle":
            shuffled, pixels = image.clone(), image[:, region]
            shuffled[:, region] = pixels[:, torch.randperm(pixels.shape[1], generator=generator)]
            return shuffled
        case _:
            return _coloured(image, region, generator, fill)


def _coloured(image: Tensor, region: Tensor, generator: torch.Generator, fill: str) -> Tensor:
    """Fills that go by the pixels outside the region."""
    if region.all():
        return torch.full_like(image, _GREY)
    outside = image[:, ~region]
    local_mean = outside.mean(dim=1)[:, None, None]
    if fill == "local_mean":
        return local_mean.expand_as(image)
    noise = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    if fill == "gauss":
        return local_mean + outside.std(dim=1, correction=0)[:, None, None] * noise
    return _imputed(image, region) + _ROAD_NOISE * noise


def _imputed(image: Tensor, region: Tensor) -> Tensor:
    """Solve for the region: each pixel the weighted mean of its neighbours; those beyond the border do not count."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import splu

    count = int(region.sum())
    number = torch.full(region.shape, -1)
    number[region] = torch.arange(count)
    kernel = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=image.dtype) / 12
    # Numbers of the neighbours of each pixel of the region, by place in the kernel; -1 where one is known or missing.
    around = pad(number, (1, 1, 1, 1), value=-1).unfold(0, 3, 1).unfold(1, 3, 1)[region].flatten(1)
    rows, places = (around >= 0).nonzero().unbind(dim=1)
    known = image.masked_fill(region, 0.0)
    planes = torch.stack([torch.ones_like(known[0]), *known])[:, None]
    sums = conv2d(planes, kernel[None, None], padding=1)[:, 0, region]
    values = torch.cat([sums[0], -kernel.flatten()[places]])
    diagonal = torch.arange(count)
    index = torch.cat([diagonal, rows]).numpy(), torch.cat([diagonal, around[rows, places]]).numpy()
    matrix = coo_array((values.numpy(), index), shape=(count, count)).tocsc()
    known[:, region] = torch.from_numpy(splu(matrix).solve(sums[1:].T.numpy())).T
    return known
