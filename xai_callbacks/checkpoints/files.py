"""Files of weights, read without running anything that is in them."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, first_of, in_words

# Where weights are in what training scripts save, and where their averages are, as timm and torchvision write them.
_ENTRIES = ("state_dict", "model_state_dict", "model")
_AVERAGES = ("state_dict_ema", "model_ema")
_CHOICE = (
    'Pass weights="averaged" for those, which validation of such a run sees, or weights="raw" for those trained on.'
)
_SHOWN = 5  # foreign classes that a message names


def read(path: Path, *, trust: bool) -> Mapping[str, Any]:
    """Content of a file of `torch.save`, or the tensors of a `.safetensors` file, on the CPU.

    Unless it is to be trusted only tensors and plain values are read, and nothing is executed. Raises a
    `ConfigurationError` if the file is missing, damaged, or has more than that.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not there"
        raise ConfigurationError(
            f"Expected `source` to be a file of weights, but {str(path)!r} {found}. Pass a .ckpt, .pt, .pth or "
            ".safetensors file, or a name: 'torchvision/...', 'timm/...', 'hf/<folder or repository>'."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _require_no_bomb(path)
        with warnings.catch_warnings():  # of pickles that torch did not write, which it then refuses
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            content: object = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # damage may raise anything
        if not trust and (foreign := _foreign(path, error)):
            raise ConfigurationError(
                f"Expected {str(path)!r} to hold tensors and plain values only, but it refers to {foreign}, and to "
                "read those may execute anything. Pass trust=True only if you know who wrote the file."
            ) from error
        # What torch says of it is advice to trust the file.
        why = "It is none of torch.save." if isinstance(error, pickle.UnpicklingError) else in_words(error)
        raise ConfigurationError(
            f"Expected {str(path)!r} to be a file of weights, but it cannot be read. {why}"
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigurationError(
            f"Expected {str(path)!r} to hold a state_dict, but it holds a {type(content).__name__}. Save "
            "`model.state_dict()`."
        )
    return content


def weights_of(content: Mapping[str, Any], wanted: str | None) -> dict[str, Any]:
    """The state_dict in a file, raw or averaged.

    Raises a `ConfigurationError` if both are there and neither is `wanted`, one is `wanted` where there is no choice,
    or there are no weights.
    """
    raw, averaged = _entry(content, _ENTRIES), _entry(content, _AVERAGES)
    if "current_model_state" in content:  # Lightning's WeightAveraging puts the averages where the weights were
        raw, averaged = content["current_model_state"], raw
    if averaged is not None and raw is not None:
        if wanted is None:
            raise ConfigurationError(f"Expected `weights`, as the file has averaged and raw ones. {_CHOICE}")
        found = averaged if wanted == "averaged" else raw
    elif wanted is not None:
        raise ConfigurationError(
            f"Expected no `weights`, as the file has but one set, but got {wanted!r}. Leave it out."
        )
    else:
        found = content if raw is None else raw
    keys: list[object] = list(found)
    if unnamed := [key for key in keys if not isinstance(key, str)]:
        raise ConfigurationError(f"Expected weights by name, but the file has {unnamed[0]!r}. Save a state_dict.")
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise ConfigurationError(
            f"Expected weights in the file, but its entries are {', '.join(map(str, found)) or 'none'}. Save a "
            f"state_dict, as it is or under one of {', '.join(map(repr, _ENTRIES))}."
        )
    return {key: value for key, value in found.items() if key != "n_averaged"}  # a counter of torch's AveragedModel


def without_prefix(weights: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Weights by the names that a model has for its `own`, and the prefix that had to go for it, such as `model.`."""
    parts = os.path.commonprefix(list(weights)).split(".")[:-1]  # noqa: RUF071  # of characters, as names are no paths
    prefixes = ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]
    prefix = max(prefixes, key=lambda each: sum(name.removeprefix(each) in own for name in weights))
    return {name.removeprefix(prefix): value for name, value in weights.items()}, prefix


def classes_of(weights: Mapping[str, Any], own: Mapping[str, Any]) -> int | None:
    """Number of outputs of the model that was saved, if that is all in which it differs from the model at hand."""
    both = [(weights[name].shape, own[name].shape) for name in own if isinstance(weights.get(name), Tensor)]
    sizes = {(saved[:1], built[:1]) for saved, built in both if saved != built and saved[1:] == built[1:]}
    return sizes.pop()[0][0] if len(sizes) == 1 else None


def _entry(content: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any] | None:
    return next((content[name] for name in names if isinstance(content.get(name), Mapping)), None)


def _require_no_bomb(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is; torch packs nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size, unpacked = path.stat().st_size, sum(each.file_size for each in archive.infolist())
        if unpacked > size:
            raise ValueError(f"Its {size} bytes would unpack to {unpacked}, and no file of torch.save does")


def _foreign(path: Path, error: Exception) -> str:
    """Classes and functions that a file wants imported, in words; empty where that is not what is wrong with it."""
    try:
        found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an older format, or no such file
        found = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return first_of(found, _SHOWN)
