"""Probe sets on disk: one safetensors file, tensors plus JSON in the header, no pickle."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from xai_callbacks.errors import ProbeSetError, require_instance
from xai_callbacks.files import write_whole
from xai_callbacks.probes.probe_set import FACTS, TENSORS, ProbeSet

FORMAT_VERSION = 2
HEADER_KEY = "xai_callbacks.probes"
MASK_PREFIX = "masks/"
FILE_NAME = "probes.safetensors"  # of the probes beside the histories of their audits


def to_path(path: object, argument: str) -> Path:
    """Check a path that is an argument."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in str(path):
        raise ProbeSetError(f"Expected `{argument}` to be a path, but got {path!r}. Pass a text or a pathlib.Path.")
    return Path(path)


def save_probes(probes: ProbeSet, path: str | os.PathLike[str]) -> None:
    """Write `probes` to `path`, whole or not at all."""
    path = to_path(path, "path")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ProbeSetError(f"Expected `path` to be that of a file, but {str(path)!r} is a folder, a pipe or a device.")
    tensors = {name: getattr(probes, name) for name in TENSORS if getattr(probes, name) is not None}
    tensors |= {MASK_PREFIX + region: mask for region, mask in probes.masks.items()}
    header = {name: getattr(probes, name) for name in FACTS}
    header |= {"version": FORMAT_VERSION, "fingerprint": probes.fingerprint, "regions": list(probes.masks)}
    try:
        # Not `save_file`: its files can be read by their owner alone, whatever a shared run folder expects.
        write_whole(path, save(tensors, metadata={HEADER_KEY: json.dumps(header)}))
    except OSError as error:
        raise ProbeSetError(
            f"Expected `path` to be where a file can be written, but {str(path)!r} cannot: {error}."
        ) from error


def load_probes(path: str | os.PathLike[str]) -> ProbeSet:
    """Read the probe set at `path`; that its content has the fingerprint it was saved with makes it sound."""
    path = to_path(path, "path")
    if not os.path.isfile(path):  # reading a pipe would wait without end
        raise ProbeSetError(f"Expected `path` to be a file of `ProbeSet.save`, but {str(path)!r} is no file.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies: the tensors of safetensors lie in the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            header = json.loads((file.metadata() or {})[HEADER_KEY])
        if header["version"] != FORMAT_VERSION:
            raise ProbeSetError(
                f"its format version is {header['version']!r} and not {FORMAT_VERSION}: build the set anew, or upgrade "
                "the package if it is the older"
            )
        given: dict[str, Any] = {name: tensors.get(name) for name in TENSORS}
        given |= {name: None if header[name] is None else tuple(header[name]) for name in FACTS}
        probes = ProbeSet(**given, masks={region: tensors[MASK_PREFIX + region] for region in header["regions"]})
        if probes.fingerprint != header["fingerprint"]:
            raise ProbeSetError(
                f"its content has fingerprint {probes.fingerprint!r} and not {header['fingerprint']!r}, as its header "
                "says: it was damaged or changed; build the set anew"
            )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else error
        raise ProbeSetError(f"Expected {str(path)!r} to be a file of `ProbeSet.save`, but: {reason}.") from error
    return probes


def loaded(probes: ProbeSet | str | os.PathLike[str], argument: str = "probes") -> ProbeSet:
    """A probe set, read from its file if need be; a `ConfigurationError` for what is neither a set nor a path."""
    if isinstance(probes, str | os.PathLike):
        return ProbeSet.load(probes)
    require_instance(argument, probes, ProbeSet, "a ProbeSet, see ProbeSet.from_dataset, or the path of a saved one")
    return probes
