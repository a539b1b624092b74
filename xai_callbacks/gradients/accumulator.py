"""`Accumulator`: takes per-sample gradients as they arrive in backward passes and keeps only what was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients.attention import AttentionRule
from xai_callbacks.gradients.axes import Axes
from xai_callbacks.gradients.calls import Call, Edge, Key, precise
from xai_callbacks.gradients.functional import functional_gradients
from xai_callbacks.gradients.reading import GradientReading, Reduce
from xai_callbacks.gradients.rules import Formed, Rule, rule_of

__all__ = ["Accumulator"]

_Parts = dict[str, list[Tensor]]


class Accumulator:
    """Squared norms, inner products and reductions of the gradients of a batch, by parameter.

    The images come in one pass or several: for each, `expect` before its backward pass, and `finish` after it.

    Args:
        parameters: Whose gradients to take.
        axes: Of the images, by call.
        norms: Whether to keep squared norms.
        reference: Gradients to form inner products with.
        reduce: What to make of the gradients themselves.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        axes: Mapping[Key, Axes],
        *,
        norms: bool,
        reference: Mapping[str, Tensor],
        reduce: Reduce | None,
    ) -> None:
        self._parameters = parameters
        self._axes = axes
        self._with_norms = norms
        self._reference = reference
        self._reduce = reduce
        self._losses: list[Tensor] = []
        self._norms: _Parts = defaultdict(list)
        self._inner: _Parts = defaultdict(list)
        self._reduced: _Parts = defaultdict(list)
        self._used: set[str] = set()
        self._slow: dict[str, str] = {}
        # Of one pass.
        self._assigned: Mapping[str, list[Call]] = {}
        self._wanted: dict[Call, dict[str, str]] = {}
        self._layers: set[Call] = set()
        self._sums: dict[str, Tensor] = {}
        self._missing: set[str] = set()

    def expect(self, losses: Tensor, calls: Sequence[Call], assigned: Mapping[str, list[Call]]) -> list[Edge]:
        """Learn which of the calls use which parameters; returns where in the graph their gradients arrive."""
        wanted: dict[Call, dict[str, str]] = defaultdict(dict)
        for name, users in assigned.items():
            for call in users:
                wanted[call][call.local_name(self._parameters[name])] = name
        for call in calls:
            if call not in wanted:
                call.release()
        self._losses.append(losses.detach())
        self._used |= {name for name, users in assigned.items() if users}
        self._assigned, self._wanted, self._sums, self._missing = assigned, dict(wanted), {}, set(self._parameters)
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
            self._take(name, Formed({name: total}), name)
        for name in sorted(self._missing):
            shape = (len(self._losses[-1]), *self._parameters[name].shape)
            zeros = precise(self._parameters[name].detach()).new_zeros(()).expand(shape)
            self._take(name, Formed({name: zeros}), name)

    def reading(self) -> GradientReading:
        """What was asked for, of all passes."""

        def joined(parts: _Parts) -> dict[str, Tensor]:
            return {name: torch.cat(parts[name]) for name in self._parameters if name in parts}

        return GradientReading(
            losses=torch.cat(self._losses),
            squared_norms={name: values.double() for name, values in joined(self._norms).items()},
            inner_products={name: values.double() for name, values in joined(self._inner).items()},
            reference_norms={name: float(each.double().norm()) for name, each in self._reference.items()},
            reduced=joined(self._reduced),
            unused=tuple(name for name in self._parameters if name not in self._used),
            slow=self._slow,
        )

    def _is_layer(self, call: Call) -> bool:
        """Whether a call can be settled by the rule of a single layer."""
        axes = self._axes[call.key]
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
        axes, gradients = self._axes[call.key], call.gradients
        if call in self._layers:
            kind, given, gradient = rule_of(call.module), precise(call.tensors[0].detach()), gradients[0]
            (given_axis,), (axis,) = axes.inputs, axes.outputs
            assert kind and gradient is not None and given_axis is not None and axis is not None  # noqa: S101, PT018
            return kind(call.module, given.movedim(given_axis, 0), gradient.movedim(axis, 0))
        first, *others = gradients
        if AttentionRule.knows(call) and first is not None and all(each is None for each in others):
            return AttentionRule(call, first)
        self._slow[call.name] = f"no rule for {type(call.module).__name__}"
        return Formed(functional_gradients(call, list(self._wanted[call]), axes, gradients))

    def _take(self, name: str, rule: Rule, local: str) -> None:
        """Keep what is asked for of the whole gradient of a parameter."""
        self._missing.discard(name)
        if self._reduce is not None:
            rule = Formed({local: torch.cat(list(rule.blocks(local)))})
            self._reduced[name].append(self._reduce(name, rule.gradients(local)))
        if self._with_norms:
            self._norms[name].append(rule.squared_norms(local))
        if name in self._reference:
            self._inner[name].append(rule.inner_products(local, self._reference[name]))
