"""Several labels and several values, trained and audited on real images."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xai_callbacks import AuditCallback, Auditor, ProbeSet, Why, WhyNotCertain, WhyValueRatherThan
from xai_callbacks.metrics import relevance, relevance_mass

CLOTHES = ("top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class Lit(pl.LightningModule):
    def __init__(self, net, loss):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, _):
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 5e-3)


def fitted(model, callback, folder, images, truth, epochs):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=pl.loggers.TensorBoardLogger(folder, name="", version=""),
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
    )
    trainer.fit(
        model,
        DataLoader(TensorDataset(images, truth), 32, shuffle=True),
        DataLoader(TensorDataset(images[:64], truth[:64]), 64),
    )
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return trainer, events


def fashion(folder: Path, split: str, count: int):
    with gzip.open(folder / "fashion_mnist" / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16).reshape(count, 28, 28)
    with gzip.open(folder / "fashion_mnist" / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    return torch.from_numpy(pixels.copy()).float()[:, None] / 255, torch.from_numpy(labels.copy()).long()


def pairs(folder: Path, split: str, count: int):
    """Two pieces of clothing side by side, `(count, 1, 28, 56)`, and the labels of both, `(count, 10)`."""
    images, labels = fashion(folder, split, 2 * count)
    left, right = labels[:count], labels[count:]
    hot = torch.zeros(count, 10, dtype=torch.long)
    hot[torch.arange(count), left] = 1
    hot[torch.arange(count), right] = 1
    return torch.cat([images[:count], images[count:]], dim=3), hot, left, right


@pytest.mark.data
@pytest.mark.slow
def test_pairs_of_clothes_are_labelled_and_each_label_is_explained_on_its_own_half(shared_data, tmp_path):
    images, hot, *_ = pairs(shared_data, "train", 4000)
    shown, known, left, right = pairs(shared_data, "t10k", 96)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    loss = lambda logits, labels: nn.functional.binary_cross_entropy_with_logits(logits, labels.float())  # noqa: E731
    probes = ProbeSet.from_tensors(shown, known, class_names=CLOTHES)
    auditor = Auditor(probes, [Why(), Why("label"), Why("trousers"), WhyNotCertain()])
    callback = AuditCallback(auditor, max_panels=2)
    trainer, events = fitted(Lit(net, loss), callback, tmp_path, images, hot, epochs=6)
    record = callback.last_record
    assert record.predictions.shape == (96, 10)
    assert float(trainer.callback_metrics["audit/accuracy"]) > 0.86
    assert 0 < float(trainer.callback_metrics["audit/exact_match"]) < 1
    tags = events.Tags()
    assert {"audit/accuracy", "audit/exact_match", "audit/confidence"} <= set(tags["scalars"])
    assert any(tag.startswith("audit_panel/") for tag in tags["images"])
    # Of a pair of different pieces, the map of each label has most of its evidence on its own half.
    halves = torch.zeros(96, 28, 56, dtype=torch.bool)
    halves[:, :, :28] = True
    asked = Auditor(probes, [Why(name) for name in CLOTHES], novelty=[]).audit(net)
    maps = relevance(asked.heatmaps, (28, 56))
    sure = (left != right) & (asked.outputs > 0)[torch.arange(96), left] & (asked.outputs > 0)[torch.arange(96), right]
    assert sure.sum() >= 20
    for labels, side in ((left, halves), (right, ~halves)):
        mass = relevance_mass(maps[labels, torch.arange(96)], side)[sure]
        assert mass.nanmean() > 0.7
        assert (mass > 0.5).double().mean() > 0.85


class CNNIQA(nn.Module):
    """No-reference image quality (Kang et al., CVPR 2014): global max and min of one convolution, three layers."""

    def __init__(self, values):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 50, 7)
        self.fc1, self.fc2, self.fc3 = nn.Linear(100, 800), nn.Linear(800, 800), nn.Linear(800, values)

    def forward(self, images):
        features = self.conv1(images)
        pooled = torch.cat([features.amax(dim=(2, 3)), features.amin(dim=(2, 3))], dim=1)
        return self.fc3(self.fc2(self.fc1(pooled).relu()).relu())


def patches(folder: Path, count: int):
    """Grey patches of photos, blurred and noisy by known amounts, normalised as the net expects them."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    files = sorted((folder / "coco").rglob("*.jpg"))[:40]
    photos = [torch.from_numpy(np.array(Image.open(file).convert("L"))).float() / 255 for file in files]
    found, targets, shown = [], [], []
    for index in range(count):
        photo = photos[index % len(photos)]
        row, column = (int(torch.randint(side - 40, (), generator=generator)) for side in photo.shape)
        patch = photo[row : row + 32, column : column + 32][None, None]
        blur, noise = torch.rand(2, generator=generator).tolist()
        for _ in range(round(4 * blur)):
            patch = nn.functional.avg_pool2d(nn.functional.pad(patch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        patch = patch + 0.2 * noise * torch.randn(patch.shape, generator=generator)
        padded = nn.functional.pad(patch, (1, 1, 1, 1), mode="replicate")
        mean = nn.functional.avg_pool2d(padded, 3, 1)
        spread = (nn.functional.avg_pool2d(padded**2, 3, 1) - mean**2).clamp_min(0).sqrt()
        found.append((patch - mean) / (spread + 1))
        shown.append((patch[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).expand(-1, -1, 3))
        targets.append((round(4 * blur) / 4, noise))
    return torch.cat(found), torch.tensor(targets), torch.stack(shown)


@pytest.mark.data
@pytest.mark.slow
def test_a_net_of_image_quality_predicts_and_explains_two_values(shared_data, tmp_path):
    net = CNNIQA(2)
    state = load_file(shared_data / "weights" / "cnniqa_live.safetensors")
    net.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc3")}, strict=False)
    images, targets, shown = patches(shared_data, 400)
    probes = ProbeSet.from_tensors(images[:40], targets=targets[:40], target_names=["blur", "noise"], pixels=shown[:40])
    questions = [Why("noise"), WhyValueRatherThan("target", of="blur"), WhyValueRatherThan(0.0, of="noise")]
    callback = AuditCallback(Auditor(probes, questions), max_panels=1)
    trainer, events = fitted(Lit(net, nn.functional.mse_loss), callback, tmp_path, images, targets, epochs=3)
    record = callback.last_record
    assert record.predictions.shape == (40, 2)
    errors = (record.outputs - targets[:40]).abs().double()
    for key, expected in (("", errors.mean()), ("/blur", errors[:, 0].mean()), ("/noise", errors[:, 1].mean())):
        torch.testing.assert_close(
            trainer.callback_metrics[f"audit/absolute_error{key}"].double(), expected, rtol=1e-5, atol=1e-6
        )
    assert float(errors.mean()) < 0.25
    assert "audit/absolute_error/noise" in events.Tags()["scalars"]
    assert list(record.maps) == ["gradcam"]
    assert (record.heatmaps.flatten(2).abs().amax(dim=2) > 0).all()
    assert record.titles[0][0] == f"Why noise {float(record.outputs[0, 1]):.3g}?"
    # (y - v)^2 toward 0 is explained by 2 y times the map of y.
    toward = 2 * record.outputs[:, 1][:, None, None] * record.heatmaps[0]
    torch.testing.assert_close(record.heatmaps[2], toward, rtol=1e-4, atol=1e-5 * float(toward.abs().amax()))
