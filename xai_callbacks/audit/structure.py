"""`structure_of`: whether what was learnt about one model holds for another."""

from __future__ import annotations

from torch import nn

__all__ = ["structure_of"]


def structure_of(module: nn.Module) -> int:
    """A number that two models share if modules and parameters have the same names, types and shapes."""
    modules = tuple((name, type(part).__qualname__) for name, part in module.named_modules())
    return hash((modules, tuple((name, parameter.shape) for name, parameter in module.named_parameters())))
