"""The only import of Lightning: one `Callback` base that works in both packages.

`pytorch_lightning.Callback` and `lightning.pytorch.Callback` are different classes, and some checks insist on their
own. A class that inherits from both passes all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Callback", "LightningModule", "Trainer"]


def _bases() -> tuple[type, ...]:
    found = []
    for package in ("pytorch_lightning", "lightning.pytorch"):
        try:
            found.append(importlib.import_module(package).Callback)
        except ModuleNotFoundError as error:
            if error.name not in (package, package.partition(".")[0]):
                raise
    return tuple(found)


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    Callback = type(
        "Callback", _bases(), {"__doc__": "Base of our callbacks, at home in `pytorch_lightning` and `lightning`."}
    )
    # Only for annotations; users may bring those of either package.
    LightningModule = Trainer = Any
