"""`PerSampleGradients`: what each image asks of the weights, from one forward and one backward pass over a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from xai_callbacks.access.trace import Edge
from xai_callbacks.errors import AuditError, ConfigurationError, in_words, is_out_of_memory, require_instance, texts_of
from xai_callbacks.gradients.accumulator import Accumulator, GradientReading, Reduce
from xai_callbacks.gradients.assignment import HIDDEN, assign_calls, deepest, plain_parameters
from xai_callbacks.gradients.calls import Axes, Call, Key, find_axes, recording

Loss = Callable[[object, Tensor], Tensor]
"""From what the model returned and the images to one loss an image, `(N,)`."""

# Numbers of images in one pass on a CPU, six images of 3 x 224 x 224: the feature maps of more leave the caches.
_PASS = 2**20


class PerSampleGradients:
    """Measures the gradient of every image's own loss without a backward pass for each.

    Convolutions, linear layers, batch norm in eval mode, instance, group and layer norm have rules of their own: about
    one forward and backward pass together, or less; memory about the same. Any other module that holds parameters is
    run again for each image, with all that is in it, which takes several times as long; `GradientReading.slow` says so.
    Layers used several times, tied weights, in-place activations, parameters without dimensions and frozen ones are
    accounted for by walking the autograd graph: right or refused.

    Call inside `access.undisturbed`, or with the model in eval mode: no `.grad` is touched and no hook is left behind.

    Args:
        module: The model.
        call: What to call with the images; None for the module itself.
        parameters: Which parameters, as names or patterns such as `decoder.*.weight`; None for all that require grad.

    Raises a `ConfigurationError` if there is no such parameter, or none requires grad.
    """

    def __init__(
        self,
        module: nn.Module,
        call: Callable[[Tensor], object] | None = None,
        *,
        parameters: Sequence[str] | None = None,
    ) -> None:
        require_instance("module", module, nn.Module, "a module")
        if call is not None and not callable(call):
            raise ConfigurationError(f"Expected `call` to be a function of images, but got {call!r}.")
        self.module = module
        self.call = module if call is None else call
        self.parameters = _choose(module, ("*",) if parameters is None else texts_of("parameters", parameters))
        holders = {name.rpartition(".")[0] for name in self.parameters}
        self._watched = {".".join(each.split(".")[:depth]) for each in holders for depth in range(each.count(".") + 2)}
        self._axes: dict[torch.Size, dict[Key, Axes]] = {}  # by the shape of an image

    def __call__(self, images: Tensor, loss: Loss, *, reduce: Reduce | None = None) -> GradientReading:
        """Measure one batch.

        Args:
            images: Shape `(N, ...)`, as the model expects them, where the model is.
            loss: One loss an image, `(N,)`, of the outputs and the images; called once a pass.
            reduce: Called with a name and the gradients `(N, *parameter.shape)`, which are formed for it, instead of
                computing squared norms.

        Raises:
            ConfigurationError: The loss is not one an image, images are not independent, a parameter is used where its
                gradient cannot be told apart by image, autograd cannot differentiate the model, or memory is short.
            AuditError: A loss is NaN or inf.
        """
        images = images.detach().clone() if images.is_inference() else images.detach()
        try:
            if images.shape[1:] not in self._axes:
                self._axes = {images.shape[1:]: find_axes(self.module, self._run, images, self._watched)}
            accumulator = Accumulator(self.parameters, self._axes[images.shape[1:]], reduce)
            size = len(images) if images.device.type != "cpu" else max(1, _PASS // max(1, images[0].numel()))
            for start in range(0, len(images), size):
                self._pass(images[start : start + size], loss, accumulator, start)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"Expected the gradients of {len(images)} images of shape {tuple(images.shape[1:])} to fit into "
                "memory, but it ran out. Lower the `chunk_size` of the audit, or measure fewer `parameters`."
            ) from error
        return accumulator.reading()

    def _run(self, images: Tensor) -> object:
        """What the model returns; it gets a copy, since it may normalise in place."""
        return self.call(images.clone())

    def _pass(self, images: Tensor, loss: Loss, accumulator: Accumulator, first: int) -> None:
        calls: list[Call] = []
        try:
            with recording(self.module, self._watched, calls, accumulator.arrive), torch.enable_grad():
                losses = _checked(loss(self._run(images), images), len(images), first)
            assigned = assign_calls(self.module, self.parameters, calls, accumulator.axes, losses)
            if edges := accumulator.expect(len(images), calls, assigned):
                _differentiate(losses, edges)
            accumulator.finish()
        finally:
            for each in calls:
                each.forget()


def _choose(module: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    everything = plain_parameters(module)
    for pattern in patterns:
        if everything and not any(fnmatchcase(name, pattern) for name in everything):
            raise ConfigurationError(
                f"Expected `parameters` to match names of parameters, but {pattern!r} matches none of "
                f"{', '.join(everything)}."
            )
    chosen = {name: each for name, each in everything.items() if any(fnmatchcase(name, one) for one in patterns)}
    trainable = {name: parameter for name, parameter in chosen.items() if parameter.requires_grad}
    if not trainable:
        raise ConfigurationError(
            f"Expected trainable parameters, whose gradients are measured, but got none of the {len(chosen)} that "
            "require grad. Unfreeze some with `requires_grad_(True)`, or use a score of the last layer."
        )
    return trainable


def _checked(losses: object, count: int, first: int) -> Tensor:
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigurationError(
            f"Expected `loss` to give one loss an image, shape ({count},), but got {got}. Use reduction='none'."
        )
    if not losses.requires_grad:
        raise ConfigurationError(
            "Expected the losses to depend on trainable parameters, but they have no gradient: the model detaches them."
        )
    broken = (~losses.detach().isfinite()).nonzero()[:, 0].tolist()
    if broken:
        raise AuditError(
            f"Expected finite losses, but got NaN or inf for {len(broken)} of {count} images, first for image "
            f"{first + broken[0]}. The training has probably diverged; look at the loss and the learning rate."
        )
    return losses


def _differentiate(losses: Tensor, edges: list[Edge]) -> None:
    """Run the backward pass, in which gradients reach the accumulator."""
    try:
        # Only the deepest need be asked for: the way there leads past all others, whose gradients are not kept.
        torch.autograd.grad(losses.sum(), deepest(edges), allow_unused=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        advice = f"part of it runs {HIDDEN}"
        if "use_reentrant" not in str(error):
            advice = f"autograd raised {in_words(error)} Mend that, or choose parameters behind it with `parameters=`."
        raise ConfigurationError(f"Expected a model that autograd can look into, but {advice}") from error
