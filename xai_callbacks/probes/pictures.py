"""Image files: opened safely, and brought to one geometry."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.paths import inside, no_file

__all__ = ["Frame", "open_image", "open_mask", "to_frame"]

# Those of `EXTENSIONS`; others may start programs, as EPS does, whatever the file is called.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Converting these to 8 bit clips instead of scaling: the model would see something else than in training.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Modes in which black is zero, and another colour is not.
_MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", *_WIDE_MODES)
# Pixels of an image that was resized and is yet to be cropped.
_MOST_PIXELS = 2**26


@dataclass(frozen=True)
class Frame:
    """The geometry that images and masks share: shorter side to `resize` (or just filling), then centre crop."""

    size: tuple[int, int]
    resize: int | None

    def applied(self, image: Image.Image, resampling: Image.Resampling, file: str) -> Image.Image:
        """Resize and crop exactly as torchvision's `Resize` and `CenterCrop` do on PIL images.

        Raises:
            ProbeSetError: The image would not fill the frame, or take too much memory on the way.
        """
        height, width = self._scaled_size(image)
        if height * width > _MOST_PIXELS:
            raise ProbeSetError(
                f"Expected {file!r}, {image.height:,} x {image.width:,} pixels (H x W), to have at most "
                f"{_MOST_PIXELS:,} when it is resized to fill {self.size}, but it would have {height:,} x {width:,}. "
                "Crop it to a more even shape, or make `size` or `resize` smaller."
            )
        if height < self.size[0] or width < self.size[1]:
            raise ProbeSetError(
                f"Expected {file!r} to fill {self.size} (H, W) after its shorter side became {self.resize}, but got "
                f"{(height, width)}. Use a larger `resize`, or leave it out."
            )
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        return image.resize((width, height), resampling).crop((left, top, left + self.size[1], top + self.size[0]))

    def _scaled_size(self, image: Image.Image) -> tuple[int, int]:
        """Return (H, W) after scaling, with the rounding of torchvision: the longer side is cut to a whole number."""
        shorter, longer = sorted((image.height, image.width))
        target = self.resize
        if target is None:
            fill = max(self.size[0] / image.height, self.size[1] / image.width)
            target = max(1, round(fill * shorter))
        other = max(1, int(target * longer / shorter))
        height, width = (target, other) if image.height <= image.width else (other, target)
        if self.resize is None:
            # Rounding down must not leave the picture one pixel short of the crop.
            height, width = max(height, self.size[0]), max(width, self.size[1])
        return height, width


def to_frame(size: Any, resize: Any) -> Frame:
    """Check `size` and `resize`.

    Raises:
        ProbeSetError: One is no positive whole number, or `resize` too small.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(_is_positive(side) for side in sides):
        raise ProbeSetError(f"Expected `size` to be a positive whole number or (H, W), but got {size!r}.")
    if resize is not None and (not _is_positive(resize) or resize < min(sides)):
        raise ProbeSetError(
            f"Expected `resize` to be a whole number of at least {min(sides)}, to fill `size`, but got {resize!r}."
        )
    return Frame((sides[0], sides[1]), resize)


def open_image(root: Path, file: str, channels: int) -> Image.Image:
    """Open an image of 8 bits a channel, as grey or RGB.

    Raises:
        ProbeSetError: It cannot be read, or not be converted; the message names the file.
    """
    image = _opened(root, file)
    if image.mode in _WIDE_MODES:
        raise ProbeSetError(
            f"Expected {file!r} to be an image of 8 bits a channel, but its mode is {image.mode!r}. "
            "Convert it to 8 bit the way your training data were, or use `ProbeSet.from_tensors`."
        )
    wanted = "L" if channels == 1 else "RGB"
    try:
        # Straight to RGB, Pillow warns about palettes with transparency; by way of RGBA the colours are the same.
        return (image.convert("RGBA") if image.mode == "P" else image).convert(wanted)
    except Exception as error:  # of Pillow or its colour management
        raise ProbeSetError(
            f"Expected {file!r} to be an image that becomes {wanted}, but its mode is {image.mode!r}: {error}. "
            f"Convert it to RGB the way your training data were."
        ) from error


def open_mask(root: Path, file: str) -> tuple[Image.Image, npt.NDArray[np.bool_]]:
    """Open a mask; returns it, and where it is inside: any colour channel is nonzero, and it is not transparent.

    Raises:
        ProbeSetError: It cannot be read, or black is not zero in it; the message names the file.
    """
    mask = _opened(root, file)
    if mask.mode not in _MASK_MODES:
        raise ProbeSetError(
            f"Expected mask {file!r} to be grey or RGB, but its mode is {mask.mode!r}, in which black is not zero. "
            "Save it as a grey PNG."
        )
    values = np.asarray(mask)
    if mask.mode in ("RGBA", "LA"):
        return mask, np.asarray((values[..., :-1] > 0).any(axis=-1) & (values[..., -1] > 0))
    return mask, np.asarray(values != 0 if values.ndim == 2 else (values != 0).any(axis=-1))


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _opened(root: Path, file: str) -> Image.Image:
    path = inside(root, file)
    why = no_file(path)
    if why is not None:
        raise ProbeSetError(f"Expected {file!r} to be an image under the probe folder, but {why}.")
    try:
        with warnings.catch_warnings():
            # Of twice the pixels that Pillow thinks safe it would only warn.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                image.load()
                return image.copy()
    except Exception as error:  # on damaged files, Pillow raises whatever its decoders stumble over
        bomb = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        advice = "Make it smaller, or raise `PIL.Image.MAX_IMAGE_PIXELS`." if bomb else "Replace or drop it."
        raise ProbeSetError(
            f"Expected {file!r} to be a readable image, but got {type(error).__name__}: {error} {advice}"
        ) from error
