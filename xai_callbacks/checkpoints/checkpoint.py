"""`Checkpoint`: a source of weights, and the model they belong to."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import torch
from torch import nn

from xai_callbacks.checkpoints.building import Factory, fill, from_lightning, is_named, made, named, resolved
from xai_callbacks.checkpoints.files import classes_of, read, weights_of, without_prefix
from xai_callbacks.checkpoints.names import is_pretrained
from xai_callbacks.errors import ConfigurationError, require_bool, require_choice, require_instance
from xai_callbacks.randomness import isolated_rng


class Checkpoint:
    """A source of weights that a user names; what it holds is read by `load`.

    | `source` | `model` |
    |---|---|
    | `.ckpt` of Lightning | `package.module.Class` of the LightningModule, built from what it saved; or as below |
    | `.pt`, `.pth`, `.ckpt`, `.safetensors` | a name as below, a class, or a function that returns the model |
    | `torchvision/resnet18`, `timm/...`, `hf/<folder or repository>` | none: pretrained weights, perhaps downloaded |

    Weights may lie in the file as they are, or under `state_dict`, `model_state_dict` or `model`. All must fit. A
    prefix that all names in the file share, such as `model.`, is left out for a model without it. A model of a library
    gets as many outputs as the file has.

    Args:
        source: A file, or the name of a model.
        model: What the weights belong to.
        hparams: Arguments of the model, beside those that a Lightning checkpoint has, and before them.
        weights: `averaged` or `raw`, which must be chosen where a file has both, as of `WeightAveraging` or timm.
        trust: Whether the file may hold more than tensors and plain values. What is in such a file can execute anything
            when it is read.

    Attributes:
        epoch: Epoch that the file says it is of; 0 where that is unknown, as before `load`.
        step: Optimizer steps, likewise.
        notes: Sentences on what `load` had to assume.

    Raises a `ConfigurationError` if an argument is wrong.

    Example:
        >>> Checkpoint("best.ckpt", model="my_project.Classifier", hparams={"width": 64}).load()  # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        model: str | Factory | None = None,
        hparams: Mapping[str, Any] | None = None,
        weights: Literal["averaged", "raw"] | None = None,
        trust: bool = False,
    ) -> None:
        require_instance("source", source, (str, os.PathLike), "the path of a file, or a name such as 'timm/resnet18'")
        if isinstance(model, nn.Module) or not (callable(model) or isinstance(model, str | NoneType)):
            wanted, got = "a name, a class, or a function that returns the model", type(model).__name__
            raise ConfigurationError(f"Expected `model` to be {wanted}, but got a {got}. Pass model=lambda: net.")
        require_instance("hparams", hparams, (Mapping, NoneType), "arguments by name, such as {'width': 64}")
        if weights is not None:
            require_choice("weights", weights, ("averaged", "raw"))
        require_bool("trust", trust)
        self.source, self.model, self.hparams = os.fspath(source), model, dict(hparams or {})
        self.weights, self.trust = weights, trust
        self._pretrained = is_pretrained(self.source)
        if self._pretrained and (model is not None or weights is not None):
            raise ConfigurationError(
                f"Expected {source!r} alone, whose weights come with the model, or a file of weights."
            )
        if not self._pretrained and model is None:
            raise ConfigurationError(
                f"Expected `model`, as {self.source!r} holds weights but no model. Pass the class that was trained, as "
                "in model='package.module.Class', a function, or a name such as 'torchvision/resnet18'."
            )
        self.epoch = self.step = 0
        self.notes: tuple[str, ...] = ()

    def load(self) -> nn.Module:
        """Build the model on the CPU and load the weights into it. Random streams stay as they are.

        Raises a `ConfigurationError` if the file cannot be read, has a choice of weights, or does not suit the model.
        """
        self.notes = ()
        # Tensors that are made in inference mode could never be differentiated.
        with torch.inference_mode(False), torch.enable_grad(), isolated_rng():
            return named(self.source, self.hparams, pretrained=True) if self._pretrained else self._filled()

    def _filled(self) -> nn.Module:
        content = read(Path(self.source), trust=self.trust)
        weights = weights_of(content, self.weights)
        epoch, step = (content.get(key) for key in ("epoch", "global_step"))
        self.epoch, self.step = (each if isinstance(each, int) else 0 for each in (epoch, step))
        if is_named(self.model):
            model = named(self.model, self.hparams)
            weights = self._fitting(weights, model)
            if (classes := classes_of(weights, model.state_dict())) is not None:
                model = named(self.model, self.hparams, classes=classes)
        else:
            assert self.model is not None  # noqa: S101  # checked by the constructor; narrows the type
            factory = resolved(self.model)
            if hasattr(factory, "load_from_checkpoint") and "pytorch-lightning_version" in content:
                return from_lightning(factory, content, weights, self.hparams)
            model = made(factory, self.hparams)
            weights = self._fitting(weights, model)
        fill(model, weights)
        return model

    def _fitting(self, weights: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        """Weights by the names of the model; says what had to go."""
        fitting, prefix = without_prefix(weights, model.state_dict())
        if prefix:
            self.notes = (f"Names of weights begin with {prefix!r} in the file, which was left out.",)
        return fitting

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r})"
