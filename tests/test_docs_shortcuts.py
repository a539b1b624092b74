"""Every Python block of docs/shortcuts.md runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xai_callbacks import ProbeSet

PAGE = Path(__file__).resolve().parents[1] / "docs" / "shortcuts.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:Not enough evidence")
def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    """What the page takes for granted: probes, a model, a datamodule."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 2
    core = torch.zeros(40, 16, 16, dtype=torch.bool)
    core[:, 5:11, 5:11] = True
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)

    class Quiet(pl.Trainer):
        def __init__(self, **arguments):
            super().__init__(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False, **arguments)

        def fit(self, model, datamodule):
            super().fit(model, *datamodule)

    monkeypatch.setattr(pl, "Trainer", Quiet)
    names = {
        "probes": ProbeSet.from_tensors(images, labels, masks={"core": core}),
        "training_probes": ProbeSet.from_tensors(images, labels),
        "model": Net(),
        "datamodule": (loader, loader),
    }
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    assert -1 <= names["monitor"].auditor.probes.images.min() <= 1
    assert "cue/patch/effect" in names["record"].metrics
    assert {"cue/patch/effect", "gradcam/why/shift_p/core", "group/wga"} <= {key.key for key in names["audit"].keys}
    assert len(names["power"].rows) == 5
