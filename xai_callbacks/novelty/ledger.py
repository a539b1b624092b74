"""`Ledger`: takes gradients as they arrive in a backward pass and keeps only what was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_map  # private; torch.func itself speaks in these trees

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.layer_calls import LayerCall, call_type
from xai_callbacks.novelty.module_calls import AttentionCall, FunctionalCall
from xai_callbacks.novelty.usage import Axes, Use

__all__ = ["GradientReading", "Ledger", "Reduce"]

Reduce = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class GradientReading:
    """What one batch said. N images; parameters by name.

    Attributes:
        outputs: What the model returned, detached. Of several passes, tensors are joined along their first axis, and
            what is no tensor with an axis of images is that of the first.
        losses: Loss of every image, `(N,)`.
        squared_norms: Squared Euclidean norm of the gradient of every image's loss, `(N,)` float64 a parameter.
        inner_products: Inner product of that gradient with the reference, `(N,)` float64 a parameter that has one.
        reference_norms: Norm of the reference, a parameter.
        reduced: What `reduce` made of the gradients.
        unused: Parameters that the losses do not depend on; their gradient is zero and they are in none of the above.
        slow: Modules that had to be run again under `torch.func`, and why; a native rule would be faster.
    """

    outputs: object
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


def joined(readings: Sequence[GradientReading]) -> GradientReading:
    """One reading of the images of several, in order."""
    counts = [len(reading.losses) for reading in readings]

    def column(kind: str, name: str) -> Tensor:
        found: list[dict[str, Tensor]] = [getattr(reading, kind) for reading in readings]
        like = next(values[name] for values in found if name in values)
        # Where the losses of one pass do not depend on a parameter, its gradient is zero there.
        parts = [
            values.get(name, like.new_zeros(count, *like.shape[1:]))
            for values, count in zip(found, counts, strict=True)
        ]
        return torch.cat(parts)

    def columns(kind: str) -> dict[str, Tensor]:
        return {name: column(kind, name) for reading in readings for name in getattr(reading, kind)}

    def outputs(*leaves: object) -> object:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with_images = len(tensors) == len(counts) and [leaf.shape[:1] for leaf in tensors] == [(n,) for n in counts]
        return torch.cat(tensors) if with_images else leaves[0]

    return GradientReading(
        outputs=tree_map(outputs, *(reading.outputs for reading in readings)),
        losses=torch.cat([reading.losses for reading in readings]),
        squared_norms=columns("squared_norms"),
        inner_products=columns("inner_products"),
        reference_norms=readings[0].reference_norms,
        reduced=columns("reduced"),
        unused=tuple(name for name in readings[0].unused if all(name in reading.unused for reading in readings)),
        slow={name: why for reading in readings for name, why in reading.slow.items()},
    )


class Ledger:
    """Squared norms, inner products and reductions of per-sample gradients, by parameter.

    Args:
        norms: Whether to keep squared norms.
        reference: Gradients to form inner products with.
        reduce: What to make of the gradients themselves.
    """

    def __init__(self, norms: bool, reference: Mapping[str, Tensor], reduce: Reduce | None) -> None:
        self._norms = norms
        self._reference = reference
        self._reduce = reduce
        self._readings: dict[str, dict[str, Tensor]] = {"norms": {}, "inner": {}, "reduced": {}}
        self._assigned: dict[str, list[Use]] = {}
        self._axes: Mapping[tuple[str, int], Axes] = {}
        self._wanted: dict[Use, list[str]] = {}
        self._layers: set[Use] = set()
        self._sums: dict[str, Tensor] = {}
        self._slow: dict[str, str] = {}

    def open(
        self, uses: list[Use], assigned: dict[str, list[Use]], axes: Mapping[tuple[str, int], Axes]
    ) -> list[tuple[Node, int]]:
        """Learn to which of the calls to listen; returns where in the graph their gradients arrive."""
        self._assigned, self._axes = assigned, axes
        wanted = defaultdict(list)
        for name, users in assigned.items():
            for use in users:
                wanted[use].append(name)
        self._wanted = dict(wanted)
        self._layers = {use for use in wanted if self._is_layer(use)}
        for use in uses:
            if use not in wanted:
                use.release()
        return [edge for use in self._wanted for edge in use.sources if edge is not None]

    def arrived(self, use: Use, index: int, gradient: Tensor) -> None:
        """One gradient is complete; a plain layer is dealt with at once, so that nothing of it need be kept."""
        if use not in self._wanted:
            return
        if use in self._layers:
            self._settle_layer(use, gradient)
            use.release()
        else:
            use.gradients[index] = gradient

    def reading(self, outputs: object, losses: Tensor) -> GradientReading:
        """Deal with what is left, when the backward pass is over."""
        for use in self._wanted:
            if any(gradient is not None for gradient in use.gradients):
                self._settle_module(use)
                use.release()
        for name, total in self._sums.items():
            self._take_gradients(name, total)
        norms, inner, reduced = self._readings.values()
        return GradientReading(
            outputs=tree_map(_detached, outputs),
            losses=losses.detach(),
            squared_norms={name: norms[name].double() for name in self._assigned if name in norms},
            inner_products={name: inner[name].double() for name in self._assigned if name in inner},
            reference_norms={name: float(tensor.double().norm()) for name, tensor in self._reference.items()},
            reduced={name: reduced[name] for name in self._assigned if name in reduced},
            unused=tuple(name for name, uses in self._assigned.items() if not uses),
            slow=dict(self._slow),
        )

    def _is_layer(self, use: Use) -> bool:
        """Whether a call can be settled by the rules of a single layer."""
        single = len(use.tensors()) == 1 and len(use.sources) == 1
        local = [_local(name, use) for name in self._wanted[use]]
        return single and call_type(use.module) is not None and all(name in ("weight", "bias") for name in local)

    def _settle_layer(self, use: Use, gradient: Tensor) -> None:
        axes = self._axes[use.name, use.turn]
        given_axis, gradient_axis = axes.given[0], axes.came_out[0]
        kind = call_type(use.module)
        if kind is None or given_axis is None or gradient_axis is None:
            raise ConfigurationError(
                f"Expected images to go into `{use.name}` and to come out of it, but they do not. Leave its parameters "
                "out with `parameters=`."
            )
        self._refuse_overwritten(use)
        given = _precise(use.tensors()[0].detach())
        call = kind(use.module, given.movedim(given_axis, 0), _precise(gradient.detach()).movedim(gradient_axis, 0))
        for name in self._wanted[use]:
            self._take_call(name, [(call, _local(name, use), slice(None))])

    def _settle_module(self, use: Use) -> None:
        self._refuse_overwritten(use)
        axes = self._axes[use.name, use.turn]
        gradients = tuple(None if gradient is None else _precise(gradient.detach()) for gradient in use.gradients)
        local = {_local(name, use): name for name in self._wanted[use]}
        if AttentionCall.knows(use.module) and all(gradient is None for gradient in gradients[1:]):
            attention = AttentionCall(use.module, use.given, axes.given, gradients, axes.came_out)
            for own, name in local.items():
                self._take_call(name, attention.layers(own))
            return
        self._slow[use.name] = f"no rule for {type(use.module).__name__}"
        functional = FunctionalCall(use.module, use.given, axes.given, gradients, axes.came_out)
        for own, values in functional.gradients(tuple(local)).items():
            self._add(local[own], values)

    def _refuse_overwritten(self, use: Use) -> None:
        if tuple(tensor._version for tensor in use.tensors()) != use.versions:
            raise ConfigurationError(
                f"Expected what goes into `{use.name or type(use.module).__name__}` to stay as it is until the "
                "backward pass, but it is overwritten in place afterwards. Replace the in-place operation, such as "
                "`x += y`, by `x = x + y`."
            )

    def _take_call(self, name: str, layers: list[tuple[LayerCall, str, slice]]) -> None:
        """Read what is asked for off the layers that make up a parameter, each of which has some of its rows."""
        if len(self._assigned[name]) > 1 or self._reduce is not None:
            gradients = [call.gradients(own) for call, own, _ in layers]
            self._add(name, gradients[0] if len(gradients) == 1 else _stacked(gradients))
            return
        if self._norms:
            self._readings["norms"][name] = sum(call.squared_norms(own) for call, own, _ in layers)  # type: ignore[assignment]
        if name in self._reference:
            reference = self._reference[name].to(layers[0][0].gradient)
            self._readings["inner"][name] = sum(  # type: ignore[assignment]
                call.inner_products(own, reference[rows]) for call, own, rows in layers
            )

    def _add(self, name: str, gradients: Tensor) -> None:
        """Gradients of one use, which may not be the last."""
        if len(self._assigned[name]) == 1:
            self._take_gradients(name, gradients)
        else:
            self._sums[name] = gradients if name not in self._sums else self._sums[name] + gradients

    def _take_gradients(self, name: str, gradients: Tensor) -> None:
        if self._norms:
            self._readings["norms"][name] = torch.linalg.vector_norm(gradients.flatten(1), dim=1).square()
        if name in self._reference:
            self._readings["inner"][name] = gradients.flatten(1) @ self._reference[name].to(gradients).flatten()
        if self._reduce is not None:
            self._readings["reduced"][name] = self._reduce(name, gradients)


def _local(name: str, use: Use) -> str:
    """The name of a parameter as seen from the module of the call."""
    return name.removeprefix(f"{use.name}.") if use.name else name


def _detached(leaf: object) -> object:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _precise(tensor: Tensor) -> Tensor:
    """Float32 at least: squares of half-precision gradients underflow. Indices stay what they are."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def _stacked(parts: list[Tensor]) -> Tensor:
    """Rows of one parameter, `(N, rows, ...)` each, as `(N, all rows, ...)`."""
    return torch.cat(parts, dim=1)
