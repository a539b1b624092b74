"""A snapshot of a training: all that a callback must leave as it found it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Switch = tuple[Callable[[], Any], Callable[[Any], object] | None]

_CUDNN = torch.backends.cudnn
SWITCHES: dict[str, Switch] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, None),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cudnn.benchmark": (lambda: _CUDNN.benchmark, lambda on: setattr(_CUDNN, "benchmark", on)),
    "cudnn.deterministic": (lambda: _CUDNN.deterministic, lambda on: setattr(_CUDNN, "deterministic", on)),
}
"""Global switches of torch that change a training: how each is read, and set where it can be."""

_PLAIN = bool | int | float | str


@dataclass(frozen=True)
class Snapshot:
    """All that is compared. Tensors are copies by name, random streams are digests of their whole state.

    Attributes:
        parameters: Values by name, as are `buffers` and `grads`.
        optimizer: State and settings of all optimizers, such as `0.3.exp_avg` and `0.lr`.
        metrics: What was logged; within a training the latest values, at its end `(step, value)` of all times.
        losses: Loss of each training step, at the end of a training.
        eval_layers: Names of the modules in eval mode; the root is called `.`.
        eval_layers_by_step: The same at each training step, at the end of a training.
        hooks: How many there are, by owner, kind and function.
        attributes: Attributes of modules; tensors and plain values of public ones, None for what is known by name only.
        requires_grad: Names of the parameters that are trained.
        modules: Class by name.
        keys: Keys of the `state_dict`.
        switches: Global switches of torch.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metrics: dict[str, Tensor]
    losses: Tensor
    rng: dict[str, str]
    eval_layers_by_step: tuple[frozenset[str], ...]
    eval_layers: frozenset[str]
    hooks: dict[str, int]
    attributes: dict[str, object]
    requires_grad: frozenset[str]
    grads: dict[str, Tensor]
    modules: dict[str, str]
    keys: frozenset[str]
    switches: dict[str, object]


def take_snapshot(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    metrics: Mapping[str, Tensor],
    losses: list[float] | None = None,
    eval_layers_by_step: tuple[frozenset[str], ...] = (),
) -> Snapshot:
    """Copy everything that is compared, and move nothing."""
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    return Snapshot(
        parameters=_copies(parameters),
        buffers=_copies(dict(module.named_buffers())),
        optimizer={
            f"{number}.{name}": value
            for number, optimizer in enumerate(optimizers)
            for name, value in _optimizer_state(optimizer).items()
        },
        metrics=_copies(metrics),
        losses=torch.tensor(losses or [], dtype=torch.float64),
        rng=rng_digests(),
        eval_layers_by_step=eval_layers_by_step,
        eval_layers=layers_in_eval(module),
        hooks=count_hooks(module, optimizers),
        attributes=_attributes(module),
        requires_grad=frozenset(name for name, p in parameters.items() if p.requires_grad),
        grads=_copies({name: p.grad for name, p in parameters.items() if not is_lazy(p) and p.grad is not None}),
        modules={name or ".": type(each).__qualname__ for name, each in module.named_modules()},
        keys=frozenset(module.state_dict()),
        switches={name: read() for name, (read, _) in SWITCHES.items()},
    )


@contextmanager
def switches_restored() -> Iterator[None]:
    """Put the global switches back on leaving, where that is possible."""
    before = {name: read() for name, (read, _) in SWITCHES.items()}
    try:
        yield
    finally:
        for name, (read, write) in SWITCHES.items():
            if write is not None and read() != before[name]:
                write(before[name])


def layers_in_eval(module: nn.Module) -> frozenset[str]:
    """Names of all modules that are in eval mode; the root is called `.`."""
    return frozenset(name or "." for name, each in module.named_modules() if not each.training)


def rng_digests() -> dict[str, str]:
    """The whole state of the three CPU random streams, hashed."""
    _, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": repr(random.getstate()).encode(),
        "numpy": np.asarray(keys).tobytes() + repr(rest).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    return {name: hashlib.sha256(state).hexdigest() for name, state in states.items()}


def count_hooks(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """Hooks on modules, parameters and optimizers, and those on every module; `conv: forward_hooks log_it`."""
    tables = [
        (name or ".", kind, table)
        for name, owner in (
            *module.named_modules(),
            *((f"optimizer {number}", each) for number, each in enumerate(optimizers)),
            ("every module", nn.modules.module),
        )
        for kind, table in vars(owner).items()
        if kind.endswith("_hooks") and isinstance(table, dict)
    ]
    for name, parameter in module.named_parameters():
        tables.append((name, "backward_hooks", parameter._backward_hooks or {}))
        tables.append((name, "backward_hooks", getattr(parameter, "_post_accumulate_grad_hooks", None) or {}))
    counts: dict[str, int] = {}
    for owner, kind, table in tables:
        for hook in table.values():
            name = f"{owner}: {kind.lstrip('_')} {getattr(hook, '__qualname__', type(hook).__qualname__)}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if not is_lazy(tensor)}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Whatever are numbers in its state and its settings."""
    state = optimizer.state_dict()
    found = {f"{index}.{key}": value for index, entry in state["state"].items() for key, value in entry.items()}
    for number, group in enumerate(state["param_groups"]):
        found |= {f"group {number}.{key}": value for key, value in group.items() if key != "params"}
    return {
        name: value.clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for name, value in found.items()
        if _is_numeric(value)
    }


def _is_numeric(value: object) -> bool:
    return isinstance(value, Tensor | int | float) or (isinstance(value, tuple) and all(map(_is_numeric, value)))


def _attributes(module: nn.Module) -> dict[str, object]:
    found: dict[str, object] = {}
    for owner, each in module.named_modules():
        for name, value in vars(each).items():
            if name == "training":  # a mode
                continue
            public = not name.startswith("_")
            kept = value.detach().clone() if public and isinstance(value, Tensor) else None
            found[f"{owner}.{name}"] = value if public and isinstance(value, _PLAIN) else kept
    return found
