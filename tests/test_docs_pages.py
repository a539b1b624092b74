"""Every Python block of probes, metrics, isic, found_regions and compare runs, in order, in one namespace a page."""

import functools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import VisionDataset

from xai_callbacks import AuditCallback, Auditor, PatchCue, ProbeSet, Schedule

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(page, names):
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), names)
    return names


def squares(count=8):
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[: count // 2, 4:12, 4:12] = True
    return torch.rand(count, 3, 32, 32), torch.arange(count) // (count // 2), masks


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Birds(VisionDataset):
    """Items as docs/probes.md describes them, of two species on two backgrounds."""

    def __init__(self):
        super().__init__(root=".")

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image, mask = torch.full((3, 8, 8), index / 40), torch.ones(8, 8)
        named = {"y": index % 2, "background": index // 2 % 2, "filename": f"bird {index}"}
        return {"img": image, **named, "bird_mask": mask, "background_mask": None}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder of docs/probes.md."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "masks/core/cat/1.png", "masks/spurious/dog/1.png"):
        path = Path("probes", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(path)
    (table,) = re.findall(r"```csv\n(.*?)```", (DOCS / "probes.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    Path("probes/probes.csv").write_text(table, encoding="utf-8")


@pytest.mark.usefixtures("photos")
def test_probes():
    images, labels, masks = squares()
    val_set = TensorDataset(images, labels)
    names = run("probes.md", {
        "ProbeSet": ProbeSet, "val_set": val_set, "waterbirds": Birds(), "images": 4 * images - 2, "labels": labels,
        "core": masks,
    })  # fmt: skip
    assert names["probes"].fingerprint == ProbeSet.load("runs/7/probes.safetensors").fingerprint
    assert len(names["few"]) == 3
    assert len(blocks_of("probes.md")) == 5


def test_metrics(capsys):
    images, labels, masks = squares()
    auditor = Auditor(ProbeSet.from_tensors(images, labels, masks={"core": masks}))
    run("metrics.md", {"auditor": auditor, "model": net()})
    assert "share of the relevance in core" in capsys.readouterr().out


def test_isic():
    images, labels, masks = squares()
    probes = ProbeSet.from_tensors(images, labels, masks={"spurious": masks}, class_names=["benign", "melanoma"])
    names = run("isic.md", {"probes": probes, "model": net(), "epoch": 3})
    assert names["record"].metrics["cue/patch/effect_added"].valid == 4


def test_found_regions():
    images, labels, _ = squares()
    probes = ProbeSet.from_tensors(images, labels, class_names=["skin", "lesion"])
    names = run("found_regions.md", {"probes": probes, "model": net()})
    assert "sliding_window/why_lesion_rather_than_skin/found/count" in names["history"].last.metrics
    assert any(picture.tag.startswith("audit_panel") for picture in names["pictures"])


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, images):
        return self.net(images)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def test_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "my_project", SimpleNamespace(Net=Lit))
    images, labels, _ = squares()
    data = LightningDataModule()
    data.val_dataloader = lambda: DataLoader(TensorDataset(images, labels), batch_size=8)
    silent = dict.fromkeys(("enable_progress_bar", "enable_checkpointing"), False)
    quiet = functools.partial(Trainer, accelerator="cpu", default_root_dir=tmp_path, **silent)
    for name in ("before", "after"):
        trainer = quiet(logger=False)
        trainer.validate(Lit(), datamodule=data, verbose=False)
        trainer.save_checkpoint(f"{name}.ckpt")
    names = run("compare.md", {
        "probes": ProbeSet.from_tensors(images, labels), "cue": PatchCue([1.0, 0.0, 0.0], 0), "Trainer": quiet,
        "model": Lit(), "data": data, "AuditCallback": AuditCallback, "Schedule": Schedule,
    })  # fmt: skip
    assert names["found"].verdict[0] in capsys.readouterr().out
    assert Path("report.html").stat().st_size > 10_000
    assert names["audit"].last_record.checkpoint == "before.ckpt"
    assert names["audit"].last_record.logged.keys() == {"val_loss"}
