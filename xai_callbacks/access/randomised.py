"""`randomised_copy`: the same architecture that has learned nothing, to read a model's heatmaps beside."""

import math
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from xai_callbacks.access.guard import undisturbed
from xai_callbacks.access.subject import ModelSelector, Subject
from xai_callbacks.errors import ConfigurationError, in_words, require_integer, require_number
from xai_callbacks.randomness import seed_generators


def randomised_copy(
    module: nn.Module,
    images: Tensor,
    seed: int,
    *,
    share: float = 1.0,
    select: ModelSelector | None = None,
    chunk_size: int | None = None,
) -> nn.Module:
    """A deep copy of a model with random parameters: what its heatmaps look at without having learned anything.

    Parameters are drawn anew by the `reset_parameters` of their module. Those that no such method touches are shuffled
    element by element, which keeps their distribution; a parameter of one element stays. Tied parameters stay tied, and
    buffers are kept, but for the running statistics of batch normalisation, which are taken from one forward pass over
    `images` `(N, C, H, W)`, some 256 of training, or the probes: untrained weights need their own. They are averaged
    over chunks of `chunk_size`. For `select` see `Subject`. With a `share` below 1 only that share of the modules that
    have parameters is drawn anew, rounded up, beginning with the last: in the order in which they were made, which is
    mostly that in which they run. The others stay as they are, their statistics, too.

    The model is as `undisturbed` would leave it; so are the random streams. Equal seeds give equal copies on one kind
    of device. The copy is without wrappers, in eval mode, on the device of the model, and takes as much memory.
    Raises a `ConfigurationError` where the model cannot be copied, two images at least are missing, or `share` is not
    in (0, 1].
    """
    require_integer("seed", seed, minimum=0)
    require_number("share", share, 0, 1, ends="(]")
    if chunk_size is not None:
        require_integer("chunk_size", chunk_size, minimum=2, hint="A single image has no variance.")
    root = Subject(module).root
    with undisturbed(root):  # its submodules are in eval mode, and so are their copies
        copy = copied(root)
        seed_generators(seed)
        with torch.no_grad():
            parts = _last_parts(copy, share)
            for part in parts:
                _randomise(part)
            _normalise(Subject(copy, select=select), parts, images, chunk_size)
    return copy


def copied(root: nn.Module) -> nn.Module:
    """A deep copy of a model; raises a `ConfigurationError` where it refuses."""
    for name, parameter in root.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigurationError(
                f"Expected `module` to have all its parameters, but got {name!r} without a shape. Run the model on a "
                "batch first."
            )
    # Results of a forward pass kept as attributes, such as a normed weight, have a graph and refuse to be copied.
    kept = [value for each in root.modules() for value in vars(each).values() if isinstance(value, Tensor)]
    memo: dict[int, object] = {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    try:
        return deepcopy(root, memo)
    except Exception as error:  # whatever a user's attributes make of it
        raise ConfigurationError(
            f"Expected `module` to be one that copy.deepcopy can copy, but got {type(root).__name__}, where it raised "
            f"{in_words(error)} Keep what cannot be copied out of the model's attributes, or go without "
            "a model-randomised reference."
        ) from error


def _last_parts(module: nn.Module, share: float) -> list[nn.Module]:
    """The last modules, parts before wholes, up to a share of those that have parameters of their own."""
    # Parts first, as in construction: a whole may draw the parameters of its parts in its own way.
    parts = list(reversed(list(module.modules())))
    owners = [place for place, part in enumerate(parts) if next(part.parameters(recurse=False), None) is not None]
    count = math.ceil(share * len(owners))
    return parts[: owners[count]] if count < len(owners) else parts


def _randomise(module: nn.Module) -> None:
    before = [(parameter, parameter.clone()) for parameter in module.parameters(recurse=False)]
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        with suppress(Exception):  # a method that needs arguments or does not work; its parameters are shuffled
            reset()
    for parameter, old in before:
        if torch.equal(parameter, old):
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view(parameter.shape))


def _normalise(subject: Subject, parts: Sequence[nn.Module], images: Tensor, chunk_size: int | None) -> None:
    """Set the running statistics of batch normalisation among some parts to those of images."""
    layers = [each for each in parts if isinstance(each, _BatchNorm) and each.track_running_stats]
    if not layers:
        return
    if images.ndim != 4 or len(images) < 2:
        raise ConfigurationError(
            f"Expected `images` to be two or more (N, C, H, W), but got shape {tuple(images.shape)}. The statistics of "
            "batch normalisation are taken from them."
        )
    # At least two images a chunk, and chunks as equal as can be: each counts the same.
    chunks = min(-(-len(images) // (chunk_size or len(images))), len(images) // 2)
    for layer in layers:
        if isinstance(layer, nn.SyncBatchNorm):
            # In training mode it would wait for processes that look at nothing. In eval mode there is no difference.
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
            layer._check_input_dim = lambda _: None  # type: ignore[method-assign, assignment]  # takes images of any dimension
        layer.reset_running_stats()
        layer.momentum, layer.training = None, True  # the mean over all chunks
    for chunk in images.tensor_split(chunks):
        subject.run(subject.images(chunk))
    for layer in layers:
        layer.training = False
