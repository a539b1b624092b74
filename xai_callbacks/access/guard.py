"""`undisturbed`: look at a model in the middle of its training and leave no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.utils.checkpoint
from torch import nn

from xai_callbacks.access.state import kept_state
from xai_callbacks.randomness import isolated_rng

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module | Callable[..., object]) -> Iterator[None]:
    """Evaluate `model` inside, with gradients available, and find everything outside as it was.

    Inside: every module in eval mode, autograd recording (also under a surrounding `no_grad` or `inference_mode`),
    autocast off, compiled modules run eagerly so that hooks fire, transformers run layer by layer instead of fused,
    and reentrant checkpoints keep what they hold, since they allow no other way to gradients than `.backward()`.

    Restored on leaving, also by an exception: the random streams of Python, NumPy, torch and every initialised
    accelerator, the grad and inference mode, and whatever hangs on the model, bit by bit, as the same objects in the
    same places: flags, buffers, `.grad`, `requires_grad`, counters, contents, random generators, wherever attributes
    lead to through modules (registered or not), containers, arrays, tensors, objects, closures and defaults of
    functions, partials, bound methods, and the classes of all these. Where an iterator hangs, a copy hangs inside.

    Of what is merely around the model, only random generators and modules are restored: what the model's hooks and the
    closures of its methods lead to, and generators that are globals of a file in which a class or function of the model
    is written. Other records there stay, such as a list in which a hook counts calls; so do hooks registered inside.

    Refused: to advance a Python generator or an iterator of a data loader, which raises where it happens and advances
    nothing; to write a parameter in place, which is noticed on leaving by its sum, since parameters are not copied. So
    call `torch.autograd.grad` and never `.backward()`.

    Out of reach: other globals; what `functools.lru_cache` keeps; state that objects written in C keep to themselves;
    iterators in sets; and what has a life outside the model and is not entered: trainers, callbacks, loggers, data
    modules, datasets, data loaders, optimizers, files, memory-mapped arrays, locks, threads, processes, and what is
    only weakly referred to.

    Cost: every parameter is read twice, less than a forward pass of one image; about 10 microseconds for each object.

    Args:
        model: Any module, its parameters may be frozen; or a function or object that is called with images.

    Raises:
        ConfigurationError: Something was advanced or changed that cannot be put back, or its state cannot be read. The
            message names the attribute.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(isolated_rng())
        stack.enter_context(_layer_by_layer())
        state = stack.enter_context(kept_state(model))
        # A float32 island: small gradients underflow in half precision.
        for device in sorted({"cpu", *(tensor.device.type for _, tensor in state.parameters)} - {"meta"}):
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for module in state.modules:
            # Not `model.eval()`: users override `train()` to pin parts of a model, and may do more there than set a
            # flag. The state that is kept has the flags of before. A frozen TorchScript module has none.
            if getattr(module, "training", False):
                module.training = False
        yield


class _Direct:
    """Stands for `CheckpointFunction`: calls the function as if there were no checkpoint."""

    @staticmethod
    def apply(function: Callable[..., object], _preserve: bool, *args: object) -> object:
        return function(*args)


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Have every layer called by itself, on one graph."""
    checkpoint, fused = torch.utils.checkpoint.CheckpointFunction, torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # A compiled region is one autograd node: activations captured inside it are not part of the graph.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # Fused, without gradients, a transformer never calls its parts: two passes would not see the same operations.
        torch.backends.mha.set_fastpath_enabled(False)
        torch.utils.checkpoint.CheckpointFunction = _Direct  # type: ignore[misc, assignment]  # the same `apply`
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            torch.utils.checkpoint.CheckpointFunction = checkpoint  # type: ignore[misc]
