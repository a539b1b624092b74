"""Per-sample parameter gradients of any module: it is run again under `torch.func`, image by image."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten  # private; torch.func itself speaks in these trees

from xai_callbacks.errors import ConfigurationError, in_words, is_out_of_memory
from xai_callbacks.gradients.axes import Axes
from xai_callbacks.gradients.calls import Call, precise, tensors_in

__all__ = ["functional_gradients"]


class Batch(NamedTuple):
    """Tensors, and the axis of the images in each; None for one that all images share."""

    tensors: list[Tensor]
    axes: list[int | None]

    def image(self, index: int) -> list[Tensor]:
        """The tensors of one image, without the axis."""
        pairs = zip(self.tensors, self.axes, strict=True)
        return [tensor if axis is None else tensor.select(axis, index) for tensor, axis in pairs]

    def of_one(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of one image as a batch of one."""
        pairs = zip(tensors, self.axes, strict=True)
        return [tensor if axis is None else tensor.unsqueeze(axis) for tensor, axis in pairs]


def functional_gradients(call: Call, names: list[str], axes: Axes, gradients: list[Tensor | None]) -> dict[str, Tensor]:
    """Gradients of parameters, named from the module, for every image: right for whatever treats images one by one.

    Args:
        call: A call of the module.
        names: The parameters.
        axes: Of the images.
        gradients: For every tensor that came out, the gradient of the sum of the losses, or None.

    Returns:
        `(N, *parameter.shape)` by name.

    Raises:
        ConfigurationError: The module cannot be run again, or a hook replaces what goes into it, which it would do a
            second time.
    """
    leaves, tree = tree_flatten(call.arguments)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    wanted = [index for index, gradient in enumerate(gradients) if gradient is not None]
    parameters = {name: call.module.get_parameter(name).detach() for name in names}
    given = Batch([leaves[index].detach() for index in places], list(axes.inputs))
    taken = Batch(
        [gradient for gradient in gradients if gradient is not None], [axes.outputs[index] for index in wanted]
    )

    def one(inputs: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        filled = list(leaves)
        for index, tensor in zip(places, given.of_one(inputs), strict=True):
            filled[index] = tensor
        args, kwargs = tree_unflatten(filled, tree)

        def run(parameters: dict[str, Tensor]) -> list[Tensor]:
            came_out = _forward(call.module, parameters, args, dict(kwargs))
            return [came_out[index] for index in wanted]

        came_out, pull_back = torch.func.vjp(run, parameters)[:2]
        ones = zip(taken.of_one(cotangents), came_out, strict=True)
        found: dict[str, Tensor] = pull_back([cotangent.to(output.dtype) for cotangent, output in ones])[0]
        return found

    # Other parameters of the module would draw a graph of their own behind what comes out; `vjp` needs none.
    try:
        with torch.no_grad():
            found = _for_each_image(one, given, taken)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"Expected `{call.name or type(call.module).__name__}`, which has no rule of its own, to run again for "
            f"each image, but `torch.func` raised {in_words(error)} Leave its parameters out with `parameters=`."
        ) from error
    return {name: precise(gradient) for name, gradient in found.items()}


def _forward(module: nn.Module, parameters: dict[str, Tensor], args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a module returns with other parameters, before its own hooks change them, as in `Call`."""
    came_out: list[Tensor] = []

    def note(_module: nn.Module, args_now: Any, kwargs_now: Any, output: object) -> None:
        before, now = (tensors_in(each) for each in ((args, kwargs), (args_now, kwargs_now)))
        if len(before) != len(now) or any(a is not b for a, b in zip(before, now, strict=True)):
            raise ConfigurationError(
                f"Expected what goes into {type(module).__name__} to be left alone by its hooks, since it is run again "
                "for every image, but a forward pre-hook replaces it. Move what the hook does into a module, or leave "
                "its parameters out with `parameters=`."
            )
        came_out.extend(tensors_in(output))

    # Copies, since counters and caches may be written to, which `torch.func` forbids of what comes from outside.
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    handle = module.register_forward_hook(note, prepend=True, with_kwargs=True)
    try:
        torch.func.functional_call(module, parameters | buffers, args, kwargs)
    finally:
        handle.remove()
    return came_out


def _for_each_image(
    one: Callable[[list[Tensor], list[Tensor]], dict[str, Tensor]], given: Batch, taken: Batch
) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # Operations without a batching rule run one image after another, which is what is wanted here.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            return torch.func.vmap(one, in_dims=(given.axes, taken.axes))(given.tensors, taken.tensors)
    except RuntimeError:
        pass
    # What depends on values, has no batching rule, or does not fit into memory, still runs image by image.
    pairs = zip(taken.tensors, taken.axes, strict=True)
    count = next(tensor.shape[axis] for tensor, axis in pairs if axis is not None)
    singles = [one(given.image(index), taken.image(index)) for index in range(count)]
    return {name: torch.stack([single[name] for single in singles]) for name in singles[0]}
