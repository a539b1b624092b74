"""Per-sample parameter gradients of any module: it is run again under `torch.func`, image by image."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten  # private; torch.func itself speaks in these trees

from xai_callbacks.errors import ConfigurationError, in_words, is_out_of_memory
from xai_callbacks.gradients.calls import Axes, Call, precise, tensors_in

__all__ = ["functional_gradients"]


def functional_gradients(call: Call, names: list[str], axes: Axes) -> dict[str, Tensor]:
    """Gradients `(N, *parameter.shape)` of parameters, named from the module, whatever it does with each image.

    Raises:
        ConfigurationError: The module cannot be run again, or a hook replaces what goes into it, which it would do a
            second time.
    """
    leaves, tree = tree_flatten(call.arguments)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    wanted = [index for index, gradient in enumerate(call.gradients) if gradient is not None]
    parameters = {name: call.module.get_parameter(name).detach() for name in names}
    given = [leaves[index].detach() for index in places]
    taken = [gradient for gradient in call.gradients if gradient is not None]
    along = [*axes.inputs], [axes.outputs[index] for index in wanted]

    def one(inputs: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        """Gradients of one image, whose tensors come without the axis of the images."""
        filled = list(leaves)
        for index, tensor, axis in zip(places, inputs, along[0], strict=True):
            filled[index] = tensor if axis is None else tensor.unsqueeze(axis)
        args, kwargs = tree_unflatten(filled, tree)

        def run(parameters: dict[str, Tensor]) -> list[Tensor]:
            came_out = _forward(call.module, parameters, args, dict(kwargs))
            return [came_out[index] for index in wanted]

        came_out, pull_back = torch.func.vjp(run, parameters)[:2]
        shaped = [
            each.reshape(output.shape).to(output.dtype) for each, output in zip(cotangents, came_out, strict=True)
        ]
        found: dict[str, Tensor] = pull_back(shaped)[0]
        return found

    def each_image() -> dict[str, Tensor]:
        try:
            with warnings.catch_warnings():
                # Operations without a batching rule run one image after another, which is what is wanted here.
                warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
                return torch.func.vmap(one, in_dims=along)(given, taken)
        except RuntimeError:
            pass
        # What depends on values, has no batching rule, or does not fit into memory, still runs image by image.
        count = next(tensor.shape[axis] for tensor, axis in zip(taken, along[1], strict=True) if axis is not None)
        singles = [one(_image(given, along[0], index), _image(taken, along[1], index)) for index in range(count)]
        return {name: torch.stack([single[name] for single in singles]) for name in singles[0]}

    try:
        # Other parameters of the module would draw a graph of their own behind what comes out; `vjp` needs none.
        with torch.no_grad():
            return {name: precise(gradient) for name, gradient in each_image().items()}
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"Expected `{call.name or type(call.module).__name__}`, which has no rule of its own, to run again for "
            f"each image, but `torch.func` raised {in_words(error)} Leave its parameters out with `parameters=`."
        ) from error


def _image(tensors: list[Tensor], axes: list[int | None], index: int) -> list[Tensor]:
    pairs = zip(tensors, axes, strict=True)
    return [tensor if axis is None else tensor.select(axis, index) for tensor, axis in pairs]


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
