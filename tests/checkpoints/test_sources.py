"""Sources of weights: each is loaded as it was saved."""

from __future__ import annotations

import os

import pytest
import timm
import torch
import torchvision
from pytorch_lightning import callbacks
from safetensors.torch import load_file, save_file

from tests.callbacks.runs import fit
from tests.checkpoints.modules import PATH, Late, Small, Wanting, plain
from tests.tiny import random_streams, tiny_net
from xai_callbacks import Checkpoint, ConfigurationError

FACTORY = "tests.checkpoints.modules:plain"


def same(model, other) -> bool:
    one, two = (each if isinstance(each, dict) else each.state_dict() for each in (model, other))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def trained(folder, module, *more):
    """A checkpoint of one epoch of training."""
    saves = callbacks.ModelCheckpoint(folder, filename="epoch=0")
    fit(folder, *more, saves, module=module, max_epochs=1)
    return saves.best_model_path


# ---- Lightning


def test_a_lightning_checkpoint_is_built_of_its_hyperparameters(tmp_path):
    module = Small(channels=5)
    checkpoint = Checkpoint(trained(tmp_path, module), model=PATH)
    assert (checkpoint.epoch, checkpoint.step) == (0, 0)
    model = checkpoint.load()
    assert isinstance(model, Small)
    assert same(model, module)
    assert (checkpoint.epoch, checkpoint.step) == (0, 4)
    assert same(Checkpoint(checkpoint.source, model=Small).load(), module)


def test_hparams_come_before_those_of_the_checkpoint(tmp_path):
    path = trained(tmp_path, Small(channels=5))
    with pytest.raises(ConfigurationError, match=r"weights of Small, but .* size mismatch for net.0.weight"):
        Checkpoint(path, model=PATH, hparams={"channels": 6}).load()


def test_what_lightning_does_at_loading_is_done(tmp_path):
    module = Late()
    model = Checkpoint(trained(tmp_path, module), model=Late).load()
    assert same(model, module)
    assert model.found == 7


def test_a_factory_may_return_the_lightning_module_or_the_net_in_it(tmp_path):
    module = Wanting(plain(6))
    path = trained(tmp_path, module)
    assert same(Checkpoint(path, model=lambda: Wanting(plain(6))).load(), module)
    inner = Checkpoint(path, model=FACTORY, hparams={"channels": 6})
    assert same(inner.load(), module.net)
    assert inner.notes == ("Names of weights begin with 'net.' in the file, which was left out.",)
    assert inner.step == 4


def test_hyperparameters_that_are_not_in_the_checkpoint_are_asked_for(tmp_path):
    path = trained(tmp_path, Wanting(plain()))
    with pytest.raises(
        ConfigurationError, match=r"Wanting raised TypeError: .*'net'.* Pass its arguments as `hparams`"
    ):
        Checkpoint(path, model=Wanting).load()
    assert isinstance(Checkpoint(path, model=Wanting, hparams={"net": plain()}).load(), Wanting)


def test_averaged_and_raw_weights_are_a_choice(tmp_path):
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this version of Lightning averages no weights")
    module = Small()
    path = trained(tmp_path, module, callbacks.EMAWeightAveraging(decay=0.5))
    content = torch.load(path, weights_only=True)
    assert not same(content["state_dict"], content["current_model_state"])
    with pytest.raises(ConfigurationError, match='Pass weights="averaged" for'):
        Checkpoint(path, model=PATH).load()
    for choice, key in (("averaged", "state_dict"), ("raw", "current_model_state")):
        for model in (PATH, lambda: module):
            assert same(Checkpoint(path, model=model, weights=choice).load(), content[key])


@pytest.mark.parametrize(("raw", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averages_of_other_training_scripts_are_a_choice(tmp_path, raw, averaged):
    nets = {raw: tiny_net(seed=1), averaged: tiny_net(seed=2)}
    saved = {name: net.state_dict() for name, net in nets.items()}
    saved[averaged] = {f"module.{key}": value for key, value in saved[averaged].items()} | {
        "n_averaged": torch.tensor(9)
    }
    torch.save({**saved, "epoch": 3}, tmp_path / "a.pth")
    for choice, key in (("averaged", averaged), ("raw", raw)):
        checkpoint = Checkpoint(tmp_path / "a.pth", model=FACTORY, weights=choice)
        assert same(checkpoint.load(), nets[key])
        assert (checkpoint.epoch, checkpoint.step) == (3, 0)
    with pytest.raises(ConfigurationError, match="Expected `weights`, as the file has averaged and raw ones"):
        Checkpoint(tmp_path / "a.pth", model=FACTORY).load()


def test_weights_cannot_be_chosen_where_there_is_one_set(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match="Expected no `weights`, as the file has but one set, but got 'raw'"):
        Checkpoint(tmp_path / "a.pt", model=FACTORY, weights="raw").load()


# ---- files of weights


@pytest.mark.parametrize("entry", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.net."])
def test_weights_are_found_wherever_they_lie(tmp_path, entry, prefix):
    net = tiny_net(seed=3)
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save(weights if entry is None else {entry: weights, "global_step": 11}, tmp_path / "a.pt")
    checkpoint = Checkpoint(str(tmp_path / "a.pt"), model=FACTORY)
    assert same(checkpoint.load(), net)
    assert checkpoint.step == (0 if entry is None else 11)
    assert len(checkpoint.notes) == bool(prefix)


def test_safetensors_are_read(tmp_path):
    net = Small()
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    assert same(Checkpoint(tmp_path / "a.safetensors", model=PATH).load(), net)
    inner = Checkpoint(tmp_path / "a.safetensors", model=plain)
    assert same(inner.load(), net.net)
    assert "'net.'" in inner.notes[0]


def test_a_prefix_that_the_model_has_itself_stays(tmp_path):
    net = torch.nn.Sequential(tiny_net())
    torch.save(net.state_dict(), tmp_path / "a.pt")
    checkpoint = Checkpoint(tmp_path / "a.pt", model=lambda: torch.nn.Sequential(tiny_net(seed=1)))
    assert same(checkpoint.load(), net)
    assert checkpoint.notes == ()


def test_weights_that_are_missing_or_too_many_are_named_in_one_line(tmp_path):
    weights = tiny_net().state_dict()
    torch.save({**weights, "head.weight": torch.zeros(1)}, tmp_path / "more.pt")
    del weights["0.weight"]
    torch.save(weights, tmp_path / "less.pt")
    for name, told in (("more", 'Unexpected key.* "head.weight"'), ("less", 'Missing key.* "0.weight"')):
        with pytest.raises(ConfigurationError, match=f"{told}.*Pass the `model` and `hparams`") as caught:
            Checkpoint(tmp_path / f"{name}.pt", model=FACTORY).load()
        assert "\n" not in str(caught.value)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigurationError) as caught:
        Checkpoint(tmp_path / "other.pt", model=FACTORY).load()
    assert len(str(caught.value)) < 700


# ---- models of libraries


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "googlenet"])
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_torchvision_by_name_has_as_many_classes_as_the_file(tmp_path, name):
    net = torchvision.models.get_model(name, num_classes=5)
    torch.save({"state_dict": {f"model.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "a.ckpt")
    assert same(Checkpoint(tmp_path / "a.ckpt", model=f"torchvision/{name}").load(), net)


def test_timm_by_name_has_as_many_classes_as_the_file(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32)
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    found = Checkpoint(tmp_path / "a.safetensors", model="timm/vit_tiny_patch16_224", hparams={"img_size": 32})
    assert same(found.load(), net)


@pytest.fixture
def hub_folder(tmp_path):
    """A folder with a small model of transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    given = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**given, patch_size=4, image_size=8, num_labels=3)
    model = transformers.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub", model


def test_hugging_face_by_folder_with_its_own_weights_or_others(tmp_path, hub_folder):
    folder, model = hub_folder
    pretrained = Checkpoint(f"hf/{folder}")
    assert same(pretrained.load(), model)
    config = model.config.__class__.from_dict({**model.config.to_dict(), "num_labels": 5})
    other = type(model)(config)
    torch.save(other.state_dict(), tmp_path / "b.pt")
    assert same(Checkpoint(tmp_path / "b.pt", model=f"hf/{folder}").load(), other)


def test_a_name_alone_is_the_pretrained_model_and_says_that_it_may_need_the_network(monkeypatch):
    wanted = []

    def refused(name, **given):
        wanted.append((name, given))
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", refused)
    monkeypatch.setattr(timm, "create_model", refused)
    for source in ("torchvision/resnet18", "timm/resnet18.a1"):
        with pytest.raises(
            ConfigurationError, match=r"which may need the network, but got OSError: no route to host\.$"
        ):
            Checkpoint(source).load()
    assert wanted == [("resnet18", {"weights": "DEFAULT"}), ("resnet18.a1", {"pretrained": True})]


def test_an_unknown_name_is_told(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match="'torchvision/resnet17' to name a model, but got ValueError"):
        Checkpoint(tmp_path / "a.pt", model="torchvision/resnet17").load()


@pytest.mark.data
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0"])
def test_real_weights_are_read(shared_data, name):
    path = shared_data / "weights" / f"{name}_imagenet.fp16.safetensors"
    model = Checkpoint(path, model=f"torchvision/{name}").load()
    assert same({key: value.half() for key, value in model.state_dict().items()}, load_file(path))


# ---- arguments, and what is left as it was


def test_loading_moves_no_random_stream_and_gives_what_can_be_differentiated(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "a.pt")
    before = random_streams()
    with torch.inference_mode():
        model = Checkpoint(tmp_path / "a.pt", model=FACTORY).load()
    assert random_streams() == before
    assert not any(each.is_inference() for each in model.parameters())
    assert all(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (7, {}, "Expected `source` to be the path of a file"),
        ("a.pt", {}, "Expected `model`, as 'a.pt' holds weights but no model"),
        ("a.pt", {"model": 7}, "Expected `model` to be a name, a class, or a function"),
        ("a.pt", {"model": torch.nn.Identity()}, "but got a Identity. Pass model=lambda: net"),
        ("a.pt", {"model": plain, "hparams": [1]}, "Expected `hparams` to be arguments by name"),
        ("a.pt", {"model": plain, "weights": "ema"}, "Expected `weights` to be one of averaged, raw, but got 'ema'"),
        ("a.pt", {"model": plain, "trust": "no"}, "Expected `trust` to be True or False"),
        ("timm/resnet18", {"model": plain}, "Expected 'timm/resnet18' alone"),
    ],
)
def test_wrong_arguments_are_refused_at_once(source, given, message):
    with pytest.raises(ConfigurationError, match=message):
        Checkpoint(source, **given)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tests.nowhere.Small", r"'tests.nowhere.Small' cannot be imported. ModuleNotFoundError"),
        ("tests.checkpoints.modules:small", "cannot be imported. AttributeError"),
        ("tests.checkpoints.modules.NUMBER", "to lead to a class or function, but .* is 3"),
        ("tests.checkpoints.modules:no_model", "to return a torch.nn.Module, but got int"),
        ("tests.checkpoints.modules:broken", "but broken raised OSError: no such disk. Pass its arguments"),
    ],
)
def test_what_is_no_model_is_told(tmp_path, model, message):
    torch.save(plain().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match=message):
        Checkpoint(tmp_path / "a.pt", model=model).load()


def test_a_file_comes_before_a_model_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("timm")
    torch.save(plain().state_dict(), "timm/a.pt")
    assert same(Checkpoint("timm/a.pt", model=FACTORY).load(), torch.load("timm/a.pt", weights_only=True))
