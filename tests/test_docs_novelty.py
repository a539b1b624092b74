"""Every Python block of docs/novelty.md runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xai_callbacks import ProbeSet

PAGE = Path(__file__).resolve().parents[1] / "docs" / "novelty.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        return self.head(self.body(images))


def labelled(seed):
    images = torch.rand(100, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, torch.arange(100) % 10)


def digits(count, seed):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What the page takes for granted: data, a model, a Trainer."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    loader = DataLoader(digits(8, 4), batch_size=4)

    class Quiet(pl.Trainer):
        def __init__(self, **arguments):
            super().__init__(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False, **arguments)

        def fit(self, model, datamodule):
            super().fit(model, *datamodule)

    return {
        **{name: labelled(seed) for seed, name in enumerate(("val_set", "train_set", "other_set"))},
        "digits": ProbeSet.from_tensors(digits(6, 1)),
        "more_digits": ProbeSet.from_tensors(digits(40, 2)),
        "digit_loaders": (loader, loader),
        "Trainer": Quiet,
        "classifier": Net(),
        "images": labelled(5).tensors[0][:4],
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_yaml_block_makes_a_callback(tmp_path, monkeypatch):
    jsonargparse = pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    for name, count in (("digits", 4), ("more_digits", 9)):
        ProbeSet.from_tensors(digits(count, count)).save(f"probes/{name}")
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[pl.Callback])
    (callback,) = parser.instantiate_classes(parser.parse_object({"callbacks": yaml.safe_load(block)})).callbacks
    assert [score.name for score in callback.auditor.novelty] == ["reconstruction", "fisher"]
    assert callback.auditor.measures[-1].names == ("blur", "noise")
    assert callback.auditor.questions == ()
    assert len(callback.auditor.probes) == 4


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:The number of training batches")
def test_the_python_blocks_run_in_order(namespace):
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["reading"].squared_norms["head.weight"].shape == (4,)
    assert namespace["reading"].slow == {}
    assert "novelty/fisher/blur_5/auroc" in namespace["callback"].last_record.metrics
    constrained = namespace["Constrained"]()
    namespace["Trainer"](max_steps=2, enable_checkpointing=False).fit(
        constrained, (DataLoader(digits(8, 4), batch_size=4),)
    )
    assert float(constrained.constraint.count) == 2
