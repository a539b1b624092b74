"""Every error this package raises on purpose, under one root.

Messages follow one form: "Expected `x` to be ..., but got .... <what to do>".
"""

__all__ = [
    "AuditError",
    "ConfigurationError",
    "NoveltyError",
    "OutputError",
    "ProbeSetError",
    "TargetLayerError",
    "XAICallbacksError",
    "require_integer",
]


class XAICallbacksError(Exception):
    """Root of all errors raised by `xai_callbacks`."""


class ProbeSetError(XAICallbacksError, ValueError):
    """A probe, or a whole probe set, is malformed. The message names the probe."""


class ConfigurationError(XAICallbacksError, ValueError):
    """The audit was asked for something it cannot do. Raised before the first training step."""


class TargetLayerError(ConfigurationError):
    """A target layer does not exist, is ambiguous, or carries no feature map."""


class OutputError(ConfigurationError):
    """The outputs of the model cannot be read as logits `(N, K)` or values `(N,)`."""


class AuditError(XAICallbacksError, RuntimeError):
    """One audit failed although its configuration was sound, e.g. on non-finite logits."""


class NoveltyError(AuditError):
    """A novelty score says nothing: it is NaN, infinite, or the same for all probes."""


def require_integer(name: str, value: object, *, least: int, hint: str = "") -> None:
    """Check an argument that counts something; `True` and `2.0` are no counts.

    Raises:
        ConfigurationError: `value` is not an int of `least` or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        advice = f" {hint}" if hint else ""
        raise ConfigurationError(f"Expected `{name}` to be an integer of {least} or more, but got {value!r}.{advice}")
