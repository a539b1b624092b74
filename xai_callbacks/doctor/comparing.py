"""Comparison of two snapshots: all that differs, and in which words it is said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.doctor.snapshot import Snapshot
from xai_callbacks.errors import first_of

# What is not as in a finished training because one did not finish.
_UNFINISHED = {"parameters", "buffers", "optimizer", "metrics", "losses", "rng", "grads", "steps"}
_SHOWN = 3


@dataclass(frozen=True)
class Disturbance:
    """One thing that is not as it would be without a callback.

    Attributes:
        what: The kind: `parameters`, `buffers`, `optimizer`, `metrics` and `losses` as logged, `state_dict` (its keys),
            `modules`, `steps` (modes at training steps), `eval_layers` (modes), `rng`, `hooks`, `attributes`,
            `requires_grad`, `grads`, `switches` (of torch), `process` (later trainings differ), `crash`, or `raised`
            (by a call that training survives).
        words: What happened.
        names: Names of the parameters, modules, hooks or settings.
        hook: The hook of the callback that did it, `__init__` for its construction; None for what only came to light
            in comparison with the training without it.
        step: The number of optimizer steps before it first happened; None for what came to light in comparison.
        scenario: The way of training.
    """

    what: str
    words: str
    names: tuple[str, ...] = ()
    hook: str | None = None
    step: int | None = None
    scenario: str = ""

    def __str__(self) -> str:
        """The words, with some names and the time."""
        names = f" ({first_of(self.names, _SHOWN)})" if self.names else ""
        first = "" if self.step is None else f", first at step {self.step}"
        return f"{self.hook}{first}: {self.words}{names}" if self.hook else f"in the end: {self.words}{names}"


def compare(reference: Snapshot, other: Snapshot, finished: bool = True) -> tuple[Disturbance, ...]:
    """All differences, most important first; empty only if everything is bit by bit equal.

    With `finished=False`, for a training that crashed, without what it merely did not get to.
    """
    shared = {name for name, kind in reference.modules.items() if other.modules.get(name) == kind}
    attributes = [_within(each.attributes, shared) for each in (reference, other)]
    if not finished:  # some are counts, such as those of metrics
        attributes = [dict.fromkeys(names) for names in attributes]
    found = [
        compare_tensors("parameters", "weights", reference.parameters, other.parameters),
        compare_tensors("buffers", "buffers", reference.buffers, other.buffers),
        compare_tensors("optimizer", "optimizer state", reference.optimizer, other.optimizer),
        compare_tensors("metrics", "logged metrics", reference.metrics, other.metrics),
        compare_losses(reference.losses, other.losses),
        compare_keys(reference, other),
        counted("modules", "modules", reference.modules, other.modules),
        *compare_steps(reference.eval_layers_by_step, other.eval_layers_by_step),
        compare_modes(reference.eval_layers & shared, other.eval_layers & shared),
        compare_rng(reference.rng, other.rng),
        compare_hooks(reference.hooks, other.hooks),
        counted("attributes", "attributes on layers", attributes[0], attributes[1]),
        counted("requires_grad", "trainable parameters", reference.requires_grad, other.requires_grad),
        counted("grads", ".grad", reference.grads, other.grads, "wiped"),
        compare_switches(reference.switches, other.switches),
    ]
    return tuple(each for each in found if each is not None and (finished or each.what not in _UNFINISHED))


def same(a: object, b: object) -> bool:
    """Equality of plain values, or of tensors in type, shape and every element, where NaN equals itself."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and repr(a) == repr(b)
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def unequal(reference: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in both of what differs."""
    return tuple(name for name in reference if name in other and not same(reference[name], other[name]))


def compare_tensors(
    what: str, label: str, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> Disturbance | None:
    """Tensors by name. Weights and buffers that come and go are found by `compare_keys`; new metrics harm nobody."""
    names = unequal(reference, other)
    if what in {"metrics", "optimizer"}:
        names += tuple(reference.keys() - other.keys())
    if what == "optimizer":
        names += tuple(other.keys() - reference.keys())
    if not names:
        return None
    gaps = [
        float((reference[name].double() - other[name].double()).abs().max())
        for name in names
        if what == "parameters" and reference[name].shape == other[name].shape and reference[name].numel()
    ]
    verb = "differs" if label.endswith("state") else "differ"
    return Disturbance(what, f"{label} {verb}" + (f" (max |d| {max(gaps):.1e})" if gaps else ""), names)


def compare_losses(reference: Tensor, other: Tensor) -> Disturbance | None:
    """The loss of every training step."""
    if same(reference, other):
        return None
    shared = min(len(reference), len(other))
    changed = [step for step in range(shared) if not same(reference[step], other[step])]
    if changed:
        return Disturbance("losses", f"loss differs from step {changed[0] + 1} of {len(reference)} on")
    return Disturbance("losses", f"{len(other)} training steps instead of {len(reference)}")


def compare_keys(reference: Snapshot, other: Snapshot) -> Disturbance | None:
    """Names in the `state_dict`: a stranger among them makes checkpoints unloadable; else those of other buffers."""
    added, lost = _moved(reference.keys, other.keys)
    if added or lost:
        gone = f", {len(lost)} gone" if lost else ""
        words = f"{len(added)} new state_dict keys{gone}: checkpoints no longer load"
        return Disturbance("state_dict", words, added + lost)
    return counted("buffers", "buffers outside of the state_dict", set(reference.buffers), set(other.buffers))


def compare_steps(
    reference: tuple[frozenset[str], ...], other: tuple[frozenset[str], ...]
) -> tuple[Disturbance | None, ...]:
    """Train and eval mode at each training step."""
    steps = list(zip(reference, other, strict=False))
    shares = (
        (sum(bool(b - a) for a, b in steps), "in eval mode"),
        (sum(bool(a - b) for a, b in steps), "with frozen layers in train mode"),
    )
    return tuple(Disturbance("steps", f"{n / len(steps):.0%} of steps {words}") if n else None for n, words in shares)


def compare_modes(reference: frozenset[str], other: frozenset[str]) -> Disturbance | None:
    """Names of the modules in eval mode."""
    in_eval, in_train = _moved(reference, other)
    if not in_eval and not in_train:
        return None
    words = f"{len(in_eval + in_train)} layers left in {'eval' if in_eval else 'train'} mode"
    return Disturbance("eval_layers", words, in_eval + in_train)


def compare_rng(reference: Mapping[str, str], other: Mapping[str, str]) -> Disturbance | None:
    """The state of the random streams."""
    names = unequal(reference, other)
    return Disturbance("rng", f"RNG moved ({', '.join(names)})") if names else None


def compare_hooks(reference: Mapping[str, int], other: Mapping[str, int]) -> Disturbance | None:
    """Hooks on modules, parameters and optimizers."""
    names = tuple(name for name in {**reference, **other} if reference.get(name, 0) != other.get(name, 0))
    if not names:
        return None
    surplus = sum(other.values()) - sum(reference.values())
    return Disturbance("hooks", f"{surplus} hooks left" if surplus > 0 else "hooks removed or moved", names)


def compare_switches(reference: Mapping[str, object], other: Mapping[str, object]) -> Disturbance | None:
    """Global switches of torch, with what they are set to."""
    changes = [f"{name}: {other[name]} instead of {reference[name]}" for name in unequal(reference, other)]
    return Disturbance("switches", f"global switches changed ({', '.join(changes)})") if changes else None


def counted(
    what: str, label: str, reference: Collection[str], other: Collection[str], lost: str = "lost"
) -> Disturbance | None:
    """Names, and the values of those in both where there are any."""
    changed = unequal(reference, other) if isinstance(reference, Mapping) and isinstance(other, Mapping) else ()
    added, gone = _moved(reference, other)
    counts = [f"{len(names)} {word}" for names, word in ((changed, "changed"), (added, "new"), (gone, lost)) if names]
    return Disturbance(what, f"{label}: {', '.join(counts)}", changed + added + gone) if counts else None


def _moved(reference: Collection[str], other: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What came, and what went, in a lasting order."""
    return tuple(sorted(set(other) - set(reference))), tuple(sorted(set(reference) - set(other)))


def _within(attributes: Mapping[str, object], modules: Collection[str]) -> dict[str, object]:
    """The attributes of some modules: those that come, go or change their class have their own line."""
    return {name: value for name, value in attributes.items() if (name.rpartition(".")[0] or ".") in modules}
