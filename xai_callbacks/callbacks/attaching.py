"""`attached`: an auditor for a model and a dataset that nobody has described."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset, Subset

from xai_callbacks._lightning import LightningModule, Trainer
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.notices import without_logging
from xai_callbacks.callbacks.steps import LABEL_NAMES
from xai_callbacks.errors import AuditError, ConfigurationError, XAICallbacksError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.randomness import isolated_rng

_PROBES, _SAMPLED, _SEED = 64, 256, 0  # probes wanted, and items looked at to find them in every class
_NAMES = {
    "image": ("image", "images", "img", "x", "pixel_values", "input", "inputs", "data"),
    "label": LABEL_NAMES,
}


def attached(trainer: Trainer, module: LightningModule, saved: Path | None) -> Auditor:
    """An auditor of probes from the trainer's own validation data, or else training data, stratified and seeded.

    Neither loaders nor random streams are touched: items are taken from the dataset itself. If the module's `forward`
    does not take images, the first of its parts that does is audited. A collective operation: all processes audit, or
    none, as each audit has them agree. Probes that a resumed run had before are read from the file `saved`. Raises a
    `ConfigurationError` if, here or in another process, no dataset can be indexed, or no part of the module fits.
    """
    auditor, failed = None, None
    try:
        probes = ProbeSet.load(saved) if saved is not None and saved.is_file() else _drawn(trainer)
        auditor = _suited(probes, module)
    except Exception as error:  # raised again below
        failed = error
    agreed = trainer.strategy.reduce_boolean_decision(auditor is not None, all=True)
    if auditor is None or not agreed:
        raise failed or ConfigurationError("Expected all processes to find probes and a model, but another could not.")
    return auditor


def _drawn(trainer: Trainer) -> ProbeSet:
    first: XAICallbacksError | None = None
    for dataset in _datasets(trainer):
        try:
            return _probes_of(dataset)
        except XAICallbacksError as error:
            first = first or error
    if first is not None:
        raise ConfigurationError(
            f"Expected probes in the trainer's own data, but they cannot be read: {first} Build them yourself, as in "
            "AuditCallback(ProbeSet.from_dataset(dataset, fields={...}))."
        ) from first
    raise ConfigurationError(
        "Expected a validation or training dataset that can be indexed, from which to draw probes, but got none. Pass "
        "probes, as in AuditCallback(ProbeSet.from_tensors(images, labels))."
    )


def _datasets(trainer: Trainer) -> Iterator[Any]:
    """Map-style datasets, those of validation first."""
    for loader in tree_leaves([trainer.val_dataloaders, trainer.train_dataloader]):
        dataset = getattr(loader, "dataset", None)
        indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if indexed and not isinstance(dataset, IterableDataset):
            yield dataset


def _probes_of(dataset: Any) -> ProbeSet:
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(len(dataset), generator=generator)[:_SAMPLED].sort().values.tolist()
    with isolated_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few images, which are as many as there are
        sample = Subset(dataset, order)
        given: dict[str, Any] = {"seed": _SEED, "fields": _fields(sample[0])}
        one = ProbeSet.from_dataset(sample, per_class=1, **given)
        if one.targets is not None and one.targets.ndim == 1 and bool(((one.targets == 0) | (one.targets == 1)).all()):
            given["class_names"] = ["0", "1"]  # of one logit, which is trained on floats
            one = ProbeSet.from_dataset(sample, per_class=1, **given)
        if len(one) >= _PROBES:
            return one.select(torch.linspace(0, len(one) - 1, _PROBES).long().tolist())
        return ProbeSet.from_dataset(sample, per_class=-(-_PROBES // len(one)), **given)


def _fields(item: object) -> dict[str, str] | None:
    """Where images and labels are in an item that is a mapping; None where `ProbeSet` knows."""
    if not isinstance(item, Mapping):
        return None
    found = {kind: next((name for name in names if name in item), "") for kind, names in _NAMES.items()}
    return {kind: name for kind, name in found.items() if name} or None


def _suited(probes: ProbeSet, module: LightningModule) -> Auditor:
    """An auditor of the module, or of the first part of it that takes the images."""
    parts = [name for name, part in module.named_children() if any(True for _ in part.parameters())]
    errors: list[XAICallbacksError] = []
    for select in (None, *parts):
        auditor = Auditor(probes, model=select)
        try:
            with without_logging(module):
                auditor.prepare(module)
            return auditor
        except (ConfigurationError, AuditError) as error:
            errors.append(error)
    raise errors[0]  # of the module itself
