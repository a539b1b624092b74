"""Models to load weights into: of libraries by name, of a user by class path or factory."""

import inspect
import io
import pkgutil
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any, TypeGuard

import torch
from torch import nn

from xai_callbacks.errors import ConfigurationError, in_words

Factory = Callable[..., nn.Module]

_LIBRARIES = {"torchvision": "num_classes", "timm": "num_classes", "hf": "num_labels"}  # how each calls the classes
_WIDTH = 200  # characters of each part of an error of torch, which may list every name of a model


def is_named(source: object) -> TypeGuard[str]:
    """Whether this is the name of a model of a library, such as `timm/resnet50`."""
    return isinstance(source, str) and "/" in source and source.partition("/")[0] in _LIBRARIES


def named(source: str, given: Mapping[str, Any], *, pretrained: bool = False, classes: int | None = None) -> nn.Module:
    """A model of a library, with its pretrained weights or without; a `ConfigurationError` if it has no such model."""
    library, _, name = source.partition("/")
    model: nn.Module
    try:
        given = {**({} if classes is None else {_LIBRARIES[library]: classes}), **given}
        if library == "torchvision":
            from torchvision.models import get_model

            model = get_model(name, weights="DEFAULT" if pretrained else None, **given)
        elif library == "timm":
            import timm

            model = timm.create_model(name, pretrained=pretrained, **given)
        else:
            import transformers

            auto: Any = transformers.AutoModelForImageClassification
            if pretrained:
                model = auto.from_pretrained(name, **given)
            else:
                model = auto.from_config(transformers.AutoConfig.from_pretrained(name, **given))
    except Exception as error:  # whatever a library raises
        wanted = "a model and its pretrained weights, which may need the network" if pretrained else "a model"
        raise ConfigurationError(f"Expected {source!r} to name {wanted}, but got {in_words(error)}") from error
    return model


def resolved(model: str | Factory) -> Factory:
    """A class or function, imported if it is given by its path; a `ConfigurationError` if there is none."""
    if not isinstance(model, str):
        return model
    try:
        # With a colon, or what fails in a module of the user would be told as its absence.
        found: object = pkgutil.resolve_name(model if ":" in model else ":".join(model.rsplit(".", 1)))
    except (Exception, SystemExit) as error:  # whatever a module of the user raises
        raise ConfigurationError(
            f"Expected `model` to be 'package.module.Class' or 'package.module:function', but {model!r} cannot be "
            f"imported. {in_words(error)}"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"Expected `model` to lead to a class or function, but {model!r} is {found!r}.")
    return found


def made(factory: Factory, given: Mapping[str, Any]) -> nn.Module:
    """What a factory returns, if that is a model."""
    try:
        model: object = factory(**given)
    except (Exception, SystemExit) as error:  # a factory of the user may raise anything
        raise _unmade(factory, error) from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"Expected `model` to return a torch.nn.Module, but got {type(model).__name__}.")
    return model


def from_lightning(
    cls: Any, content: Mapping[str, Any], state: Mapping[str, Any], given: Mapping[str, Any]
) -> nn.Module:
    """A LightningModule as its own `load_from_checkpoint` builds it, with these weights of the checkpoint."""
    # Written again, of what was read already: Lightning then reads nothing of the file itself.
    file = io.BytesIO()
    torch.save({**content, "state_dict": state, "current_model_state": None, "optimizer_states": []}, file)
    file.seek(0)
    # An argument since Lightning 2.6.
    safe = {"weights_only": False} if "weights_only" in inspect.signature(cls.load_from_checkpoint).parameters else {}
    try:
        model: nn.Module = cls.load_from_checkpoint(file, map_location="cpu", **safe, **given)
    except (Exception, SystemExit) as error:  # a constructor of the user may raise anything
        raise (_unfilled(cls.__name__, error) if "loading state_dict" in str(error) else _unmade(cls, error)) from error
    return model


def fill(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load weights; a `ConfigurationError` unless they are those of the model, no more and no less."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise _unfilled(type(model).__name__, error) from error


def _unmade(factory: Factory, error: BaseException) -> ConfigurationError:
    name = getattr(factory, "__qualname__", repr(factory))
    return ConfigurationError(
        f"Expected `model` to build a model, but {name} raised {in_words(error)} Pass its arguments as `hparams`, or a "
        "function that needs none."
    )


def _unfilled(name: str, error: BaseException) -> ConfigurationError:
    parts = (shorten(line, _WIDTH, placeholder=" ...") for line in str(error).splitlines()[1:4])
    return ConfigurationError(
        f"Expected weights of {name}, but they are of another model. {' '.join(parts)} Pass the `model` and `hparams` "
        "that it was trained with."
    )
