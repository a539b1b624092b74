"""Training on digits with a decoy, with the audit attached, and pictures of what it saw.

A small convolutional network learns handwritten digits. A patch in one corner of each image has a colour that agrees
with the digit for a share `strength` of the training images. The network may read the digit or the patch; validation
accuracy cannot tell which, as validation images are biased in the same way. The audit can: it asks the model about 40
images whose patch contradicts the digit, and measures where the answer comes from.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from xai_callbacks._lightning import Callback, LightningModule, Trainer, package_of, quiet
from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks import AuditCallback
from xai_callbacks.demo.digits import CLASS_NAMES, CUE_COLOURS, GROUP_NAMES, PROBE_FIELDS, DecoyDataModule, SmallCNN
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gallery import Gallery
from xai_callbacks.interventions.cues import PatchCue
from xai_callbacks.measures import Localization, Representations
from xai_callbacks.probes import ProbeSet
from xai_callbacks.trials import CueTrial

PROBES_PER_CLASS = 4


class Demonstration(NamedTuple):
    """A finished run: its data, the audit with its history, and the folder that has both of them and the weights."""

    data: DecoyDataModule
    audit: AuditCallback
    folder: Path


def demonstrate(
    strength: float = 0.95,
    *,
    epochs: int = 6,
    train_images: int = 3000,
    seed: int = 0,
    out: str | os.PathLike[str] = "runs/demo",
    on_step: Callable[[int, int], None] | None = None,
) -> Demonstration:
    """Train with the audit attached, on one thread of the CPU; a minute or two.

    The run is in a folder `<out>/strength-<strength>/version_<n>`: history and probes of the audit in `audit`, the last
    weights in `checkpoints/last.ckpt`, and logs for TensorBoard.

    Args:
        strength: Share of training images whose patch has the colour of the right class; 0.1 is chance.
        epochs: Training epochs.
        train_images: Training images.
        seed: Seed of data and training.
        out: Folder of all runs.
        on_step: Called with the number of training steps done, and of all, after each.
    """
    pl = package_of()
    with _calm(), _one_thread():
        pl.seed_everything(seed, verbose=False)
        data = DecoyDataModule(strength, train_images=train_images, seed=seed)
        probes = ProbeSet.from_dataset(
            data.conflict,
            per_class=PROBES_PER_CLASS,
            fields=PROBE_FIELDS,
            class_names=CLASS_NAMES,
            group_names=GROUP_NAMES,
        )
        colours = [[value / 255 for value in colour] for colour in CUE_COLOURS]
        trial = CueTrial(PatchCue(colours, CLASS_NAMES, at="spurious"))
        audit = AuditCallback(Auditor(probes, trials=[trial], measures=[Localization(), Representations()]))
        board = pl.loggers.TensorBoardLogger(out, name=f"strength-{strength:g}", default_hp_metric=False)
        folder = Path(board.log_dir)
        last = pl.callbacks.ModelCheckpoint(filename="last", save_weights_only=True)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[audit, last, *([] if on_step is None else [_Steps(on_step)])],
            logger=[board, pl.loggers.CSVLogger(board.log_dir, name="", version="csv")],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(SmallCNN(), datamodule=data)
    return Demonstration(data, audit, folder)


def save_pictures(done: Demonstration, folder: str | os.PathLike[str], probe: str | None = None) -> str:
    """Save the last pictures of one probe, and those of all, in a folder; return the name of that probe.

    Args:
        done: The run.
        folder: Made as needed.
        probe: Name of the probe; None for the first that the model takes for the class of its patch.

    Raises a `ConfigurationError` if that probe was not drawn.
    """
    assert done.audit.auditor is not None  # noqa: S101  # narrows the type
    drawn = {picture.tag: picture for picture in Gallery(done.audit.auditor.probes).draw(done.audit.history)}
    numbered = {tag.split("_", 2)[-1]: tag.partition("/")[2] for tag in drawn if tag.startswith("audit_panel/")}
    name = probe or _telling_probe(done, list(numbered))
    if name not in numbered:
        raise ConfigurationError(f"Expected `probe` to be one of {', '.join(sorted(numbered))}, but got {name!r}.")
    os.makedirs(folder, exist_ok=True)
    saved = {
        "panel": f"audit_panel/{numbered[name]}",
        "filmstrip": f"audit_filmstrip/{numbered[name]}",
        "most_novel": "audit_summary/most_novel_gradnorm",
        "looked_used": "audit_summary/cue_patch",
    }
    for kind, tag in saved.items():
        if tag in drawn:  # where all heatmaps are empty there is nothing to set against use
            Image.fromarray(drawn[tag].pixels).save(Path(folder) / f"{kind}.png", optimize=True)
    return name


def _telling_probe(done: Demonstration, drawn: list[str]) -> str:
    """The first drawn probe that the model takes for the class of its patch; failing that, the first drawn one."""
    conflict, record = done.data.conflict, done.audit.last_record
    cues = {conflict.name(index): int(conflict.cues[index]) for index in range(len(conflict))}
    answers = () if record is None or record.predictions is None else record.predictions.tolist()
    names = () if record is None else record.names
    fooled = [name for name, answer in zip(names, answers, strict=True) if name in drawn and answer == cues[name]]
    return [*fooled, *drawn][0]


class _Steps(Callback):
    """Tells how many training steps are done."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell."""
        self.tell(trainer.global_step, int(trainer.estimated_stepping_batches))


@contextmanager
def _calm() -> Iterator[None]:
    """Keep to ourselves what Lightning says about devices, workers and loggers."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: as fast for so small a network, and the figures do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
