import gzip
import warnings
from types import FunctionType

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import PACKAGES, caught, package, rows, trainer
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.autoencoder import reconstruction_error
from xai_callbacks.novelty.gradcon import GradientConstraint
from xai_callbacks.reference import AutoencoderModule


def loader(count=16, batch_size=4, seed=0, labelled=True, channels=1):
    images = torch.rand(count, channels, 28, 28, generator=torch.Generator().manual_seed(seed))
    data = TensorDataset(images, torch.arange(count)) if labelled else images
    return DataLoader(data, batch_size=batch_size)


def fit(folder, module, *, name="pytorch_lightning", train=None, val=None, **options):
    one = trainer(folder, [], name, **options)
    one.fit(module, train or loader(), val or loader(8, seed=1))
    return one


def values(folder, key):
    return [float(row[key]) for row in rows(folder) if key in row]


def kill(module):
    """The state that the collapse on mostly black images leads to."""
    with torch.no_grad():
        module.autoencoder.decoder[-1].bias.fill_(-200.0)
    return module


def collapses(found):
    return [str(warning.message) for warning in found if "same picture" in str(warning.message)]


@pytest.mark.parametrize("name", PACKAGES)
def test_it_trains_and_logs_in_both_packages(tmp_path, name):
    module = AutoencoderModule(constraint=0.03)
    assert isinstance(module, package(name).LightningModule)
    one = fit(tmp_path, module, name=name)

    losses, alignments = values(tmp_path, "train_loss"), values(tmp_path, "train_alignment")
    assert len(losses) == len(alignments) == 8
    assert losses[-1] < losses[0]
    assert alignments[0] == 0
    assert 0 < max(map(abs, alignments)) <= 1
    assert len(values(tmp_path, "val_loss")) == 2
    assert module.constraint.count.item() == one.global_step == 8


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_validation_loss_is_the_error_without_the_penalty(tmp_path, loss):
    module = AutoencoderModule(loss=loss, constraint=0.5)
    fit(tmp_path, module, max_epochs=1)
    images = torch.cat([batch for batch, _ in loader(8, seed=1)])
    with torch.no_grad():
        expected = reconstruction_error(module(images), images, loss).mean().item()
    assert values(tmp_path, "val_loss") == pytest.approx([expected], rel=1e-5)


def test_training_equals_a_loop_by_hand(tmp_path):
    torch.manual_seed(0)
    module = AutoencoderModule(loss="mse", constraint=0.1)
    by_hand = AutoencoderModule(loss="mse")
    by_hand.load_state_dict({name: value.clone() for name, value in module.state_dict().items() if "auto" in name})
    fit(tmp_path, module, max_epochs=2)

    net = by_hand.autoencoder
    constraint = GradientConstraint(net.decoder, 0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2):
        for images, _ in loader():
            loss = (net(images).sigmoid() - images).square().mean()
            optimizer.zero_grad()
            (loss + constraint(loss)).backward()
            constraint.update()
            optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(module.autoencoder.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_batches_may_be_bare_images_and_have_three_channels(tmp_path):
    module = AutoencoderModule(channels=3)
    bare = {"labelled": False, "channels": 3}
    fit(tmp_path, module, train=loader(**bare), val=loader(8, seed=1, **bare), max_epochs=1)
    assert len(values(tmp_path, "train_loss")) == 4
    assert values(tmp_path, "train_alignment") == []
    assert module.constraint is None


@pytest.mark.parametrize("name", PACKAGES)
def test_a_resumed_training_ends_as_one_that_was_not_interrupted(tmp_path, name):
    def run(folder, epochs, checkpoint=None):
        torch.manual_seed(0)
        module = AutoencoderModule(constraint=0.1)
        one = trainer(folder, [], name, max_epochs=epochs)
        one.fit(module, loader(), loader(8, seed=1), ckpt_path=checkpoint, weights_only=True)
        one.save_checkpoint(folder / "last.ckpt")
        return module.state_dict()

    straight = run(tmp_path / "straight", 2)
    run(tmp_path / "first", 1)
    resumed = run(tmp_path / "second", 2, tmp_path / "first" / "last.ckpt")
    assert "constraint.mean_6__weight" in straight
    for name_, value in straight.items():
        assert torch.equal(value, resumed[name_]), name_


@pytest.mark.parametrize("name", PACKAGES)
def test_neither_package_takes_inherited_methods_for_overridden_ones(name):
    """Each compares code; were `configure_model` and its elder both overridden, no training would start."""
    is_overridden = package(f"{name}.utilities.model_helpers").is_overridden
    module, base = AutoencoderModule(), package(name).LightningModule
    module.trainer = package(name).Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    names = [key for key, value in vars(base).items() if isinstance(value, FunctionType) and not key.startswith("__")]
    names += ["on_train_epoch_end", "prepare_data", "train_dataloader", "val_dataloader", "configure_gradient_clipping"]
    assert "log" in names
    ours = {"forward", "training_step", "validation_step", "configure_optimizers"}
    assert {key for key in names if is_overridden(key, module)} - {"on_before_optimizer_step"} == ours


def test_a_checkpoint_loads_weights_only_with_its_settings(tmp_path):
    module = AutoencoderModule(channels=3, loss="mse", learning_rate=0.01, constraint=0.2)
    data = loader(channels=3)
    one = fit(tmp_path, module, train=data, val=data, max_epochs=1)
    one.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = AutoencoderModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.autoencoder.encoder[0].in_channels == 3
    assert (loaded.loss, loaded.learning_rate) == ("mse", 0.01)
    assert loaded.constraint.strength == 0.2
    for name, mean in module.constraint.references.items():
        assert mean.any()
        assert torch.equal(mean, loaded.constraint.references[name])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_dead_output_is_warned_of_once_with_the_way_out(tmp_path, batch_size):
    with caught() as found:
        fit(tmp_path, kill(AutoencoderModule(loss="mse")), val=loader(8, batch_size, seed=1), max_epochs=4)
    (message,) = collapses(found)
    assert "8 validation images" in message
    assert "loss='bce'" in message


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_a_net_that_has_hardly_trained_is_not_called_dead(tmp_path, loss):
    module = AutoencoderModule(loss=loss)
    with caught() as found:
        fit(tmp_path, module, max_epochs=1, num_sanity_val_steps=2)
    assert collapses(found) == []


def test_cross_entropy_revives_the_same_output(tmp_path):
    """From one dead state, with a bias that can be walked back: only one of the two losses has a gradient."""
    found = {}
    for loss in ("mse", "bce"):
        module = kill(AutoencoderModule(loss=loss, learning_rate=0.1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(tmp_path / loss, module, max_epochs=3)
        found[loss] = module.autoencoder.decoder[-1].bias.item()
    assert found["mse"] == -200
    assert found["bce"] > -199.5


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.full((4, 1, 28, 28), 1.5), r"in \[0, 1\], but got 1.5 to 1.5"),
        (-torch.rand(4, 1, 28, 28), r"in \[0, 1\]"),
        (torch.full((4, 1, 28, 28), float("nan")), r"in \[0, 1\]"),
        (torch.zeros(4, 1, 28, 28, dtype=torch.uint8), "got torch.uint8 images"),
        (torch.rand(4, 1, 32, 32), "to have one shape"),
        ({"image": torch.rand(4, 1, 28, 28)}, "got a dict"),
    ],
)
def test_other_batches_are_refused(images, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        AutoencoderModule().training_step(images, 0)


@pytest.mark.parametrize(
    "given",
    [{"loss": "l1"}, {"learning_rate": 0}, {"learning_rate": float("nan")}, {"constraint": 0}],
)
def test_bad_arguments_are_refused(given):
    (name,) = given
    with pytest.raises(ConfigurationError, match=f"Expected `{'strength' if name == 'constraint' else name}`"):
        AutoencoderModule(**given)


def digit(folder, prefix, which, count):
    images = gzip.decompress((folder / "mnist" / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "mnist" / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    wanted = np.frombuffer(labels, np.uint8, offset=8) == which
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)[wanted][:count]
    return torch.from_numpy(pixels.astype(np.float32) / 255)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("loss", "dead"), [("mse", 1), ("bce", 0)])
def test_the_trap_of_mnist_is_seen_and_cross_entropy_avoids_it(tmp_path, shared_data, loss, dead):
    train = digit(shared_data, "train", 3, 2048)
    val = digit(shared_data, "t10k", 3, 256)
    torch.manual_seed(1)
    module = AutoencoderModule(loss=loss)
    with caught() as found:
        fit(tmp_path, module, train=DataLoader(train, 64, shuffle=True), val=DataLoader(val, 64))
    assert len(collapses(found)) == dead
