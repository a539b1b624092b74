"""Metrics by group over the whole validation set, in real trainers: what is counted, when, and what is said if not."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import (
    PACKAGES,
    audit_warnings,
    caught,
    loader,
    module_class,
    rows,
    steps_of,
    trainer,
)
from tests.tiny import CLASSES, pictures, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import AuditCallback, ConfigurationError, ProbeSet
from xai_callbacks.callbacks import Group
from xai_callbacks.callbacks.answer_store import AnswerStore
from xai_callbacks.callbacks.batches import read_integers, read_labels
from xai_callbacks.metrics import GroupMetrics
from xai_callbacks.metrics.group_sums import Answers

AUDITED = {"every_n_epochs": 1}
IMAGES = 22  # the last batch of four is short
WGA, GAP = "audit/group/wga", "audit/group/conflict_gap"


def grouped_module(name="pytorch_lightning"):
    class Grouped(module_class(name)):
        """Batches are (images, labels, cues); logits by `forward`."""

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            logits = self(batch[0])
            if dataloader_idx == 0:
                self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), add_dataloader_idx=False)

    return Grouped


Grouped = grouped_module()


def lively(classes=3):
    """A net whose predictions differ from image to image, which training at a rate of zero leaves as it is."""
    net = tiny_net(classes=classes)
    net[1].momentum = net[5].p = 0.0
    with torch.no_grad():
        net[6].weight *= 30
    return net


def parts(images=IMAGES, seed=6):
    cues = torch.arange(images) // 2 % 2
    return pictures(images, seed=seed), torch.arange(images) % 3, cues


def data(*tensors, batch_size=4):
    return DataLoader(TensorDataset(*(tensors or parts())), batch_size=batch_size)


def fit(folder, group, *others, module=None, val=None, audit=None, ckpt_path=None, **options):
    """Two epochs of two batches, at a rate of zero and without audits unless told otherwise."""
    given = {"max_panels": 0, "on_error": "raise", "every_n_epochs": None, "at_start": False, **(audit or {})}
    callback = AuditCallback(tiny_probes(), group=group, **given)
    one = trainer(folder, [callback, *others], **options)
    module = Grouped(lively(), lr=0.0) if module is None else module
    with warnings.catch_warnings():
        for noise in ("Checkpoint directory .* exists and is not empty", "Be aware that when using `ckpt_path`"):
            warnings.filterwarnings("ignore", message=noise)
        one.fit(module, loader(2), data() if val is None else val, ckpt_path=ckpt_path)
    return one, callback


def expected(net, images, labels, cues, *, aligned=None, min_count=1, per_group=False):
    """By the metric, from the net in eval mode."""
    metric = GroupMetrics(3, 2, aligned, min_count=min_count, per_group=per_group)
    with torch.no_grad():
        metric.update(net.eval()(images), labels, cues)
    return metric.compute()


def shown(one):
    """The values of the groups in `callback_metrics`."""
    return {
        key.removeprefix("audit/"): float(value)
        for key, value in one.callback_metrics.items()
        if key.startswith("audit/group/")
    }


def agree(found, wanted):
    """All of `wanted` that has no interval of its own, in single precision."""
    wanted = {key: value for key, value in wanted.items() if not key.endswith(("_low", "_high"))}
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6, nan_ok=True)


# ---- the values


@pytest.mark.parametrize("name", PACKAGES)
def test_whole_validation_set_is_judged_at_no_extra_forward(tmp_path, name):
    module = grouped_module(name)(lively())
    seen = []
    module.net[0].register_forward_hook(lambda _module, given, _output: seen.append(len(given[0])))
    callback = AuditCallback(
        tiny_probes(), group=Group(2, aligned=[0, 1, 1], min_count=1, each=False), every_n_epochs=None, at_start=False,
        on_error="raise",
    )  # fmt: skip
    callback.auditor.prepare(module)
    look = sum(seen)
    # What `choose_layer` says it costs, the trace, and one try of everything; nothing of it goes with the images.
    assert look <= 2 * 17 + 6 + 4 * 2
    seen.clear()
    one = trainer(tmp_path, [callback], name)
    one.fit(module, loader(2), data())

    # The first look at two probes, and what the user's own steps run: nothing else.
    assert sum(seen) == look + 2 * (8 + IMAGES)
    agree(shown(one), expected(module.net, *parts(), aligned=[0, 1, 1]))
    assert steps_of(tmp_path, WGA) == steps_of(tmp_path, "val_loss") == [1, 3]


def test_each_group_has_its_keys_by_name_where_there_are_few(tmp_path):
    one, callback = fit(tmp_path, Group(2, cue_names=["land", "open water"], min_count=1), audit=AUDITED)

    wanted = expected(lively(), *parts(), per_group=True)
    for label, name in enumerate(CLASSES):
        for cue, place in enumerate(("land", "open_water")):
            for what in ("accuracy", "count", "ece"):
                found = float(one.callback_metrics[f"audit/group/{what}/{name}_{place}"])
                assert found == pytest.approx(wanted[f"group/{what}/{label}_{cue}"], nan_ok=True)
    estimate = callback.last_record.metrics["group/accuracy/owl_land"]
    assert (estimate.valid, estimate.low <= estimate.value <= estimate.high) == (4, True)


def test_many_groups_are_listed_only_where_that_is_asked_for(tmp_path):
    images, labels, _ = parts()
    val = data(images, labels, torch.arange(IMAGES) % 6)  # 18 groups
    for each, listed in ((None, 0), (True, 18), (False, 0)):
        one, _ = fit(tmp_path / str(each), Group(2, each=each), val=val, max_epochs=1)
        assert len([key for key in shown(one) if key.startswith("group/accuracy/")]) == listed


def test_interval_and_values_are_in_the_record_and_logged_once(tmp_path):
    one, callback = fit(tmp_path, Group(2, min_count=1), logger="tensorboard", audit={"max_panels": 1, **AUDITED})

    record, events = callback.last_record, read_events(tmp_path / "tb")
    estimate = record.metrics["group/wga"]
    assert (estimate.value, record.step) == (pytest.approx(float(one.callback_metrics[WGA])), 3)
    assert "accuracy" in record.metrics
    for end in ("low", "high"):
        scalars = events.Scalars(f"audit_detail/group/wga/{end}")
        assert [event.value for event in scalars] == pytest.approx([getattr(estimate, end)] * 2)
    assert scalar_steps(events, WGA) == [1, 3]
    page = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert b"audit/group/wga" in page
    with torch.no_grad():
        confident = lively().eval()(tiny_probes().images).softmax(dim=1).amax(dim=1).mean()
    assert record.metrics["confidence"].value == pytest.approx(float(confident), rel=1e-5)


def test_record_of_an_audit_elsewhere_holds_no_groups(tmp_path):
    _, callback = fit(tmp_path, Group(2), audit={"every_n_train_steps": 3})
    assert not any(key.startswith("group/") for key in callback.last_record.metrics)


def test_validation_without_an_audit_is_judged_all_the_same(tmp_path):
    one, callback = fit(tmp_path, Group(2), audit={"every_n_epochs": 2}, max_epochs=3)
    assert steps_of(tmp_path, WGA.replace("wga", "n_min")) == [1, 3, 5]
    assert callback.last_record.step == 3
    assert "group/n_min" in callback.last_record.metrics
    assert float(one.callback_metrics["audit/group/n_min"]) == 3


def test_checkpoint_can_monitor_the_worst_group(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=WGA, mode="max", filename="{epoch}")
    fit(
        tmp_path, Group(2, min_count=1), checkpoint, module=Grouped(lively(), lr=0.3), max_epochs=3,
        enable_checkpointing=True,
    )  # fmt: skip
    accuracies = [float(row[WGA]) for row in rows(tmp_path) if WGA in row]
    assert len(accuracies) == 3
    assert float(checkpoint.best_model_score) == pytest.approx(max(accuracies))


def test_part_of_the_validation_set_is_judged_where_lightning_takes_a_part(tmp_path):
    one, _ = fit(tmp_path, Group(2, min_count=1, each=False), limit_val_batches=2)
    agree(shown(one), expected(lively(), *(part[:8] for part in parts())))


def test_mixed_precision_is_judged_by_the_logits_of_the_step(tmp_path):
    one, _ = fit(tmp_path, Group(2, min_count=1, each=False), precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        wanted = expected(lively(), *parts())
    agree(shown(one), wanted)


def test_several_dataloaders_are_judged_together_or_one_alone(tmp_path):
    first, second = parts(10, seed=6), parts(7, seed=8)
    together, _ = fit(tmp_path / "all", Group(2, min_count=1, each=False), val=[data(*first), data(*second)])
    agree(shown(together), expected(lively(), *(torch.cat(both) for both in zip(first, second, strict=True))))

    alone, _ = fit(
        tmp_path / "one", Group(2, min_count=1, each=False, dataloader=1), val=[data(*first[:2]), data(*second)]
    )
    agree(shown(alone), expected(lively(), *second))


def test_number_of_cues_is_learnt_and_never_falls(tmp_path):
    class Later(Callback):
        """Validation images change from epoch to epoch."""

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                cues[:] = torch.tensor([0, 2, 1][trainer.current_epoch])

    images, labels, cues = parts(12)
    fit(tmp_path, Group(2, each=True, min_count=1), Later(), val=data(images, labels, cues), max_epochs=3)
    empty = [float(row["audit/group/empty"]) for row in rows(tmp_path) if "audit/group/empty" in row]
    # Three labels: two cues, then a third alone, then the second alone of three.
    assert empty == [0, 6, 6]


def test_logits_that_are_not_finite_and_unknown_cues_are_counted(tmp_path):
    images, labels, cues = parts()
    images[::5], cues[1] = math.nan, -1
    one, _ = fit(tmp_path, Group(2, min_count=1, each=False), val=data(images, labels, cues))
    found = shown(one)
    assert (found.pop("group/not_finite"), found.pop("group/unknown_cue")) == (5, 1)
    left = images.flatten(1).isfinite().all(dim=1) & (cues >= 0)
    wanted = expected(lively(), images[left], labels[left], cues[left])
    assert found == pytest.approx({key: wanted[key] for key in found}, rel=1e-6, abs=1e-6, nan_ok=True)


# ---- batches


Pair = namedtuple("Pair", ["image", "target", "place"])
META = SimpleNamespace(place=torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ([0, 0, torch.tensor([1, 0])], 2),
        ([0, 0, torch.tensor([1, 0])], -1),
        ({"place": torch.tensor([1, 0])}, "place"),
        ({"place": {"kind": torch.tensor([1, 0])}}, "place.kind"),
        ({"place.kind": torch.tensor([1, 0])}, "place.kind"),
        ({7: torch.tensor([1, 0])}, 7),
        ((0, {"place": torch.tensor([1, 0])}), "1.place"),
        ((0, META), "1.place"),
        (Pair(0, 0, torch.tensor([1, 0])), "place"),
        ({"meta": META}, lambda batch: batch["meta"].place),
        ([torch.tensor([True, False])], 0),
        ([torch.tensor([[1.0], [0.0]])], 0),
        ([torch.tensor([1, 0], dtype=torch.uint8)], 0),
        ([[1, 0]], 0),
        ([[torch.tensor(1), torch.tensor(0)]], 0),
    ],
)
def test_cues_are_read_wherever_they_are(batch, where):
    values = read_integers(batch, where, "cue")
    assert (values.tolist(), values.dtype) == ([1, 0], torch.int64)


@pytest.mark.parametrize("name", ["label", "labels", "target", "targets", "y"])
def test_labels_are_found_under_their_usual_names(name):
    labels = torch.tensor([2, 0])
    assert read_labels({"image": torch.zeros(2, 3, 8, 8), name: labels}, None).tolist() == [2, 0]
    assert read_labels((torch.zeros(2, 3, 8, 8), labels, torch.zeros(2)), None).tolist() == [2, 0]
    assert read_labels(Pair(0, labels, 0), None).tolist() == [2, 0]
    assert read_labels({"mine": labels, "y": None}, "mine").tolist() == [2, 0]


@pytest.mark.parametrize(
    ("batch", "where", "message"),
    [
        ({"image": torch.zeros(2, 3)}, "place", r"got 'place' for a dict of \{image: a tensor \(2, 3\)\}"),
        ([torch.zeros(2), torch.zeros(2)], 2, r"got 2 for a list of \[a tensor \(2,\), a tensor \(2,\)\].*dataloader="),
        (torch.zeros(2, 3), "2", "for a tensor"),
        ((0, META), "1.plaice", "'1.plaice'"),
        ({"place": torch.zeros(2, 3)}, "place", r"one integer an image, \(N,\), but got a tensor \(2, 3\)"),
        ({"place": torch.tensor([0.5, 1.0])}, "place", "whole numbers, but got fractions"),
        ({"place": torch.tensor([math.nan])}, "place", "fractions or NaN"),
        ({"place": ["sea", "land"]}, "place", "function of the batch that returns them"),
        ({}, lambda batch: batch["place"], "raised KeyError: 'place'. The batch is a dict"),
    ],
)
def test_cues_that_cannot_be_read_are_named_with_what_there_is(batch, where, message):
    with pytest.raises(ConfigurationError, match=message):
        read_integers(batch, where, "cue")


def test_missing_labels_list_what_the_batch_has():
    with pytest.raises(ConfigurationError, match=r"label, labels, target, targets, y, but got a dict of \{image: 3\}"):
        read_labels({"image": 3}, None)


def test_answers_do_not_depend_on_how_batches_fill_the_buffer():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5_000, 700, generator=generator)
    labels, cues = (torch.randint(high, (5_000,), generator=generator) for high in (700, 3))
    store = AnswerStore()
    for size in (7, 1_400, 2_000, 90, 1_503):  # the buffer holds 1,497
        start = 0 if store.all() is None else len(store.all().labels)
        rows = slice(start, start + size)
        store.add(logits[rows], labels[rows], cues[rows])

    found = store.all()
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.cues, cues)
    for given, wanted in zip(found.answers, Answers.of(logits, labels), strict=True):
        assert torch.equal(given, wanted)
    store.clear()
    assert store.all() is None


# ---- steps and models of all kinds


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
        tmp_path, "place", module=Pops(lively(), lr=0.0), val=DataLoader(Dicts(), batch_size=4), num_sanity_val_steps=2
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
    callback = AuditCallback(probes, group=Group(2, min_count=1, each=False), on_error="raise", at_start=False)
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
        tmp_path, Group(2, min_count=1, each=False), module=Dict(ConvHead(softmax), lr=0.0), max_epochs=1,
        audit={"output": "logits", "novelty": []},
    )  # fmt: skip
    logits = ConvHead(softmax=False)(parts()[0])["logits"]
    metric = GroupMetrics(3, 2, min_count=1, per_group=False)
    metric.update(logits, *parts()[1:])
    agree(shown(one), metric.compute())


def test_step_that_calls_a_part_of_the_module_is_judged_by_that(tmp_path):
    class Part(Grouped):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    one, _ = fit(tmp_path, Group(2, min_count=1, each=False), module=Part(lively(), lr=0.0))
    agree(shown(one), expected(lively(), *parts()))


def test_compiled_part_is_judged_by_what_the_module_returns(tmp_path):
    module = Grouped(torch.compile(lively(), backend="eager"), lr=0.0)
    one, _ = fit(tmp_path, Group(2, min_count=1, each=False), module=module, num_sanity_val_steps=1)
    agree(shown(one), expected(lively(), *parts()))


class Views(Grouped):
    def validation_step(self, batch, batch_idx):
        self(torch.cat([batch[0], batch[0]]))  # of another size: no view of these images
        logits = self(batch[0]) + self(batch[0].flip(-1) * 5)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))


def test_first_of_two_views_counts_and_that_is_told_once(tmp_path, caplog):
    with caplog.at_level("INFO"):
        one, _ = fit(tmp_path, Group(2, min_count=1, each=False), module=Views(lively(), lr=0.0))
    agree(shown(one), expected(lively(), *parts()))
    assert caplog.text.count("judges groups by the first call of the classifier") == 1


class Elsewhere(Grouped):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", batch[0].mean(), add_dataloader_idx=False)


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
            tmp_path, Group(2, aligned=[0, 1, 1], min_count=1), checkpoint, module=module(lively(), lr=0.0),
            audit={"on_error": "warn", **AUDITED}, enable_checkpointing=True, num_sanity_val_steps=1,
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
            tmp_path, Group(2, min_count=1, each=False), max_epochs=1,
            module=torch.compile(module, backend="eager") if compiled else module,
        )  # fmt: skip
    agree(shown(one), expected(lively(), images.flip(-1), labels, cues))
    assert "judges groups by the first call" not in caplog.text


@pytest.mark.gpu
def test_logits_on_an_accelerator_are_judged_there(tmp_path):
    one, _ = fit(tmp_path, Group(2, min_count=1, each=False), accelerator="gpu", precision="16-mixed", max_epochs=1)
    assert shown(one)["group/n_min"] == 3
    assert shown(one)["group/accuracy_all"] == pytest.approx(
        expected(lively(), *parts())["group/accuracy_all"], abs=1 / IMAGES
    )


# ---- mistakes


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("place", r"got 'place' for a list of \[a tensor \(4, 3, 8, 8\), a tensor \(4,\), a tensor \(4,\)\]"),
        (Group(2, label=0), r"`label=0` to lead to one integer an image"),
        (Group(2, label=lambda batch: batch[1][1:]), "as many cues as labels, but got 4 and 3"),
        (Group(2, num_cues=1), r"`cues` to be in \[-1, 1\), but got 0 to 1"),
        (Group(2, label=lambda batch: batch[1] + 1), r"`labels` to be in \[0, 3\), but got 1 to 3"),
        (Group(lambda batch: batch[2] * 300), r"\[-1, 256\), but got 0 to 300. .* say `num_cues=`"),
        (Group(2, aligned=[0, 1]), r"for each of 3 labels, but got \[0, 1\]"),
        (Group(2, train_counts=[[1, 2], [3, 4]]), r"`train_counts` to be integers \(K, C\) \(3, 2\)"),
    ],
)
def test_mistakes_come_to_light_in_the_sanity_check_whatever_on_error_says(tmp_path, group, message):
    steps = []

    class Steps(Callback):
        def on_train_batch_start(self, *_):
            steps.append(1)

    module = Grouped(lively())
    with pytest.raises(ConfigurationError, match=message):
        fit(tmp_path, group, Steps(), module=module, audit={"on_error": "warn"}, num_sanity_val_steps=1)
    assert steps == []
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("group", [Group(2, num_cues=1), Group("place"), Group(2, aligned=[0, 1])])
def test_mistakes_without_a_sanity_check_are_warned_of_once_and_nothing_is_counted(tmp_path, group):
    with caught() as found:
        one, _ = fit(tmp_path, group, audit={"on_error": "warn"}, max_epochs=3)
    assert len(audit_warnings(found)) == 1
    assert one.global_step == 6
    assert math.isnan(shown(one)["group/accuracy_all"])
    with pytest.raises(ConfigurationError):
        fit(tmp_path / "raise", group)


def test_one_bad_batch_spoils_its_pass_and_no_other(tmp_path):
    def place(batch):
        passes.append(len(batch[1]))
        if len(passes) == 8:
            raise OSError("the table of places is locked")
        return batch[2]

    passes = []
    with caught() as found:
        fit(tmp_path, Group(place, min_count=1), audit={"on_error": "warn"}, max_epochs=3)
    (message,) = audit_warnings(found)
    assert "raised OSError: the table of places is locked" in message
    assert steps_of(tmp_path, WGA) == [1, 5]


def test_monitors_see_nan_and_not_the_last_pass_where_a_pass_is_spoilt(tmp_path):
    class Look(Callback):
        def __init__(self):
            self.seen = []

        def on_validation_end(self, trainer, pl_module):
            self.seen.append(float(trainer.callback_metrics["audit/group/accuracy/cat_0"]))

    class Fails(Elsewhere):
        def validation_step(self, batch, batch_idx):
            step = Elsewhere if self.current_epoch == 1 else Grouped
            return step.validation_step(self, batch, batch_idx)

    look = Look()
    with caught():
        fit(tmp_path, Group(2), look, module=Fails(lively(), lr=0.0), audit={"on_error": "warn"}, max_epochs=3)
    assert [math.isnan(value) for value in look.seen] == [False, True, False]


def test_failing_audit_leaves_the_groups_alone(tmp_path):
    class Sick(Grouped):
        def forward(self, images):
            logits = super().forward(images)
            return logits * math.nan if len(images) == 6 else logits  # as many as there are probes

    with caught() as found:
        one, _ = fit(
            tmp_path,
            Group(2, min_count=1, each=False),
            module=Sick(lively(), lr=0.0),
            audit={"on_error": "warn", **AUDITED},
        )
    assert "AuditError" in audit_warnings(found)[0]
    agree(shown(one), expected(lively(), *parts()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cue": None}, "`cue` to be a key, an index or a function"),
        ({"label": 1.5}, "`label` to be a key, an index or a function"),
        ({"num_cues": 0}, "`num_cues` to be an integer of 1 or more"),
        ({"min_count": 0}, "`min_count` to be an integer of 1 or more"),
        ({"dataloader": -1}, "`dataloader` to be an integer of 0 or more"),
        ({"aligned": [0, 2], "num_cues": 2}, r"`aligned` to be one cue in \[0, 2\)"),
        ({"aligned": [0, -1]}, "`aligned` to be one cue 0 or more"),
        ({"aligned": [0]}, "`aligned` to be for two labels or more"),
        ({"aligned": [0, 1, 1], "train_counts": [[1, 2], [3, 4]]}, "for 2 labels, as in `train_counts`"),
        ({"num_cues": 3, "cue_names": ["land", "water"]}, "`num_cues` 3, `cue_names` 2"),
        ({"train_counts": [[1, 2], [3]]}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": [[0.1, 0.2], [0.3, 0.4]]}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": [1, 2]}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": "ab"}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": {}}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": 5}, r"`train_counts` to be integers \(K, C\)"),
        ({"cue": True}, "`cue` to be a key"),
        ({"cue_names": "abc"}, "`cue_names` to be a list of texts, but got 'abc'"),
        ({"cue_names": 5}, "`cue_names` to be a list of texts"),
        ({"cue_names": [1, 2]}, "`cue_names` to be a list of texts"),
        ({"cue_names": []}, "`cue_names` to be a list of texts"),
        ({"aligned": 5}, "`aligned` to be a list of integers"),
        ({"aligned": "01"}, "`aligned` to be a list of integers"),
        ({"aligned": [None, 1]}, "`aligned` to be a list of integers"),
        ({"each": "no"}, "`each` to be True or False"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Group(**{"cue": "place"} | arguments)


def test_number_of_cues_follows_from_whatever_tells_it():
    assert Group(2).cues is None
    assert Group(2, cue_names=["land", "water"]).cues == 2
    assert Group(2, train_counts=[[1, 2, 3], [4, 5, 6]]).cues == 3
    assert Group(2, num_cues=2, cue_names=["land", "water"]).cues == 2


def test_names_that_are_no_longer_different_as_keys_give_way_to_numbers():
    group = Group(2, cue_names=["a b", "a_b"])
    assert group.names(2, 2, None) is None
    assert Group(2).names(2, 1, ["duck", "gull"]) == ["duck_0", "gull_0"]
    assert Group(2).names(3, 1, ["duck", "gull"]) == ["0_0", "1_0", "2_0"]


def test_regression_has_no_groups():
    probes = ProbeSet.from_tensors(pictures(), targets=torch.rand(6))
    with pytest.raises(ConfigurationError, match="Expected probes with one label each for `group`, but got regression"):
        AuditCallback(probes, group=2)


# ---- when


def test_neither_a_sanity_check_nor_validate_is_judged(tmp_path):
    module = Grouped(lively(), lr=0.0)
    _, callback = fit(tmp_path, Group(2), module=module, num_sanity_val_steps=2, max_epochs=1)
    assert steps_of(tmp_path, "audit/group/n_min") == [1]
    alone = trainer(tmp_path / "alone", [callback])
    alone.validate(module, data(*parts()[:2]), verbose=False)
    assert not any("group" in key for key in alone.callback_metrics)
    assert not any(part._forward_hooks for part in module.modules())


def test_resumed_run_knows_the_groups_before_its_next_validation(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    group, every = Group(2, min_count=1), {"check_val_every_n_epoch": 2}
    one, _ = fit(tmp_path / "first", group, checkpoint, enable_checkpointing=True, **every)
    monitor = ModelCheckpoint(tmp_path / "second", monitor=WGA, save_top_k=-1, save_on_train_epoch_end=True)
    again, _ = fit(
        tmp_path / "second", group, monitor, max_epochs=3, ckpt_path=checkpoint.last_model_path,
        enable_checkpointing=True, **every,
    )  # fmt: skip
    assert shown(again) == pytest.approx(shown(one), rel=0, nan_ok=True)
    assert float(monitor.best_model_score) == shown(one)["group/wga"]
    torch.load(checkpoint.last_model_path, weights_only=True)


def test_second_run_begins_anew(tmp_path):
    callback = AuditCallback(tiny_probes(), group=2, max_panels=0, on_error="raise")
    images, labels, cues = parts()
    for fold, many in (("a", cues + 1), ("b", cues)):
        one = trainer(tmp_path / fold, [callback], max_epochs=1)
        one.fit(Grouped(lively(), lr=0.0), loader(2), data(images, labels, many))
    # Two values of the cue, not the three of the run before.
    assert len([key for key in shown(one) if "count" in key]) == 6


def test_copy_during_validation_holds_neither_model_nor_hooks(tmp_path):
    class Copies(Callback):
        def on_validation_batch_end(self, trainer, *_):
            self.twins = [copy.deepcopy(trainer.callbacks[0]), pickle.loads(pickle.dumps(trainer.callbacks[0]))]

    class Heavy(Grouped):
        def __deepcopy__(self, memo):
            raise AssertionError("the callback dragged the model along")

        __reduce_ex__ = __deepcopy__

    copies, module = Copies(), Heavy(lively(), lr=0.0)
    fit(tmp_path, Group(2), copies, module=module)
    for index, twin in enumerate(copies.twins):
        other = trainer(tmp_path / str(index), [twin], max_epochs=1)
        other.fit(Grouped(lively(), lr=0.0), loader(2), data())
        assert shown(other)["group/n_min"] == 3


def test_exception_in_validation_leaves_no_hook(tmp_path):
    class Bomb(Grouped):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            raise RuntimeError("boom")

    module = Bomb(lively())
    with pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path, Group(2), module=module)
    assert not any(part._forward_hooks for part in module.modules())


def test_lazy_parameters_are_left_for_training_to_make_before_groups_are_judged(tmp_path):
    class Lazy(Grouped):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1)

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*uninitialized parameter.*", category=UserWarning)
        fit(tmp_path, Group(2), module=Lazy(net))
    assert steps_of(tmp_path, "audit/group/n_min") == [1, 3]


# ---- YAML


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("background", Group("background")),
        ("2", Group(2)),
        (
            '{"cue": "1.place", "num_cues": 2, "aligned": [0, 1], "train_counts": [[9, 1], [1, 9]], '
            '"cue_names": ["land", "water"], "min_count": 5}',
            Group(
                "1.place",
                num_cues=2,
                aligned=[0, 1],
                train_counts=[[9, 1], [1, 9]],
                cue_names=["land", "water"],
                min_count=5,
            ),
        ),
        ('{"cue": 2, "label": 1}', Group(2, label=1)),
        ("null", None),
    ],
)
def test_group_can_be_written_in_yaml(tmp_path, given, wanted):
    tiny_probes().save(tmp_path / "probes.safetensors")
    parser = ArgumentParser()
    parser.add_class_arguments(AuditCallback, "audit", skip={"questions", "explainer", "novelty"})
    parsed = parser.parse_args([f"--audit.probes={tmp_path / 'probes.safetensors'}", f"--audit.group={given}"])
    callback = parser.instantiate(parsed).audit
    groups = [watch._group for watch in callback._watches]
    assert groups == [] if wanted is None else groups == [wanted]
