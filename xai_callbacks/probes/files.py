"""Probe sets on disk: one safetensors file, tensors plus JSON in the header, no pickle."""

from __future__ import annotations

import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xai_callbacks.errors import ProbeSetError, require_instance
from xai_callbacks.probes.paths import no_file, to_path
from xai_callbacks.probes.probe_set import FACTS, TENSORS, ProbeSet

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMAT_VERSION", "load_probes", "loaded", "save_probes"]

FORMAT_VERSION = 2
HEADER_KEY = "xai_callbacks.probes"
MASK_PREFIX = "masks/"


def save_probes(probes: ProbeSet, path: str | os.PathLike[str]) -> None:
    """Write `probes` to `path` by way of a temporary file beside it, so that no reader ever sees half a file."""
    path = to_path(path, "path")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ProbeSetError(f"Expected `path` to be that of a file, but {str(path)!r} is a folder, a pipe or a device.")
    tensors = {name: getattr(probes, name) for name in TENSORS if getattr(probes, name) is not None}
    tensors |= {MASK_PREFIX + region: mask for region, mask in probes.masks.items()}
    header = {name: getattr(probes, name) for name in FACTS}
    header |= {"version": FORMAT_VERSION, "fingerprint": probes.fingerprint, "regions": list(probes.masks)}
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors makes files that only their owner can read; a shared run folder expects the usual mode.
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(header)})
        temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ProbeSetError(
            f"Expected `path` to be where a file can be written, but {str(path)!r} cannot: {error}."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_probes(path: str | os.PathLike[str]) -> ProbeSet:
    """Read and check the probe set at `path`.

    Raises:
        ProbeSetError: The file is missing, damaged, changed since it was written, or of another format.
    """
    path = to_path(path, "path")
    if why := no_file(path):
        raise ProbeSetError(f"Expected `path` to be a file of `ProbeSet.save`, but {str(path)!r} is no file: {why}.")
    tensors, metadata = _read(path)
    header = _header(path, metadata)
    try:
        probes = _assembled(tensors, header)
    except (ProbeSetError, KeyError, TypeError, ValueError) as error:
        raise ProbeSetError(f"Expected {str(path)!r} to hold a sound probe set, but: {error}") from error
    if probes.fingerprint != header.get("fingerprint"):
        raise ProbeSetError(
            f"Expected the content of {str(path)!r} to have fingerprint {header.get('fingerprint')!r}, as its header "
            f"says, but got {probes.fingerprint!r}. The file was damaged or changed; build the probe set anew."
        )
    return probes


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ProbeSetError(
            f"Expected {str(path)!r} to be a safetensors file, but it cannot be read: {error}. "
            "It is damaged or of another kind; write it anew with `ProbeSet.save`."
        ) from error


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if HEADER_KEY not in metadata:
        raise ProbeSetError(f"Expected {str(path)!r} to be written by `ProbeSet.save`, but it has no {HEADER_KEY!r}.")
    try:
        header = json.loads(metadata[HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise ProbeSetError(f"Expected the header of {str(path)!r} to be JSON, but: {error}. It is damaged.") from error
    version = header.get("version") if isinstance(header, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ProbeSetError(f"Expected the header of {str(path)!r} to tell its version, but got {version!r}.")
    if version != FORMAT_VERSION:
        older = version < FORMAT_VERSION
        age, advice = ("an older", "Build the probe set anew.") if older else ("a newer", "Upgrade the package.")
        raise ProbeSetError(
            f"Expected {str(path)!r} to be of format version {FORMAT_VERSION}, but got {version}: it was written by "
            f"{age} xai_callbacks. {advice}"
        )
    return dict(header)


def _assembled(tensors: dict[str, Tensor], header: Mapping[str, Any]) -> ProbeSet:
    regions = header["regions"]
    unknown = set(tensors) - set(TENSORS) - {MASK_PREFIX + region for region in regions}
    if unknown:
        raise ProbeSetError(f"tensor {sorted(unknown)[0]!r} does not belong to a probe set.")
    given: dict[str, Any] = {name: tensors.get(name) for name in TENSORS} | {name: header[name] for name in FACTS}
    given |= {name: tensors[name] for name in ("images", "pixels")}
    return ProbeSet(**given, masks={region: tensors[MASK_PREFIX + region] for region in regions})


def loaded(probes: ProbeSet | str | os.PathLike[str], argument: str = "probes") -> ProbeSet:
    """A probe set, read from its file if need be.

    Raises:
        ConfigurationError: It is neither a probe set nor a path.
    """
    if isinstance(probes, str | os.PathLike):
        return ProbeSet.load(probes)
    require_instance(argument, probes, ProbeSet, "a ProbeSet, see ProbeSet.from_dataset, or the path of a saved one")
    return probes
