"""The training that `bench_interference.py` repeats, and the snapshot it takes of how that training ended.

One small residual network (torchvision's own `BasicBlock`: BatchNorm, in-place ReLU, `out += identity`) with dropout
learns scikit-learn's digits under random augmentation. Everything is seeded, on one CPU thread, so that two runs with
nothing attached end in exactly the same state; `bench_interference.py` checks that before it blames anybody.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

Hook = Literal["on_validation_end", "on_train_epoch_end"]

USER_METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")


@dataclass(frozen=True)
class Scenario:
    """One way of training, and the hook from which a plain callback calls its explainer."""

    name: str
    title: str
    hook: Hook
    epochs: int = 4
    accumulate: int = 1
    validate: bool = True
    validate_every: int | None = None
    frozen: bool = False


SCENARIOS = (
    Scenario("plain", "validation each epoch; called at on_validation_end", "on_validation_end"),
    Scenario(
        "accumulation",
        "4 batches a step, validation every 3 batches (gradients pending); called at on_validation_end",
        "on_validation_end",
        accumulate=4,
        validate_every=3,
    ),
    Scenario(
        "train-epoch-end", "no validation loader; called at on_train_epoch_end", "on_train_epoch_end", validate=False
    ),
    Scenario(
        "frozen",
        "only the head is trained, backbone in eval mode; called at on_train_epoch_end",
        "on_train_epoch_end",
        validate=False,
        frozen=True,
    ),
)


@dataclass(frozen=True)
class Digits:
    """Images are `(N, 3, 32, 32)` in [0, 1]; `probes` are what every tool is asked to explain."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @property
    def probes(self) -> tuple[Tensor, Tensor]:
        """The first eight validation images and their labels."""
        return self.val[0][:8], self.val[1][:8]

    @property
    def background(self) -> Tensor:
        """The reference images that SHAP-like methods ask for."""
        return self.train[0][:16]


def load_digits(train: int = 288, val: int = 96) -> Digits:
    """Real handwritten digits bundled with scikit-learn (no download), enlarged from 8 to 32 px."""
    from sklearn.datasets import load_digits as bundled

    bunch = bundled()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=32, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    end = train + val
    return Digits((images[:train].clone(), labels[:train]), (images[train:end].clone(), labels[train:end]))


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Random shift, rotation and contrast at each read, drawn from the global torch RNG."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.augment = v2.Compose([v2.RandomAffine(15, translate=(0.1, 0.1)), v2.ColorJitter(contrast=0.3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.augment(self.images[index]), self.labels[index]


class SmallResNet(nn.Module):
    """A stem and three of torchvision's residual blocks; the last feature map is `(N, 64, 4, 4)` for 32 px images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            BasicBlock(16, 16),
            BasicBlock(16, 32, 2, nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))),
            BasicBlock(32, 64, 2, nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of images `(N, 3, H, W)`."""
        logits: Tensor = self.head(self.dropout(self.pool(self.backbone(images)).flatten(1)))
        return logits


class DigitsModule(LightningModule):
    """What a user would write, plus two lists that only read: each step's loss and which layers were in eval mode."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.net = SmallResNet()
        if frozen:
            self.net.backbone.requires_grad_(False).eval()
        self.train_acc = MulticlassAccuracy(10, average="micro")
        self.val_acc = MulticlassAccuracy(10, average="micro")
        self.adam: torch.optim.Adam | None = None
        self.losses: list[float] = []
        self.eval_layers: list[frozenset[str]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)`."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        images, labels = batch
        self.eval_layers.append(layers_in_eval(self.net))
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.losses.append(loss.item())
        self.train_acc(logits, labels)
        self.log("train_loss", loss)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_acc", self.val_acc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, so that there is optimizer state to compare."""
        self.adam = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=2e-3)
        return self.adam


class MemoryLogger(Logger):
    """Keeps every logged number: `series[key]` is a list of `(step, value)`."""

    def __init__(self) -> None:
        super().__init__()
        self.series: dict[str, list[tuple[int, float]]] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "memory"

    @property
    def version(self) -> str:
        """Version of the run."""
        return "0"

    @property
    def experiment(self) -> None:
        """Nothing that could draw; TensorBoard is attached beside this logger and takes the pictures."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters do not matter here."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append each value."""
        for key, value in metrics.items():
            self.series.setdefault(key, []).append((-1 if step is None else step, float(value)))


@dataclass(frozen=True)
class Snapshot:
    """All that is compared. Tensors are copies; RNG streams are digests of their whole state."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metrics: dict[str, Tensor]
    losses: Tensor
    rng: dict[str, str]
    eval_layers_by_step: tuple[frozenset[str], ...]
    eval_layers: frozenset[str]
    hooks: dict[str, int]
    attributes: frozenset[str]
    requires_grad: frozenset[str]
    grads: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """How one training ended, and what the attached tool did.

    Attributes:
        snapshot: the state after training, or at the moment it crashed.
        crash: the error that ended the training, if one did.
        errors: what the tool raised; a plain callback catches that and lets training go on.
        deliveries: how often the tool returned something.
        seconds: wall time.
    """

    snapshot: Snapshot
    crash: str | None = None
    errors: tuple[str, ...] = ()
    deliveries: int = 0
    seconds: float = field(default=0.0, compare=False)


def layers_in_eval(net: nn.Module) -> frozenset[str]:
    """Names of all submodules of `net` that are in eval mode; the root is called `.`."""
    return frozenset(name or "." for name, module in net.named_modules() if not module.training)


def rng_digests() -> dict[str, str]:
    """The whole state of the three CPU random streams, hashed."""
    _, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "python": repr(random.getstate()).encode(),
        "numpy": np.asarray(keys).tobytes() + repr(rest).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    return {name: hashlib.sha256(state).hexdigest() for name, state in states.items()}


def count_hooks(net: nn.Module) -> dict[str, int]:
    """Hooks on each submodule and parameter of `net`, where there are any."""
    owners: list[tuple[str, object]] = [*net.named_modules(), *net.named_parameters()]
    counts: dict[str, int] = {}
    for name, owner in owners:
        tables = [value for key, value in vars(owner).items() if key.endswith("_hooks") and isinstance(value, dict)]
        if isinstance(owner, Tensor):
            tables = [owner._backward_hooks or {}, getattr(owner, "_post_accumulate_grad_hooks", None) or {}]
        if any(tables):
            counts[name or "."] = sum(len(table) for table in tables)
    return counts


def take_snapshot(module: DigitsModule, logger: MemoryLogger) -> Snapshot:
    """Copy everything that is compared, right after `fit`."""
    rng = rng_digests()
    net = module.net
    state = [module.adam.state_dict()["state"]] if module.adam is not None else []
    return Snapshot(
        parameters={name: p.detach().clone() for name, p in net.named_parameters()},
        buffers={name: b.detach().clone() for name, b in net.named_buffers()},
        optimizer={
            f"{number}.{index}.{key}": torch.as_tensor(value).clone()
            for number, entries in enumerate(state)
            for index, entry in entries.items()
            for key, value in entry.items()
        },
        metrics={
            key: torch.tensor(logger.series[key], dtype=torch.float64) for key in USER_METRICS if key in logger.series
        },
        losses=torch.tensor(module.losses, dtype=torch.float64),
        rng=rng,
        eval_layers_by_step=tuple(module.eval_layers),
        eval_layers=layers_in_eval(net),
        hooks=count_hooks(net),
        attributes=frozenset(f"{name}.{key}" for name, m in net.named_modules() for key in vars(m)),
        requires_grad=frozenset(name for name, p in net.named_parameters() if p.requires_grad),
        grads={name: p.grad.detach().clone() for name, p in net.named_parameters() if p.grad is not None},
    )


def train(scenario: Scenario, attach: Callable[[Digits, Hook], Callback] | None = None, seed: int = 0) -> Run:
    """Train once with, or without, one callback attached.

    An error that escapes the callback, or that the callback's traces cause later, ends the training as it would for a
    user; the state at that moment is what gets compared.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    seed_everything(seed, workers=True, verbose=False)
    digits = load_digits()
    module = DigitsModule(scenario.frozen)
    train_loader = DataLoader(Augmented(*digits.train), batch_size=24, shuffle=True)
    val_loader = DataLoader(TensorDataset(*digits.val), batch_size=48) if scenario.validate else None
    memory = MemoryLogger()
    callback, crash = None, None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            callback = attach(digits, scenario.hook) if attach is not None else None
            trainer = make_trainer(scenario, [memory, TensorBoardLogger(folder)], callback)
            trainer.fit(module, train_loader, val_loader)
        except Exception as error:
            crash = first_line(error)
        snapshot = take_snapshot(module, memory)
    errors = tuple(getattr(callback, "errors", ()))
    return Run(snapshot, crash, errors, count_deliveries(callback, memory), time.perf_counter() - started)


def make_trainer(scenario: Scenario, loggers: list[Logger], callback: Callback | None) -> Trainer:
    """A trainer without bars and checkpoints; all else is Lightning's default."""
    return Trainer(
        max_epochs=scenario.epochs,
        accumulate_grad_batches=scenario.accumulate,
        val_check_interval=scenario.validate_every,
        accelerator="cpu",
        devices=1,
        logger=loggers,
        callbacks=[callback] if callback is not None else None,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def count_deliveries(callback: Callback | None, logger: MemoryLogger) -> int:
    """Successful calls of a plain callback; for one that logs by itself, the longest series it added."""
    calls = getattr(callback, "calls", None)
    if calls is not None:
        return int(calls)
    return max((len(series) for key, series in logger.series.items() if key not in {*USER_METRICS, "epoch"}), default=0)


def first_line(error: BaseException) -> str:
    """`Type: first line of the message`, for a table."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
