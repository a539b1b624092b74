"""DeepLIFT multipliers: how much of what changes in the outputs, from references to images, each input accounts for.

A multiplier m of an input `a` satisfies `sum m (a - a') = what changes`, with `a'` the same input for the reference. They
chain as gradients do, so that one backward pass hands them down to the images. By what a function is:

| function | multipliers it hands on | source |
|---|---|---|
| linear | those of its gradient | |
| of each element alone | `m (y - y') / (a - a')`; the derivative where `a` is `a'` | Shrikumar et al., ICML 2017: rescale |
| a maximum, `c = max(y, y')` | `m (c - y')` where `a` is largest, `m (y - c)` where `a'` is, over `a - a'` | `shap` |
| any other | the mean gradient along the straight line from `a'` to `a` | Aumann and Shapley, 1974 |

The last is exact for products of two. Layer and group norms, quotients and softmaxes are taken apart into products and
functions of each element; what is left, such as attention that is one function of torch, takes 16 points of the line,
so that a backward pass runs it sixteen times.
"""  # noqa: E501 - a row of a table cannot be broken

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from xai_callbacks.errors import ConfigurationError

_POINTS = 16  # of the line, for what is no product; Gauss-Legendre quadrature
_MORE_POINTS, _FEW = 256, 2**15  # for a softmax of so few values, such as that of a head, which may change abruptly
_TINY = 1e-6  # a change of this share of the values is rounding

# Functions of the images that are linear, or say nothing that can be differentiated. What is missing here is only slow.
_LINEAR = frozenset({
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "add", "argmax", "argmin", "assert"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "bfloat16", "broadcast_to", "cat", "channel_shuffle", "chunk", "clone"),
    *("concat", "contiguous", "copy", "cpu", "cuda", "cumsum", "detach", "diagonal", "dim", "double", "dropout"),
    *("dropout1d", "dropout2d", "dropout3d", "eq", "expand", "expand_as", "flatten", "flip", "float", "fold", "gather"),
    *("ge", "get", "getitem", "gt", "half", "hstack", "iadd", "index_select", "interpolate", "is_complex"),
    *("is_contiguous", "is_floating_point", "isub", "le", "len", "lt", "masked_fill", "mean", "moveaxis", "movedim"),
    *("narrow", "ne", "neg", "new_empty", "new_full", "new_ones", "new_zeros", "numel", "ones_like", "pad", "permute"),
    *("pixel_shuffle", "pixel_unshuffle", "radd", "register_hook", "repeat", "repeat_interleave", "requires_grad"),
    *("reshape", "reshape_as", "retain_grad", "roll", "rsub", "select", "set", "set_grad_enabled", "setitem", "size"),
    *("split", "squeeze", "stack", "stride", "sub", "subtract", "sum", "swapaxes", "swapdims", "t", "tensor_split"),
    *("tile", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unfold", "unsafe_chunk", "unsafe_split"),
    *("unsqueeze", "upsample", "view", "view_as", "vstack", "where", "zeros_like"),
})  # fmt: skip
# Linear in each of their inputs alone.
_PRODUCTS = frozenset({
    *("addmm", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
    *("conv_transpose3d", "dot", "einsum", "imul", "inner", "linear", "matmul", "mm", "mul", "multiply", "mv", "outer"),
    *("rmatmul", "rmul", "tensordot", "vdot"),
})  # fmt: skip
_QUOTIENTS = frozenset({"div", "divide", "itruediv", "true_divide", "truediv"})
_ELEMENTWISE = frozenset({
    *("abs", "absolute", "arctan", "atan", "celu", "clamp", "clamp_max", "clamp_min", "clip", "cos", "elu", "erf"),
    *("exp", "expit", "expm1", "float_power", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "ipow"),
    *("leaky_relu", "log", "log10", "log1p", "log2", "log_sigmoid", "logit", "logsigmoid", "mish", "nan_to_num", "pow"),
    *("prelu", "rdiv", "reciprocal", "relu", "relu6", "rpow", "rrelu", "rsqrt", "rtruediv", "selu", "sigmoid", "silu"),
    *("sin", "softplus", "softshrink", "softsign", "sqrt", "square", "tan", "tanh", "tanhshrink", "threshold"),
})  # fmt: skip
_OF_BATCH = {"batch_norm": ("training", False), "instance_norm": ("use_input_stats", True)}
_MAXIMA = frozenset({"amax", "fmax", "max", "maximum"})  # and all that pool the maximum
_MINIMA = frozenset({"amin", "fmin", "min", "minimum"})


class Passes(TorchFunctionMode):
    """Two forward passes of a model, of images and of references, whose gradients are DeepLIFT multipliers.

    Run the images first, inside `of_images`, on a graph; then references inside `of_references`, as often as wanted:
    gradients of the graph are multipliers against the last ones. Functions are seen as `access.watching` sees them, and
    paired by number, so that the model must do the same for both. Memory: what goes into each function that is not
    linear is kept, of the images and of the references.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, _Call] = {}
        self._count, self._referring = 0, False
        self._moves: dict[Node, bool] = {}  # whether what a node made changes with the images

    @contextmanager
    def of_images(self) -> Iterator[None]:
        """Watch the model run on the images, which are no parameters."""
        self._calls, self._count, self._referring = {}, 0, False
        try:
            with self:
                yield
        finally:
            self._moves.clear()  # it holds the graph

    @contextmanager
    def of_references(self) -> Iterator[None]:
        """Watch the model run on references; a `ConfigurationError` says that it does something else with them."""
        expected, self._count, self._referring = self._count, 0, True
        with torch.no_grad(), self:
            yield
        if self._count != expected:
            raise _differs(f"{expected} functions that are not linear", str(self._count))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Operators of exported programs are named with their overload; `relu_` and `special_relu` mean `relu`.
        name = getattr(func, "__name__", "").partition(".")[0].strip("_").removeprefix("special_")
        if name in _LINEAR or (name in _OF_BATCH and not _by_own_statistics(name, args, kwargs)):
            return func(*args, **kwargs)
        if name in _IN_PARTS and (name not in _QUOTIENTS or _is_plain_quotient(func, args, kwargs)):
            with self:
                return _IN_PARTS[name](*args, **kwargs)
        number, self._count = self._count, self._count + 1
        if self._referring and number in self._calls:
            self._calls[number].refer(name, args, kwargs)
        if not self._referring and torch.is_grad_enabled():
            inputs = self._inputs(name, args, kwargs)
            if inputs:
                return self._followed(number, _Call(name, func, args, kwargs, [*inputs]), [*inputs.values()])
        return func(*args, **kwargs)

    def _inputs(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Tensor]:
        """What depends on the images, by place among the arguments, if a function is not linear in it."""
        leaves = enumerate(tree_flatten((args, kwargs))[0])
        # Images are copied before a model gets them, so that leaves of the graph are parameters.
        found = {place: each for place, each in leaves if _is_float(each) and self._depends(each.grad_fn)}
        linear = [*found] == [0] if name in _QUOTIENTS else len(found) == 1 and name in _PRODUCTS
        return {} if linear else found

    def _depends(self, start: Node | None) -> bool:
        """Whether a value depends on more than parameters, such as a power that is trained does not."""
        waiting = [] if start is None else [start]
        while waiting:
            node = waiting[-1]
            before = [each for each, _ in node.next_functions if each is not None]
            new = [] if node in self._moves else [each for each in before if each not in self._moves]
            if not new:
                leaf = getattr(node, "variable", None)
                own = leaf is not None and not isinstance(leaf, torch.nn.Parameter)
                self._moves.setdefault(waiting.pop(), own or any(self._moves[each] for each in before))
            waiting += new
        return start is not None and self._moves[start]

    def _followed(self, number: int, call: _Call, inputs: list[Tensor]) -> Any:
        """What a function returns, on a graph that hands on multipliers."""
        versions = [each._version for each in inputs]
        with torch.no_grad():
            # What changes them in place counts a version of both.
            returned, shape = tree_flatten(call.returned([each.detach() for each in inputs]))
        floats = [place for place, each in enumerate(returned) if _is_float(each)]
        changed = [each for each, version in zip(inputs, versions, strict=True) if each._version != version]
        if floats:
            self._calls[number] = call
            outputs = [returned[place].clone() if changed else returned[place] for place in floats]
            for place, output in zip(floats, _Handed.apply(call, outputs, *inputs), strict=True):
                # An in-place function returns what it was given, which must carry the graph on.
                returned[place] = changed[0].copy_(output) if changed else output
        return tree_unflatten(returned, shape)


class _Handed(torch.autograd.Function):
    """A call whose results are known, and whose backward pass hands on multipliers."""

    @staticmethod
    def forward(ctx: Any, call: _Call, outputs: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *multipliers: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            return None, None, *ctx.call.handed(multipliers)


class _Call:
    """One call of a function: what depends on the images among what went in, for them and for references."""

    def __init__(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[int]) -> None:
        self.name, self.func, self.places = name, func, places
        self._leaves, self._tree = tree_flatten((args, kwargs))
        # Copies, since functions may write into what they are given, now or later. The graph must not be held: it holds
        # this call.
        self.given = [self._leaves[place].detach().clone() for place in places]
        self._leaves = [None if place in places else _constant(each) for place, each in enumerate(self._leaves)]
        self.reference: list[Tensor] = []

    def refer(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what goes in for references."""
        leaves = tree_flatten((args, kwargs))[0]
        same = name == self.name and len(leaves) == len(self._leaves)
        found = [leaves[place] for place in self.places] if same else []
        shapes = [tuple(each.shape) if _is_float(each) else None for each in found]
        expected = [tuple(each.shape) for each in self.given]
        if not same or shapes != expected:
            raise _differs(f"`{self.name}` of shapes {expected}", f"`{name}` of {shapes}")
        self.reference = [each.detach().clone() for each in found]

    def returned(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returns with these in the place of what depends on the images."""
        leaves = list(self._leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._tree)
        return self.func(*args, **kwargs)

    def outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors among what it returns; what went in stays as it is."""
        return [each for each in tree_flatten(self.returned([each.clone() for each in tensors]))[0] if _is_float(each)]

    def handed(self, multipliers: Sequence[Tensor]) -> list[Tensor]:
        """Multipliers of the inputs, given those of the outputs."""
        if not self.reference:
            raise ConfigurationError("Expected references to be run before multipliers are asked for, but got none.")
        if self.name in _MAXIMA or "max_pool" in self.name:
            return self._of_extreme(multipliers, torch.maximum)
        if self.name in _MINIMA:
            return self._of_extreme(multipliers, torch.minimum)
        if self.name in _ELEMENTWISE and len(self.places) == 1:
            return self._rescaled(*multipliers)
        return self._along_line(multipliers)

    def _both(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs for the images and for the references."""
        with torch.no_grad():
            return self.outputs(self.given), self.outputs(self.reference)

    def _gradients(self, at: Sequence[Tensor], multipliers: Sequence[Tensor]) -> list[Tensor]:
        at = [each.detach().requires_grad_(True) for each in at]
        outputs = self.outputs(at)
        wanted = [each.to(output.dtype) for each, output in zip(multipliers, outputs, strict=True)]
        return list(torch.autograd.grad(outputs, at, wanted, allow_unused=True, materialize_grads=True))

    def _rescaled(self, multiplier: Tensor) -> list[Tensor]:
        (y,), (other,) = self._both()
        (a,), (r,) = self.given, self.reference
        moved = a - r
        still = ~(moved.abs() > _TINY * (a.abs() + r.abs()))  # also where both are infinite, as masks are
        rescaled = multiplier * (y - other) / moved.masked_fill(still, 1.0)
        return [rescaled.where(~still, self._gradients([a], [multiplier])[0])] if still.any() else [rescaled]

    def _along_line(self, multipliers: Sequence[Tensor]) -> list[Tensor]:
        # Many small parts would be lost in half precision.
        total = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in self.given]
        abrupt = "softmax" in self.name and total[0].numel() <= _FEW
        points = 1 if self.name in _PRODUCTS and len(self.places) == 2 else _MORE_POINTS if abrupt else _POINTS
        for place, weight in line(points):
            at = [torch.lerp(r, a, place).where(a != r, a) for a, r in zip(self.given, self.reference, strict=True)]
            for each, found in zip(total, self._gradients(at, multipliers), strict=True):
                each.add_(found.to(each.dtype), alpha=weight)
        return [each.to(given.dtype) for each, given in zip(total, self.given, strict=True)]

    def _of_extreme(self, multipliers: Sequence[Tensor], better: Any) -> list[Tensor]:
        ys, others = self._both()
        best = [better(y, other) for y, other in zip(ys, others, strict=True)]
        here, there = (
            [m * (one - other) for m, one, other in zip(multipliers, *pair, strict=True)]
            for pair in ((best, others), (ys, best))
        )
        both = zip(self._gradients(self.given, here), self._gradients(self.reference, there), strict=True)
        moved = (a - r for a, r in zip(self.given, self.reference, strict=True))
        return [((h + t) / d).where(d != 0, 0.0) for (h, t), d in zip(both, moved, strict=True)]


@cache
def line(points: int) -> tuple[tuple[float, float], ...]:
    """Places on the line from 0 to 1 and weights of Gauss-Legendre quadrature."""
    places, weights = np.polynomial.legendre.leggauss(points)
    return tuple((float(place + 1) / 2, float(weight) / 2) for place, weight in zip(places, weights, strict=True))


def _layer_norm(
    images: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = images - images.mean(axes, keepdim=True)
    normed = centred * ((centred * centred).mean(axes, keepdim=True) + eps).rsqrt()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _group_norm(
    images: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    grouped = images.reshape(len(images), groups, -1)
    normed = _layer_norm(grouped, grouped.shape[2:], eps=eps).reshape(images.shape)
    channels = (-1, *(1,) * (images.ndim - 2))
    normed = normed if weight is None else normed * weight.view(channels)
    return normed if bias is None else normed + bias.view(channels)


def _instance_norm(
    images: Tensor,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *others: Any,
    eps: float = 1e-5,
    **_: object,
) -> Tensor:
    return _group_norm(images, images.shape[1], weight, bias, others[2] if len(others) > 2 else eps)


def _softmax(values: Tensor, dim: int | None = None, *others: object, **named: object) -> Tensor:
    # The logarithm of a tiny probability, which is what a question is about, is then that of the log-softmax.
    dtype = next((each for each in (*others, *named.values()) if isinstance(each, torch.dtype)), None)
    probabilities: Tensor = torch.nn.functional.log_softmax(values, dim, dtype=dtype).exp()
    return probabilities


def _is_plain_quotient(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a division is by a tensor, not in place, and not rounded."""
    return not func.__name__.endswith("_") and len(args) == 2 and not kwargs and isinstance(args[1], Tensor)


def _quotient(numerator: Any, denominator: Tensor) -> Tensor:
    quotient: Tensor = numerator * denominator.reciprocal()
    return quotient


# Functions that are made of products and functions of each element, of which the rules add up exactly.
_IN_PARTS: dict[str, Callable[..., Tensor]] = {
    "div": _quotient,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "true_divide": _quotient,
}


def _constant(each: object) -> object:
    """What does not depend on the images, without the graph of parameters that made it."""
    return each.detach() if isinstance(each, Tensor) and each.grad_fn is not None else each


def _is_float(each: object) -> bool:
    return isinstance(each, Tensor) and each.is_floating_point()


def _by_own_statistics(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a norm goes by what it is given, and not by what it has seen in training."""
    argument, default = _OF_BATCH[name]
    return bool(args[5] if len(args) > 5 else kwargs.get(argument, default))


def _differs(expected: str, got: str) -> ConfigurationError:
    return ConfigurationError(
        f"Expected the model to do the same with references as with images, but for {expected} it ran {got}. Use "
        "ExpectedGradients(), which compares no two passes."
    )
