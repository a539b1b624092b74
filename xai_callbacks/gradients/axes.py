"""The axis along which images lie in what goes into modules and comes out of them; found, not guessed.

It is the one that grows when the model gets three images instead of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients.calls import Arguments, Key, hooked, tensors_in
from xai_callbacks.randomness import isolated_rng

__all__ = ["Axes", "find_axes"]

FOLDED = -1
"""Stands for an axis that grows with the images but is not their number: images and positions in one."""


@dataclass(frozen=True)
class Axes:
    """For every tensor that goes into a call, and every one that comes out, the axis of the images.

    None: all images share the tensor. `FOLDED`: images and something else lie on one axis.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]

    def clear(self) -> bool:
        """Whether the images can be told apart in everything."""
        return FOLDED not in self.inputs + self.outputs and any(axis is not None for axis in self.outputs)


def find_axes(root: nn.Module, call: Callable[[Tensor], object], images: Tensor, names: set[str]) -> dict[Key, Axes]:
    """Run the model on two and on three images and see what grows, at every call of the named modules.

    Raises:
        ConfigurationError: What the model says of an image depends on the images beside it.
    """
    few, few_outputs = _shapes(root, call, images, 2, names)
    more, more_outputs = _shapes(root, call, images, 3, names)
    _check_independence(few_outputs, more_outputs)
    return {
        key: Axes(_growing(few[key][0], more[key][0]), _growing(few[key][1], more[key][1]))
        for key in few.keys() & more.keys()
    }


Shapes = list[torch.Size]


def _shapes(
    root: nn.Module, call: Callable[[Tensor], object], images: Tensor, count: int, names: set[str]
) -> tuple[dict[Key, tuple[Shapes, Shapes]], object]:
    """Shapes of what goes in and comes out, by call, and what the model returns."""
    found: dict[Key, tuple[Shapes, Shapes]] = {}

    def note(key: Key, _module: nn.Module, arguments: Arguments, output: object) -> None:
        found[key] = ([each.shape for each in tensors_in(arguments)], [each.shape for each in tensors_in(output)])

    # A model that draws random numbers must draw the same ones both times. With gradients, as in the pass to come: some
    # modules call no parts of theirs without.
    with isolated_rng(), torch.enable_grad(), hooked(root, names, note):
        outputs = call(images[torch.arange(count, device=images.device) % images.shape[0]])
    return found, outputs


def _growing(few: Shapes, more: Shapes) -> tuple[int | None, ...]:
    if len(few) != len(more):
        return (FOLDED,)
    return tuple(_axis(a, b) for a, b in zip(few, more, strict=True))


def _axis(few: torch.Size, more: torch.Size) -> int | None:
    if len(few) != len(more):
        return FOLDED
    growing = [axis for axis, (a, b) in enumerate(zip(few, more, strict=True)) if a != b]
    if not growing:
        return None
    fits = len(growing) == 1 and (few[growing[0]], more[growing[0]]) == (2, 3)
    return growing[0] if fits else FOLDED


def _check_independence(few: object, more: object) -> None:
    for a, b in zip(tensors_in(few), tensors_in(more), strict=False):
        comparable = a.dim() > 0 and a.shape[0] == 2 and b.shape[0] == 3 and a.is_floating_point()
        if comparable and not _nearly_same(a, b[:2]):
            raise ConfigurationError(
                "Expected the model to treat every image by itself, but what it says of an image changes with the "
                "images beside it, so that no gradient belongs to one image. Normalise by running statistics or within "
                "an image."
            )


def _nearly_same(few: Tensor, more: Tensor) -> bool:
    """Up to what kernels for other batch sizes round differently; NaN and inf are for others to judge."""
    both = few.isfinite() & more.isfinite()
    few, more = few.detach()[both], more.detach()[both]
    largest = float(more.abs().amax()) if more.numel() else 0.0
    return torch.allclose(few, more, rtol=1e-2, atol=1e-3 * largest)
