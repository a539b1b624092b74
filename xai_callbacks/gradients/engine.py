"""`PerSampleGradients`: what each image asks of the weights, from one forward and one backward pass over a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from xai_callbacks.access.trace import Edge
from xai_callbacks.errors import AuditError, ConfigurationError, in_words, is_out_of_memory, require_instance, texts_of
from xai_callbacks.gradients.assignment import HIDDEN, assign_calls, deepest, plain_parameters
from xai_callbacks.gradients.calls import Axes, Call, Key, find_axes, precise, recording
from xai_callbacks.gradients.rules import LayerRule, Rule, gradients_by_image, rule_of

Loss = Callable[[object, Tensor], Tensor]
"""From what the model returned and the images to one loss an image, `(N,)`."""

Reduce = Callable[[str, Tensor], Tensor]
"""From the name of a parameter and its gradients `(N, *shape)` to what is kept of them, `(N, ...)`."""

# Numbers of images in one pass on a CPU, six images of 3 x 224 x 224: the feature maps of more leave the caches.
_PASS = 2**20


@dataclass(frozen=True, eq=False)
class GradientReading:
    """Per-sample gradients of N images; by name of the parameter.

    Attributes:
        squared_norms: Squared Euclidean norm of the gradient of every image's loss, `(N,)` float64; none with `reduce`.
        reduced: What `reduce` made of the gradients.
        unused: Parameters that the losses do not depend on; their gradient is zero.
        slow: Modules that had to be run again for each image, and why.
    """

    squared_norms: dict[str, Tensor]
    reduced: dict[str, Tensor]
    unused: tuple[str, ...]
    slow: dict[str, str]


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

        Raises a `ConfigurationError` if the loss is not one an image, images are not independent, a parameter is used
        where its gradient cannot be told apart by image, autograd cannot differentiate the model, or memory is short,
        and an `AuditError` if a loss is NaN or inf.
        """
        images = images.detach().clone() if images.is_inference() else images.detach()
        try:
            if images.shape[1:] not in self._axes:
                self._axes = {images.shape[1:]: find_axes(self.module, self._run, images, self._watched)}
            accumulator = _Accumulator(self.parameters, self._axes[images.shape[1:]], reduce)
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

    def _pass(self, images: Tensor, loss: Loss, accumulator: _Accumulator, first: int) -> None:
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


@dataclass(eq=False)
class _Accumulator:
    """Squared norms, or reductions, of the gradients of a batch, by parameter.

    The images come in one pass or several: for each, `expect` before its backward pass, and `finish` after it.
    """

    parameters: Mapping[str, Tensor]
    axes: Mapping[Key, Axes]
    reduce: Reduce | None
    _kept: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _used: set[str] = field(default_factory=set)
    _slow: dict[str, str] = field(default_factory=dict)

    def expect(self, count: int, calls: Sequence[Call], assigned: Mapping[str, list[Call]]) -> list[Edge]:
        """Learn which of the calls use which parameters; returns where in the graph their gradients arrive."""
        wanted: dict[Call, dict[str, str]] = defaultdict(dict)  # names of parameters by those in the module
        for name, users in assigned.items():
            for call in users:
                named = call.module.named_parameters(remove_duplicate=False)
                wanted[call][next(local for local, each in named if each is self.parameters[name])] = name
        for call in calls:
            if call not in wanted:
                call.release()
        self._used |= {name for name, users in assigned.items() if users}
        self._count, self._assigned, self._wanted = count, assigned, dict(wanted)  # of this pass
        self._sums: dict[str, Tensor] = {}
        self._missing = set(self.parameters)
        return [edge for call in wanted for edge in call.outputs if edge is not None]

    def arrive(self, call: Call, index: int, gradient: Tensor) -> None:
        """Take one complete gradient; a plain layer is dealt with at once, so that nothing of it need be kept."""
        if call not in self._wanted:
            return
        call.gradients[index] = precise(gradient.detach())
        if self._layer_rule(call):
            self._settle(call)

    def finish(self) -> None:
        """Deal with what is left, when the backward pass is over; what no gradient reaches has one of zero."""
        for call in self._wanted:
            if any(gradient is not None for gradient in call.gradients):
                self._settle(call)
        for name, total in self._sums.items():
            self._take(name, Rule({name: total}), name)
        for name in sorted(self._missing):
            parameter = self.parameters[name]
            zeros = precise(parameter.detach()).new_zeros(()).expand(self._count, *parameter.shape)
            self._take(name, Rule({name: zeros}), name)

    def reading(self) -> GradientReading:
        found = {name: torch.cat(self._kept[name]) for name in self.parameters}
        norms, reduced = (found, {}) if self.reduce is None else ({}, found)
        return GradientReading(norms, reduced, tuple(n for n in self.parameters if n not in self._used), self._slow)

    def _layer_rule(self, call: Call) -> type[LayerRule] | None:
        """The rule of a call of a single layer, with one tensor going in and one coming out, each with an axis."""
        inputs, outputs = self.axes[call.key]
        single = len(inputs) == len(outputs) == 1 and None not in inputs + outputs
        return rule_of(call.module) if single and self._wanted[call].keys() <= {"weight", "bias"} else None

    def _settle(self, call: Call) -> None:
        """Read what is asked for off one call whose gradients have all arrived."""
        if [tensor._version for tensor in call.tensors] != call.versions:
            raise ConfigurationError(
                f"Expected what goes into `{call.name or type(call.module).__name__}` to stay as it is until the "
                "backward pass, but it is overwritten in place. Replace what does so, such as `x += y`, by `x = x + y`."
            )
        rule = self._rule(call)
        for local, name in self._wanted[call].items():
            if len(self._assigned[name]) == 1:
                self._take(name, rule, local)
            else:
                gradients = torch.cat(list(rule.blocks(local)))
                self._sums[name] = gradients if name not in self._sums else self._sums[name] + gradients
        call.release()
        call.gradients = []

    def _rule(self, call: Call) -> Rule:
        axes = self.axes[call.key]
        if kind := self._layer_rule(call):
            places = zip((call.tensors[0].detach(), *call.gradients), axes.inputs + axes.outputs, strict=True)
            return kind(call.module, *(precise(cast("Tensor", each)).movedim(cast("int", n), 0) for each, n in places))
        self._slow[call.name] = f"no rule for {type(call.module).__name__}"
        return Rule(gradients_by_image(call, list(self._wanted[call]), axes))

    def _take(self, name: str, rule: Rule, local: str) -> None:
        """Keep what is asked for of the whole gradient of a parameter."""
        self._missing.discard(name)
        if self.reduce is None:
            kept = rule.squared_norms(local).double()
        else:
            kept = self.reduce(name, torch.cat(list(rule.blocks(local))))
        self._kept[name].append(kept)


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
