"""What a user names on the command line: models by their paths, objects of their code by theirs."""

import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xai_callbacks.cli.output import error_console, say
from xai_callbacks.errors import ConfigurationError, in_words

if TYPE_CHECKING:
    from xai_callbacks.history import History


def named(path: str) -> Any:
    """What is at `package.module:name` or `package.module.name`: a class, a function, an object of a user's code."""
    try:
        return pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:  # a module of the user may raise anything
        raise ConfigurationError(f"Expected {path!r} to be package.module:name, but got {in_words(error)}") from error


def models_at(paths: Sequence[str]) -> "dict[str, History]":
    """Histories by the name of the model.

    An earlier audit that cannot be read is told of.
    """
    from xai_callbacks.compare import read_models

    models = read_models(paths)
    for history in models.values():
        for sentence in history.unreadable.values():
            say(error_console(), f"warning: {sentence}", "yellow")
    return models
