"""`Accumulator`: takes per-sample gradients as they arrive in backward passes and keeps only what was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients.calls import Axes, Call, Edge, Key, precise
from xai_callbacks.gradients.functional import functional_gradients
from xai_callbacks.gradients.rules import AttentionRule, Rule, rule_of

__all__ = ["Accumulator", "GradientReading", "Reduce"]

Reduce = Callable[[str, Tensor], Tensor]
"""From the name of a parameter and its gradients `(N, *shape)` to what is kept of them, `(N, ...)`."""


@dataclass(frozen=True, eq=False)
class GradientReading:
    """Per-sample gradients of N images; by name of the parameter.

    Attributes:
        losses: Loss of every image, `(N,)`.
        squared_norms: Squared Euclidean norm of the gradient of every image's loss, `(N,)` float64 a parameter.
        inner_products: Inner product of that gradient with the reference, `(N,)` float64 a parameter that has one.
        reference_norms: Norm of the reference, a parameter.
        reduced: Reductions of the gradients by `reduce`.
        unused: Parameters that the losses do not depend on; their gradient is zero.
        slow: Modules that had to be run again under `torch.func`, and why; a rule of their own would be faster.
    """

    losses: Tensor
    squared_norms: dict[str, Tensor]
    inner_products: dict[str, Tensor]
    reference_norms: dict[str, float]
    reduced: dict[str, Tensor]
    unused: tuple[str, ...]
    slow: dict[str, str]

    def cosines(self) -> dict[str, Tensor]:
        """Cosine of every image's gradient and the reference, in [-1, 1], `(N,)` a parameter; NaN where either is 0."""
        return {
            name: inner / (self.squared_norms[name].sqrt() * self.reference_norms[name])
            for name, inner in self.inner_products.items()
        }


@dataclass(eq=False)
class Accumulator:
    """Squared norms, inner products with `reference`, and reductions of the gradients of a batch, by parameter.

    The images come in one pass or several: for each, `expect` before its backward pass, and `finish` after it.
    """

    parameters: Mapping[str, Tensor]
    axes: Mapping[Key, Axes]
    norms: bool
    reference: Mapping[str, Tensor]
    reduce: Reduce | None
    _losses: list[Tensor] = field(default_factory=list)
    _kept: dict[tuple[str, str], list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # by kind and name
    _used: set[str] = field(default_factory=set)
    _slow: dict[str, str] = field(default_factory=dict)
    _wanted: dict[Call, dict[str, str]] = field(default_factory=dict)

    def expect(self, losses: Tensor, calls: Sequence[Call], assigned: Mapping[str, list[Call]]) -> list[Edge]:
        """Learn which of the calls use which parameters; returns where in the graph their gradients arrive."""
        wanted: dict[Call, dict[str, str]] = defaultdict(dict)
        for name, users in assigned.items():
            for call in users:
                named = call.module.named_parameters(remove_duplicate=False)
                wanted[call][next(local for local, each in named if each is self.parameters[name])] = name
        for call in calls:
            if call not in wanted:
                call.release()
        self._losses.append(losses.detach())
        self._used |= {name for name, users in assigned.items() if users}
        # Of this pass.
        self._assigned, self._wanted = assigned, dict(wanted)
        self._sums: dict[str, Tensor] = {}
        self._missing = set(self.parameters)
        self._layers = {call for call in wanted if self._is_layer(call)}
        return [edge for call in wanted for edge in call.outputs if edge is not None]

    def arrive(self, call: Call, index: int, gradient: Tensor) -> None:
        """Take one complete gradient; a plain layer is dealt with at once, so that nothing of it need be kept."""
        if call not in self._wanted:
            return
        call.gradients[index] = precise(gradient.detach())
        if call in self._layers:
            self._settle(call)

    def finish(self) -> None:
        """Deal with what is left, when the backward pass is over; what no gradient reaches has one of zero."""
        for call in self._wanted:
            if any(gradient is not None for gradient in call.gradients):
                self._settle(call)
        for name, total in self._sums.items():
            self._take(name, Rule({name: total}), name)
        for name in sorted(self._missing):
            shape = (len(self._losses[-1]), *self.parameters[name].shape)
            zeros = precise(self.parameters[name].detach()).new_zeros(()).expand(shape)
            self._take(name, Rule({name: zeros}), name)

    def reading(self) -> GradientReading:
        """All that was asked for, of all passes."""
        kept = {
            what: {name: torch.cat(self._kept[what, name]) for name in self.parameters if (what, name) in self._kept}
            for what in ("norms", "inner", "reduced")
        }
        return GradientReading(
            losses=torch.cat(self._losses),
            squared_norms={name: values.double() for name, values in kept["norms"].items()},
            inner_products={name: values.double() for name, values in kept["inner"].items()},
            reference_norms={name: float(each.double().norm()) for name, each in self.reference.items()},
            reduced=kept["reduced"],
            unused=tuple(name for name in self.parameters if name not in self._used),
            slow=self._slow,
        )

    def _is_layer(self, call: Call) -> bool:
        """Whether a call can be settled by the rule of a single layer."""
        axes = self.axes[call.key]
        single = len(axes.inputs) == len(axes.outputs) == 1 and None not in axes.inputs + axes.outputs
        return single and rule_of(call.module) is not None and self._wanted[call].keys() <= {"weight", "bias"}

    def _settle(self, call: Call) -> None:
        """Read what is asked for off one call whose gradients have all arrived."""
        if call.overwritten():
            raise ConfigurationError(
                f"Expected what goes into `{call.name or type(call.module).__name__}` to stay as it is until the "
                "backward pass, but it is overwritten in place afterwards. Replace the in-place operation, such as "
                "`x += y`, by `x = x + y`."
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
        axes, (gradient, *others) = self.axes[call.key], call.gradients
        if call in self._layers:
            kind, (given_axis,), (axis,) = rule_of(call.module), axes.inputs, axes.outputs
            assert kind and gradient is not None and given_axis is not None and axis is not None  # noqa: S101, PT018
            given = precise(call.tensors[0].detach())
            return kind(call.module, given.movedim(given_axis, 0), gradient.movedim(axis, 0))
        if AttentionRule.knows(call) and gradient is not None and all(each is None for each in others):
            return AttentionRule(call, gradient)
        self._slow[call.name] = f"no rule for {type(call.module).__name__}"
        return Rule(functional_gradients(call, list(self._wanted[call]), axes))

    def _take(self, name: str, rule: Rule, local: str) -> None:
        """Keep what is asked for of the whole gradient of a parameter."""
        self._missing.discard(name)
        if self.reduce is not None:
            rule = Rule({local: torch.cat(list(rule.blocks(local)))})
            self._kept["reduced", name].append(self.reduce(name, rule.gradients(local)))
        if self.norms:
            self._kept["norms", name].append(rule.squared_norms(local))
        if name in self.reference:
            self._kept["inner", name].append(rule.inner_products(local, self.reference[name]))
