"""Validation steps and models of all kinds, whose logits `GroupAccuracy` overhears, or says why not."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks.grouped import (
    AUDITED,
    IMAGES,
    WGA,
    Elsewhere,
    Grouped,
    agree,
    data,
    expected,
    fit,
    lively,
    parts,
    shown,
)
from tests.callbacks.runs import audit_warnings, caught, loader, rows, trainer
from tests.tiny import tiny_probes
from xai_callbacks import AuditCallback, GroupAccuracy
from xai_callbacks.metrics import GroupMetrics


class Pops(Grouped):
    """Takes what it needs out of the batch, and writes into its logits."""

    def forward(self, batch):
        return self.net(batch)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        logits = self(batch.pop("image"))
        loss = nn.functional.cross_entropy(logits, batch.pop("label"))
        logits.zero_()
        self.log("val_loss", loss, batch_size=len(batch.pop("place")))


class Dicts(torch.utils.data.Dataset):
    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return {"image": parts()[0][index], "label": parts()[1][index], "place": int(parts()[2][index])}


def test_step_that_takes_its_batch_apart_and_writes_into_its_logits_is_judged(tmp_path):
    one, _ = fit(
        tmp_path,
        GroupAccuracy("place"),
        module=Pops(lively(), lr=0.0),
        val=DataLoader(Dicts(), batch_size=4),
        num_sanity_val_steps=2,
    )
    assert float(one.callback_metrics["audit/group/count/cat_0"]) == 4
    assert shown(one)["group/accuracy_all"] == pytest.approx(
        expected(lively(), *parts())["group/accuracy_all"], rel=1e-6
    )


class OneLogit(nn.Module):
    """The log-odds of class 1 against 0."""

    def __init__(self, sigmoid, flat):
        super().__init__()
        self.net, self.sigmoid, self.flat = lively(1), sigmoid, flat

    def forward(self, images):
        outputs = self.net(images).sigmoid() if self.sigmoid else self.net(images)
        return outputs.squeeze(1) if self.flat else outputs


class ConvHead(nn.Module):
    """Ends in no linear layer."""

    def __init__(self, softmax):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.softmax = softmax
        with torch.no_grad():
            self.head.weight *= 30

    def forward(self, images):
        logits = self.head(self.features(images).relu()).mean(dim=(2, 3))
        return {"logits": logits.softmax(dim=1) if self.softmax else logits, "images": images}


def two_classes(net, images):
    """Logits of the two-class problem, by hand."""
    with torch.no_grad():
        odds = net.net.eval()(images)
    return torch.cat([torch.zeros_like(odds), odds], dim=1)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_one_sigmoid_output_is_two_classes(tmp_path, sigmoid, flat):
    class Binary(Grouped):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum()

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self(batch[0]).mean())

    images, labels, cues = parts()
    labels = (labels == 1).float()[:, None]
    net = OneLogit(sigmoid, flat)
    probes = tiny_probes(labels=torch.arange(6) % 2, class_names=["no", "yes"])
    watch = GroupAccuracy(2, min_count=1, each=False)
    callback = AuditCallback(probes, watches=[watch], on_error="raise", schedule=AUDITED)
    one = trainer(tmp_path, [callback], max_epochs=1)
    one.fit(Binary(net, lr=0.0), loader(2), data(images, labels, cues))

    metric = GroupMetrics(2, 2, min_count=1, per_group=False)
    metric.update(two_classes(net, images), labels[:, 0].long(), cues)
    agree(shown(one), metric.compute())


@pytest.mark.parametrize("softmax", [False, True])
def test_net_without_a_linear_head_is_judged_by_what_it_returns(tmp_path, softmax):
    class Dict(Grouped):
        def training_step(self, batch, batch_idx):
            return self(batch[0])["logits"].sum()

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self(batch[0])["logits"].mean())

    one, _ = fit(
        tmp_path, GroupAccuracy(2, min_count=1, each=False), module=Dict(ConvHead(softmax), lr=0.0), max_epochs=1,
        auditor={"output": "logits", "novelty": []},
    )  # fmt: skip
    logits = ConvHead(softmax=False)(parts()[0])["logits"]
    metric = GroupMetrics(3, 2, min_count=1, per_group=False)
    metric.update(logits, *parts()[1:])
    agree(shown(one), metric.compute())


def test_step_that_calls_a_part_of_the_module_is_judged_by_that(tmp_path):
    class Part(Grouped):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    one, _ = fit(tmp_path, GroupAccuracy(2, min_count=1, each=False), module=Part(lively(), lr=0.0))
    agree(shown(one), expected(lively(), *parts()))


def test_compiled_part_is_judged_by_what_the_module_returns(tmp_path):
    module = Grouped(torch.compile(lively(), backend="eager"), lr=0.0)
    one, _ = fit(tmp_path, GroupAccuracy(2, min_count=1, each=False), module=module, num_sanity_val_steps=1)
    agree(shown(one), expected(lively(), *parts()))


class Views(Grouped):
    def validation_step(self, batch, batch_idx):
        self(torch.cat([batch[0], batch[0]]))  # of another size: no view of these images
        logits = self(batch[0]) + self(batch[0].flip(-1) * 5)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))


def test_first_of_two_views_counts_and_that_is_told_once(tmp_path, caplog):
    with caplog.at_level("INFO"):
        one, _ = fit(tmp_path, GroupAccuracy(2, min_count=1, each=False), module=Views(lively(), lr=0.0))
    agree(shown(one), expected(lively(), *parts()))
    assert caplog.text.count("judges groups by the first call of the classifier") == 1


class Crops(Grouped):
    def validation_step(self, batch, batch_idx):
        logits = self(torch.cat([batch[0]] * 3)).unflatten(0, (3, -1)).mean(dim=0)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))


# torch's tracing of Lightning's own `self.log`.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Elsewhere, "it was not called, or returned nothing"),
        (Crops, "for 12, 6 images instead of those that have labels"),
        (lambda net, lr: torch.compile(Grouped(net, lr=lr), backend="eager"), "is compiled as a whole"),
    ],
    ids=["no call", "crops", "compiled"],
)
def test_logits_that_cannot_be_heard_are_told_once_and_values_are_nan(tmp_path, module, reason):
    checkpoint = ModelCheckpoint(tmp_path, monitor=WGA, save_top_k=-1)
    with caught() as found:
        one, callback = fit(
            tmp_path, GroupAccuracy(2, aligned=[0, 1, 1], min_count=1), checkpoint, module=module(lively(), lr=0.0),
            on_error="warn", schedule=AUDITED, enable_checkpointing=True, num_sanity_val_steps=1,
        )  # fmt: skip

    (message,) = audit_warnings(found)
    assert "training goes on" in message
    assert "return {'logits': logits} from `validation_step`" in message
    assert reason in message or reason.startswith("for 12")
    assert all(math.isnan(value) for value in shown(one).values())
    assert {"group/wga", "group/conflict_gap", "group/not_finite"} <= shown(one).keys()
    assert not [row for row in rows(tmp_path) if WGA in row]
    assert math.isnan(callback.last_record.metrics["group/wga"].value)
    assert one.global_step == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("base", [Crops, Elsewhere, Views])
@pytest.mark.parametrize("compiled", [False, True])
def test_step_may_return_its_logits_where_it_is_not_clear_which_they_are(tmp_path, caplog, base, compiled):
    class Returns(base):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            return {"logits": self.net(torch.cat([batch[0].flip(-1)] * 2))[: len(batch[0])]}

    images, labels, cues = parts()
    module = Returns(lively(), lr=0.0)
    with caplog.at_level("INFO"):
        one, _ = fit(
            tmp_path, GroupAccuracy(2, min_count=1, each=False), max_epochs=1,
            module=torch.compile(module, backend="eager") if compiled else module,
        )  # fmt: skip
    agree(shown(one), expected(lively(), images.flip(-1), labels, cues))
    assert "judges groups by the first call" not in caplog.text


@pytest.mark.gpu
def test_logits_on_an_accelerator_are_judged_there(tmp_path):
    one, _ = fit(
        tmp_path, GroupAccuracy(2, min_count=1, each=False), accelerator="gpu", precision="16-mixed", max_epochs=1
    )
    assert shown(one)["group/n_min"] == 3
    assert shown(one)["group/accuracy_all"] == pytest.approx(
        expected(lively(), *parts())["group/accuracy_all"], abs=1 / IMAGES
    )
