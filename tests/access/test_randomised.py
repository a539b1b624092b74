import random
import threading
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

from xai_callbacks.access import randomised_copy, undisturbed
from xai_callbacks.errors import ConfigurationError


class Net(nn.Module):
    """Two batch norms with dropout between them, and parameters that the module itself holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.first = nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.arange(24.0).view(4, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        features = self.second(self.drop(self.first(self.conv(images)).relu()))
        return self.head(features.mean(dim=(2, 3)) @ self.scale)


def trained():
    """A net whose every parameter and statistic is away from its initial value."""
    model = Net().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model(pictures(32) * 3 + 1)
    model.zero_grad()
    model(pictures()).sum().backward()
    return model


def pictures(count=8, size=6):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def content(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- what is left behind


def test_the_model_is_bit_identical_afterwards():
    model = trained()
    model.drop.eval()
    flags = [module.training for module in model.modules()]
    before, gradients = content(model), [parameter.grad.clone() for parameter in model.parameters()]
    versions = [parameter._version for parameter in model.parameters()]

    randomised_copy(model, pictures(), seed=0)

    assert equal(content(model), before)
    assert [parameter._version for parameter in model.parameters()] == versions
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == flags
    assert model.first.momentum == 0.3


@pytest.mark.parametrize("images", [pictures(), pictures(1)])
def test_random_streams_are_untouched_also_by_an_error(images):
    model = trained()
    before = streams()
    try:
        randomised_copy(model, images, seed=0)
    except ConfigurationError:
        assert len(images) == 1

    assert streams() == before


def test_copy_shares_no_memory_with_the_model():
    model = trained()
    copied = randomised_copy(model, pictures(), seed=0)
    addresses = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    assert addresses.isdisjoint(tensor.data_ptr() for tensor in (*copied.parameters(), *copied.buffers()))


# ---- parameters


def test_every_parameter_is_another():
    model = trained()
    copied = randomised_copy(model, pictures(), seed=0)

    for (name, old), new in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert old.shape == new.shape
        assert not torch.equal(old, new), name


def test_seed_decides_which_copy():
    model = trained()
    random.seed(5)
    first = content(randomised_copy(model, pictures(), seed=3))
    torch.manual_seed(99)
    again, other = (content(randomised_copy(model, pictures(), seed=seed)) for seed in (3, 4))

    assert equal(first, again)
    for name in ("conv.weight", "head.bias", "scale"):
        assert not torch.equal(first[name], other[name])


def test_layers_are_drawn_as_when_they_are_made():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(1024, 100))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    conv, norm, _, linear = randomised_copy(model, pictures(), seed=0)

    assert torch.equal(norm.weight, torch.ones(64))
    assert torch.equal(norm.bias, torch.zeros(64))
    for weight, inputs in ((conv.weight, 27), (linear.weight, 1024)):  # uniform within 1 / sqrt(inputs)
        assert 0.97 < weight.abs().max() * inputs**0.5 <= 1.0001
        assert weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.05)


def test_parameters_that_no_method_draws_are_shuffled():
    model = Net()
    copied = randomised_copy(model, pictures(), seed=0)

    assert torch.equal(copied.scale.flatten().sort().values, torch.arange(24.0))
    assert (copied.scale != model.scale).float().mean() > 0.5


def test_parameters_that_a_method_leaves_out_are_shuffled():
    class Half(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.gate = nn.Parameter(torch.arange(10.0))

    copied = randomised_copy(Half(), pictures(), seed=0)

    assert torch.equal(copied.gate.sort().values, torch.arange(10.0))
    assert not torch.equal(copied.gate, torch.arange(10.0))


def test_a_module_has_the_last_word_on_its_parts():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(2, 2)

        def reset_parameters(self):
            nn.init.constant_(self.part.weight, 0.25)

    assert torch.equal(randomised_copy(Whole(), pictures(), seed=0).part.weight, torch.full((2, 2), 0.25))


def test_tied_parameters_stay_tied_and_apart_from_the_model():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    copied = randomised_copy(model, pictures(), seed=0)

    assert copied[1].weight is copied[0].weight
    assert copied[1].weight is not model[1].weight
    assert not torch.equal(copied[1].weight, model[1].weight)


def test_parameters_behind_a_parametrization_are_drawn_anew():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    copied = randomised_copy(model, pictures(), seed=0)

    assert not torch.equal(copied[0].weight, model[0].weight)
    norms = [layer.parametrizations.weight.original0.flatten().sort().values for layer in (copied[0], model[0])]
    assert torch.equal(*norms)


def test_results_with_a_graph_that_modules_keep_do_not_hinder_the_copy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older form, which keeps the weight it computed
        model = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    kept = model(pictures())
    model.kept = kept

    copied = randomised_copy(model, pictures(), seed=0)

    assert model.kept is kept
    assert copied.kept is not kept
    assert not torch.equal(copied.weight_v, model.weight_v)
    assert not torch.equal(copied(pictures()), kept)


def test_frozen_parameters_are_drawn_and_stay_frozen():
    model = trained()
    model.conv.weight.requires_grad_(False)
    copied = randomised_copy(model, pictures(), seed=0)

    assert not torch.equal(copied.conv.weight, model.conv.weight)
    assert [each.requires_grad for each in copied.parameters()] == [each.requires_grad for each in model.parameters()]


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(num_classes=3),
        lambda: VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
        ),
    ],
)
def test_known_architectures_lose_all_they_have_learned(build):
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # the class token and others begin at zero
    copied = randomised_copy(model, pictures(4, 32), seed=0)

    same = [n for (n, p), q in zip(model.named_parameters(), copied.parameters(), strict=True) if torch.equal(p, q)]
    assert same == []
    assert torch.isfinite(copied(pictures(4, 32))).all()


# ---- statistics of batch norm


def test_statistics_are_those_of_the_images_with_dropout_off():
    model, images = trained(), pictures()
    copied = randomised_copy(model, images, seed=0)

    with torch.no_grad():
        maps = copied.conv(images)
        # In training mode a batch norm divides by the biased variance, and keeps the other one.
        normed = (maps - maps.mean((0, 2, 3), keepdim=True)) / (
            maps.var((0, 2, 3), correction=0, keepdim=True) + copied.first.eps
        ).sqrt()
        for layer, given in ((copied.first, maps), (copied.second, normed.relu())):
            torch.testing.assert_close(layer.running_mean, given.mean((0, 2, 3)))
            torch.testing.assert_close(layer.running_var, given.var((0, 2, 3)))
            assert layer.num_batches_tracked == 1


def test_statistics_of_chunks_are_averaged():
    images = pictures(7)
    copied = randomised_copy(trained(), images, seed=0, chunk_size=3)

    maps = copied.conv(images).detach()
    chunks = [maps[:3], maps[3:5], maps[5:]]  # as equal as can be
    for name, statistic in (("running_mean", torch.Tensor.mean), ("running_var", torch.Tensor.var)):
        expected = torch.stack([statistic(chunk, (0, 2, 3)) for chunk in chunks]).mean(dim=0)
        torch.testing.assert_close(getattr(copied.first, name), expected)


def test_chunks_hold_two_images_at_least():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))

    copied = randomised_copy(model, pictures(5), seed=0, chunk_size=2)  # three chunks would leave one image alone

    assert copied[2].num_batches_tracked == 2


def test_norms_without_statistics_need_no_images():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2))

    copied = randomised_copy(model, torch.empty(0), seed=0)

    assert not torch.equal(copied[0].weight, model[0].weight)


def test_norm_that_synchronises_processes_waits_for_none(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.SyncBatchNorm(2))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        copied = randomised_copy(model, pictures(), seed=0)  # on the CPU, an attempt to synchronise raises
    finally:
        torch.distributed.destroy_process_group()

    torch.testing.assert_close(copied[1].running_mean, copied[0](pictures()).detach().mean((0, 2, 3)))
    assert type(model[1]) is nn.SyncBatchNorm


def test_old_statistics_do_not_outlive_a_method_that_forgets_them():
    class Forgetful(nn.BatchNorm2d):
        def reset_parameters(self):
            pass

    model = nn.Sequential(Forgetful(3))
    model.train()(pictures() + 100)

    copied = randomised_copy(model, pictures(), seed=0)

    torch.testing.assert_close(copied[0].running_mean, pictures().mean((0, 2, 3)))


def test_other_buffers_are_kept():
    model = trained()
    model.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]))

    assert torch.equal(randomised_copy(model, pictures(), seed=0).mean, model.mean)


# ---- the copy in use


def test_copy_is_in_eval_mode_and_explainable_wherever_it_was_made():
    model = trained()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            copied = randomised_copy(model, pictures(), seed=0)
        assert not any(module.training for module in copied.modules())
        images = pictures().requires_grad_()
        with undisturbed(copied):
            (gradient,) = torch.autograd.grad(copied(images)[:, 0].sum(), images)
        assert gradient.abs().sum() > 0
        assert torch.equal(copied(pictures()), copied(pictures()))


def test_wrappers_are_looked_through():
    model = trained()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        copied = randomised_copy(wrapped, pictures(), seed=0)
        assert type(copied) is Net
        assert equal(content(copied), content(randomised_copy(model, pictures(), seed=0)))


class Module(LightningModule):
    """Its own forward is no classifier."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, images):
        raise NotImplementedError


@pytest.mark.parametrize("select", ["net", lambda module: module.net, lambda module: module.net.forward])
def test_lightning_module_is_copied_without_its_trainer(select):
    module = Module()
    module.trainer = trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")

    copied = randomised_copy(module, pictures(), seed=0, select=select)

    assert module.trainer is trainer
    assert copied._trainer is None
    assert copied.net.first.num_batches_tracked == 1


def test_images_are_brought_to_the_type_of_the_model():
    copied = randomised_copy(deepcopy(trained()).double(), pictures(), seed=0)

    assert copied.first.running_mean.dtype == torch.float64


# ---- what cannot be done


def test_model_that_cannot_be_copied_is_named():
    model = trained()
    model.lock = threading.Lock()

    with pytest.raises(ConfigurationError, match="copy, but got Net, where it raised TypeError: cannot pickle"):
        randomised_copy(model, pictures(), seed=0)


def test_a_method_that_does_not_draw_is_passed_over():
    class Odd(nn.Linear):
        def reset_parameters(self, std=None):
            if std is None and hasattr(self, "made"):
                raise ValueError("which std?")

    model = Odd(4, 4)
    model.made, model.weight.data = True, torch.arange(16.0).view(4, 4)
    copied = randomised_copy(model, pictures(), seed=1)
    assert not torch.equal(copied.weight, model.weight)
    assert torch.equal(copied.weight.flatten().sort().values, model.weight.flatten().sort().values)


@pytest.mark.parametrize("images", [pictures(1), pictures()[0]])
def test_statistics_need_two_images(images):
    with pytest.raises(ConfigurationError, match="Expected `images` to be two or more"):
        randomised_copy(trained(), images, seed=0)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 0.5), ("chunk_size", 1), ("chunk_size", True)])
def test_counts_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"Expected `{name}` to be an integer"):
        randomised_copy(trained(), pictures(), **{"seed": 0, name: value})


@pytest.mark.gpu
def test_copy_of_a_model_on_the_gpu_stays_there():
    model = trained().cuda()
    state = torch.cuda.get_rng_state()

    copied = randomised_copy(model, pictures(), seed=0)

    assert copied(pictures().cuda()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert equal(content(copied), content(randomised_copy(model, pictures(), seed=0)))
