"""Fingerprints of the audited model: of its structure, and of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


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
