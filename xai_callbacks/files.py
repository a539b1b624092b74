"""Files that no reader ever sees half of."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file by way of a temporary one beside it; folders are made as needed, an older file stays until the end.

    With `sync` it is on the disk at the end, also if the machine crashes then. Raises an `OSError` if it cannot be
    written.
    """
    # By its beginning a history knows what a killed process left; all of a long name would not fit.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
