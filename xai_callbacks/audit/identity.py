"""What an audit is identified by: the audited structure, weights, settings and versions; and how long it takes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from xai_callbacks.explainers import Explainer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question
from xai_callbacks.record import AuditRecord, versions

__all__ = ["Clock", "identity_of", "structure_of", "weights_hash"]


class Clock:
    """Wall seconds of each stage.

    Attributes:
        seconds: By name of the stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


def structure_of(module: nn.Module) -> int:
    """A number that two models share if modules and parameters have the same names, types and shapes."""
    modules = tuple((name, type(part).__qualname__) for name, part in module.named_modules())
    lazy = nn.UninitializedParameter
    parameters = ((name, () if isinstance(each, lazy) else each.shape) for name, each in module.named_parameters())
    return hash((modules, tuple(parameters)))


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of all parameters and buffers; empty where values cannot be read.

    Cost: all weights are copied to the CPU once, some .1 s for 100 MB.
    """
    digest, tensors = hashlib.sha256(), (*module.named_parameters(), *module.named_buffers())
    try:
        with torch.no_grad():
            for name, tensor in tensors:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                values = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # lazy, quantised, sparse or sharded tensors
        return ""
    return digest.hexdigest() if tensors else ""


def identity_of(
    probes: ProbeSet, questions: Sequence[Question], explainers: Sequence[Explainer], settings: Mapping[str, object]
) -> AuditRecord:
    """A record that says how audits are made, and of what, before any was."""
    names = probes.group_names or ()
    numbers = [] if probes.groups is None else probes.groups.tolist()
    return AuditRecord(
        fingerprint=probes.fingerprint,
        names=tuple(probes.names),
        class_names=tuple(probes.class_names or ()),
        groups=tuple(names[each] if 0 <= each < len(names) else str(each) if each >= 0 else "" for each in numbers),
        explainers={each.name: repr(each) for each in explainers},
        asked=tuple(repr(question) for question in questions),
        versions=versions(),
        settings=settings,
        truth=probes.truth,
    )
