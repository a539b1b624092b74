"""`Accumulator`: takes per-sample gradients as they arrive in backward passes and keeps only what was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from xai_callbacks.access.trace import Edge
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients.calls import Axes, Call, Key, precise
from xai_callbacks.gradients.rules import LayerRule, Rule, gradients_by_image, rule_of

Reduce = Callable[[str, Tensor], Tensor]
"""From the name of a parameter and its gradients `(N, *shape)` to what is kept of them, `(N, ...)`."""


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


@dataclass(eq=False)
class Accumulator:
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
        """All that was asked for, of all passes."""
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
