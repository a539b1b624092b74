"""Every Python block of the README runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xai_callbacks import History, ProbeSet

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.layer3(images).mean(dim=(2, 3)))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What the README takes for granted: a dataset, a model, loaders, a Trainer."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    val_set = TensorDataset(torch.rand(60, 3, 16, 16, generator=generator), torch.arange(60) % 10)
    val_set.classes = ["wolf", *(f"dog {index}" for index in range(1, 10))]
    loader = DataLoader(val_set, batch_size=20)
    model = Net()

    class Quiet(Trainer):
        def __init__(self, **arguments):
            super().__init__(
                max_epochs=1, accelerator="cpu", enable_progress_bar=False, log_every_n_steps=1, **arguments
            )

        def fit(self, model, datamodule):
            super().fit(model, *datamodule)

    def train_one_epoch(model, optimizer):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return {
        "val_set": val_set,
        "train_set": val_set,
        "unfamiliar": ProbeSet.from_tensors(torch.rand(8, 3, 16, 16, generator=generator)),
        "model": model,
        "datamodule": (loader, loader),
        "Trainer": Quiet,
        "ModelCheckpoint": ModelCheckpoint,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "train_one_epoch": train_one_epoch,
    }


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_python_blocks_run_in_order(namespace, capsys):
    assert len(BLOCKS) == 8
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["record"].metrics["accuracy"].valid == 40
    assert "`layer3`" in capsys.readouterr().out
    assert list(Path("runs/plain").glob("events*"))
    assert len(History("lightning_logs/version_0/audit/history")) == 2
