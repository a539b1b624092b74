"""Checks that several scores share."""

from __future__ import annotations

from torch import Tensor

from xai_callbacks.errors import AuditError, ConfigurationError, is_number

__all__ = ["require_choice", "require_finite", "require_fitted", "require_images", "require_positive"]


def require_choice(name: str, value: object, choices: tuple[str, ...], also: str = "") -> None:
    """Raise `ConfigurationError` unless an argument is one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigurationError(f"Expected `{name}` to be one of {choices}{also}, but got {value!r}.")


def require_positive(name: str, value: object, *, or_zero: bool = False, hint: str = "") -> float:
    """Read a finite number above 0, or of 0 or more, as float; raise `ConfigurationError` if it is none."""
    if not is_number(value) or value < 0 or (value == 0 and not or_zero):
        wanted = "of 0 or more" if or_zero else "above 0"
        raise ConfigurationError(
            f"Expected `{name}` to be a finite number {wanted}, but got {value!r}. {hint}".rstrip()
        )
    return float(value)


def require_images(count: int, minimum: int, why: str, advice: str = "Give some hundreds.") -> None:
    """Raise `ConfigurationError` of too few familiar images."""
    if count < minimum:
        raise ConfigurationError(f"Expected {minimum} familiar images or more {why}, but got {count}. {advice}")


def require_finite(what: str, rows: Tensor, advice: str) -> None:
    """Raise `AuditError` if one of the rows `(N, ...)` of familiar images holds NaN or infinity."""
    broken = (~rows.isfinite()).reshape(len(rows), -1).any(dim=1)
    if broken.any():
        raise AuditError(
            f"Expected {what} to be finite, but got NaN or inf in {int(broken.sum())} of {len(rows)} rows, the first "
            f"at index {int(broken.nonzero()[0])}. {advice}"
        )


def require_fitted(score: object, learnt: int | None, width: int) -> None:
    """Raise `ConfigurationError` unless a score has learnt, of as many features an image as it is asked about."""
    name = type(score).__name__
    if learnt is None:
        raise ConfigurationError(
            f"Expected `{name}` to have learnt what is familiar, but `fit` has not been called. Call it with familiar "
            "images, such as some of the training set."
        )
    if learnt != width:
        raise ConfigurationError(
            f"Expected {learnt} features an image as when `{name}` was fitted, but got {width}. Fit it again for this "
            "model."
        )
