"""Four projects in public style, rebuilt small: `AuditCallback()` is added and nothing else."""

import sys

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.cli import LightningCLI
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from tests.callbacks.runs import trainer
from xai_callbacks import AuditCallback


def digits(count=64, size=28, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = 0.1 * torch.rand(count, channels, size, size, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = divmod(label, 2)
        images[row, :, top * size // 2 : (top + 1) * size // 2, left * size // 2 : (left + 1) * size // 2] += 0.8
    return TensorDataset(images, labels)


class SimpleDenseNet(nn.Module):
    """The MLP of a well-known template for Lightning and Hydra."""

    def __init__(self, input_size: int = 784, width: int = 32, output_size: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(input_size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, output_size)
        )

    def forward(self, x):
        return self.model(x.view(x.size(0), -1))


class LitModule(pl.LightningModule):
    """Its module, which takes a net and an optimizer."""

    def __init__(self, net: nn.Module, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self.forward(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/acc", (self.forward(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


class MLP(LitModule):
    """An MLP for LightningCLI, whose net is its own."""

    def __init__(self, width: int = 32, lr: float = 1e-2) -> None:
        super().__init__(SimpleDenseNet(width=width), lr)


class Digits(pl.LightningDataModule):
    """Splits one dataset, as most projects do."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        self.train, self.val = random_split(digits(), [48, 16], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size)


def ran(callback, audits):
    """The audits of a run that went through."""
    assert [record.epoch for record in callback.history] == audits
    assert callback.last_record.metrics["accuracy"].valid == len(callback.auditor.probes) > 8
    return callback.last_record


def test_hydra_with_an_mlp(tmp_path):
    from hydra.utils import instantiate

    here = f"{__name__}."
    config = {
        "net": {"_target_": here + "SimpleDenseNet", "width": 16},
        "data": {"_target_": here + "Digits"},
        "callbacks": [{"_target_": "xai_callbacks.AuditCallback"}],
    }
    callbacks = [instantiate(each) for each in config["callbacks"]]

    trainer(tmp_path, callbacks).fit(LitModule(instantiate(config["net"])), datamodule=instantiate(config["data"]))

    record = ran(callbacks[0], [0, 0, 1])
    assert not record.maps  # an MLP has no feature map
    assert "There are no heatmaps" in " ".join(record.notes)
    assert record.logged["val/acc"] >= 0


def test_lightning_cli_with_an_mlp(tmp_path, monkeypatch):
    settings = {
        "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": str(tmp_path), "logger": False,
        "callbacks": [{"class_path": "xai_callbacks.AuditCallback"}],
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": settings, "model": {"width": 16}}))
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use
    monkeypatch.setattr(sys, "argv", ["cli", "fit", "--config", str(config)])

    cli = LightningCLI(MLP, Digits, save_config_callback=None)

    ran(cli.trainer.callbacks[0], [0, 0])


class Pairs(Dataset):
    """Two classes with float labels, for one logit."""

    def __init__(self, count):
        self.images, labels = digits(count, size=32, channels=3).tensors
        self.labels = (labels > 1).float()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class FrozenResNet(pl.LightningModule):
    """A frozen backbone and one sigmoid logit."""

    def __init__(self):
        super().__init__()
        from torchvision.models import resnet18

        self.backbone = resnet18(weights=None)
        self.backbone.fc = nn.Identity()
        self.backbone.requires_grad_(False)
        self.classifier = nn.Linear(512, 1)

    def forward(self, x):
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(x)
        return torch.sigmoid(self.classifier(features))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.binary_cross_entropy(self(x).squeeze(1), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.classifier.parameters(), 1e-2)


def test_a_frozen_backbone_with_one_sigmoid_logit(tmp_path):
    callback = AuditCallback()

    trainer(tmp_path, [callback], max_epochs=1).fit(
        FrozenResNet(), DataLoader(Pairs(32), 16), DataLoader(Pairs(16), 16)
    )

    record = ran(callback, [0, 0])
    assert record.outputs.shape[1] == 2
    assert record.maps["gradcam"].heatmaps.isfinite().all()


class LossNet(pl.LightningModule):
    """A forward that takes a batch and returns a loss."""

    def __init__(self):
        super().__init__()
        self.metric = nn.CrossEntropyLoss()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )

    def forward(self, batch):
        x, y = batch
        return self.metric(self.encoder(x), y)

    def training_step(self, batch, batch_idx):
        return self(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_forward_that_takes_a_batch_and_returns_a_loss(tmp_path):
    callback = AuditCallback()

    trainer(tmp_path, [callback], max_epochs=1).fit(LossNet(), datamodule=Digits())

    record = ran(callback, [0, 0])
    assert record.settings["model"] == "encoder"
    assert record.maps["gradcam"].heatmaps.shape[0] == 3


def test_what_cannot_be_audited_is_told_and_trained(tmp_path, caplog):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(digits(16))

    callback = AuditCallback()
    with caplog.at_level("WARNING"):
        trainer(tmp_path, [callback], max_epochs=1).fit(LossNet(), DataLoader(Stream(), 8), DataLoader(Stream(), 8))

    assert callback.last_record is None
    assert "nothing is audited in this run. Expected a validation or training dataset" in caplog.text


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_probes_are_saved_beside_the_logs_and_read_again(tmp_path):
    first, second = AuditCallback(), AuditCallback()
    options = {"enable_checkpointing": True, "max_epochs": 1, "logger": False}
    run = trainer(tmp_path, [first], **options)
    run.fit(LossNet(), datamodule=Digits())
    path = run.checkpoint_callback.best_model_path

    trainer(tmp_path, [second], **{**options, "max_epochs": 2}).fit(LossNet(), datamodule=Digits(), ckpt_path=path)

    assert (tmp_path / "audit" / "probes.safetensors").is_file()
    assert second.auditor.probes.fingerprint == first.auditor.probes.fingerprint
    assert [(record.step, record.epoch) for record in second.history] == [(0, 0), (2, 0), (5, 1)]
    assert len({record.run for record in second.history}) == 1
