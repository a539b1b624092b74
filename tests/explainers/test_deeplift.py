"""Multipliers of one function after another: they add up, and are what their definitions say."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers.deeplift import Passes

CONV = nn.Conv2d(4, 4, 3, padding=1).double()
NORM = nn.BatchNorm2d(4, affine=False, track_running_stats=False).double().eval()
ATTENTION = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
RELU = nn.ReLU(inplace=True)
SEEN = torch.zeros(4).double(), torch.full((4,), 2.0).double()
EXPONENT = nn.Parameter(torch.tensor(0.4).double())
WEIGHTED = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)).double()


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def in_place(x):
    y = CONV(x)
    y.clamp_(-0.2, 0.3)
    y += x
    y *= x.sigmoid()
    F.hardswish(y, inplace=True)
    return F.relu(y, True)


def written(x):
    y = x.clone()
    y[:, :2] = x[:, 2:].tanh()
    y[:, 3].exp_()
    return y


def twice(x):
    y = x + RELU(CONV(x))
    return y + RELU(CONV(y))


EXACT = {
    "in place": in_place,
    "written": written,
    "reused": twice,
    "method": lambda x: CONV(x).relu().flatten(1),
    "prelu": lambda x: F.prelu(x, nn.Parameter(torch.full((4,), 0.3, dtype=torch.float64))),
    "product": lambda x: CONV(x) * x.sigmoid(),
    "square": lambda x: x * x,
    "matmul": lambda x: CONV(x) @ x,
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, CONV(x)),
    "weight norm": lambda x: WEIGHTED(x).relu(),
    "own filters": lambda x: F.conv2d(x.flatten(0, 1)[None], x.flatten(0, 1)[:, None, :3, :3], groups=12)[0].view(
        3, 4, 4, 4
    ),
    "divided in place": lambda x: (x.clone().div_(2).sigmoid() + x.exp()).flatten(1),
    "halved": lambda x: x / 2 - 1 / (x.square() + 1),
    "power": lambda x: (x.abs() + 1) ** 1.5,
    "max pooling": lambda x: F.max_pool2d(CONV(x), 3, 2, 1),
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x, 2),
    "max pooling with places": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max": lambda x: x.max(dim=1).values + x.amax(dim=(1,)),
    "maximum": lambda x: torch.maximum(x, CONV(x)),
    "min": lambda x: x.min(dim=3)[0].sum(dim=2) - x.amin(dim=(2, 3)),
    "minimum": lambda x: torch.minimum(x, CONV(x)),
    "layer norm": lambda x: F.layer_norm(CONV(x), x.shape[1:]),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": lambda x: F.instance_norm(CONV(x), weight=CONV.bias, bias=CONV.bias, eps=0.1),
    "instance norm of training": lambda x: F.instance_norm(x, *SEEN, use_input_stats=False).sigmoid(),
    "trained power": lambda x: (x.abs() + 0.1).pow(1 / EXPONENT).mean(dim=(2, 3)).pow(EXPONENT * 2),
    "trained slope": lambda x: F.prelu(CONV(x), EXPONENT.square().reshape(1)),
    "quotient": lambda x: x / (1 + CONV(x).square()),
    "gated": lambda x: F.glu(x, dim=1),
    "normalised": lambda x: F.normalize(x.flatten(1), dim=1),
}
BY_QUADRATURE = {
    "quotient in place": lambda x: x.clone().div_(1 + CONV(x).square()),
    "masked softmax": lambda x: (5 * x).masked_fill(torch.eye(6).bool(), -torch.inf).softmax(dim=3) @ x,
    "softmax, then a logarithm": lambda x: (30 * x).flatten(1).softmax(dim=1).log(),
    "batch norm of the image alone": lambda x: torch.cat([NORM(each[None]) for each in x]),
    "softmax": lambda x: x.flatten(1).softmax(dim=1),
    "log-softmax": lambda x: F.log_softmax(5 * x.flatten(1), dim=1),
    "attention": lambda x: F.scaled_dot_product_attention(tokens(x), tokens(CONV(x)), tokens(x)),
    "attention of a module": lambda x: ATTENTION(tokens(x), tokens(x), tokens(x))[0],
    "spread": lambda x: x.flatten(1).std(dim=1, keepdim=True),
}


# What goes by steps has no gradient to share; it must run as it is all the same.
STEPS = {"rounded": lambda x: torch.div(x, torch.tensor(0.5), rounding_mode="floor")}


def batches(count=3):
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(count, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))


def multipliers(function, images, references, asked=None):
    passes = Passes()
    images = images.clone().requires_grad_(True)
    with undisturbed(nn.Identity()):
        with passes.of_images():
            here = function(images.clone())
        with passes.of_references():
            there = function(references.clone())
        asked = torch.linspace(-1, 2, here[0].numel()).to(here).reshape(here.shape[1:]) if asked is None else asked
        (found,) = torch.autograd.grad(here, images, asked.expand_as(here))
    return found, ((here - there) * asked).detach().flatten(1).sum(dim=1)


@pytest.mark.parametrize("name", [*EXACT, *BY_QUADRATURE])
def test_multipliers_add_up_to_the_change_of_each_image(name):
    images, references = batches()
    found, change = multipliers((EXACT | BY_QUADRATURE)[name], images, references)
    added = (found * (images - references)).flatten(1).sum(dim=1)
    assert (change.abs() > 1e-3).all()
    tolerance = 1e-9 if name in EXACT else 1e-5
    torch.testing.assert_close(added, change, rtol=tolerance, atol=tolerance * float(change.abs().max()))


@pytest.mark.parametrize("name", [*EXACT, *BY_QUADRATURE, *STEPS])
def test_what_runs_is_what_the_function_does(name):
    function = (EXACT | BY_QUADRATURE | STEPS)[name]
    images, _ = batches()
    passes = Passes()
    with passes.of_images():
        found = function(images.clone().requires_grad_(True).clone())
    with torch.no_grad():
        torch.testing.assert_close(found.detach(), function(images.clone()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["in place", "reused", "product", "layer norm", "attention", "softmax", "power"])
def test_against_images_a_step_away_multipliers_are_the_gradient(name):
    function = (EXACT | BY_QUADRATURE)[name]
    images, _ = batches()
    found, _ = multipliers(function, images, images + 1e-9 * torch.ones_like(images))
    same, _ = multipliers(function, images, images)
    leaf = images.clone().requires_grad_(True)
    outputs = function(leaf.clone())
    asked = torch.linspace(-1, 2, outputs[0].numel()).to(outputs).reshape(outputs.shape[1:])
    (expected,) = torch.autograd.grad(outputs, leaf, asked.expand_as(outputs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(same, expected, rtol=1e-9, atol=1e-9)


def test_rescale_is_the_slope_between_the_two_passes():
    torch.manual_seed(0)
    first, second = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    images, references = torch.randn(2, 1, 3, dtype=torch.float64)
    asked = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found, _ = multipliers(lambda x: (x @ first.T).relu() @ second.T, images, references, asked)
    a, r = images @ first.T, references @ first.T
    expected = ((asked @ second) * (a.relu() - r.relu()) / (a - r)) @ first
    torch.testing.assert_close(found, expected)


def test_a_product_shares_its_change_half_and_half():
    images, references = batches()
    found, _ = multipliers(lambda x: x[:, :2] * x[:, 2:], images, references, torch.tensor(1.0).double())
    middle = (images + references) / 2
    torch.testing.assert_close(found, torch.cat([middle[:, 2:], middle[:, :2]], dim=1))


def test_what_is_no_product_has_the_mean_gradient_along_the_line():
    images, references = batches(1)
    weights = torch.randn(36, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, _ = multipliers(BY_QUADRATURE["attention"], images, references, weights)
    expected = torch.zeros_like(images)
    for step in range(2000):
        at = torch.lerp(references, images, (step + 0.5) / 2000).requires_grad_(True)
        expected += torch.autograd.grad((BY_QUADRATURE["attention"](at) * weights).sum(), at)[0] / 2000
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_norms_are_products_of_what_is_centred_and_of_its_scale():
    """Each gets half of the change that the other makes; the scale is a function of one number, the variance."""
    images, references = torch.randn(2, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, _ = multipliers(lambda x: F.layer_norm(x, (5,)), images, references)
    asked = torch.linspace(-1, 2, 5).double()
    c, d = images - images.mean(), references - references.mean()
    v, w = c.square().mean(), d.square().mean()
    s, t = (v + 1e-5).rsqrt(), (w + 1e-5).rsqrt()
    multiplier = asked * (s + t) / 2 + (asked * (c + d) / 2).sum() * (s - t) / (v - w) * (c + d) / 5
    torch.testing.assert_close(found, multiplier - multiplier.mean())


def test_max_pooling_equals_a_slow_loop():
    """`shap`: the rise goes to the largest of the image, the fall to the largest of the reference."""
    images, references = batches(2)
    found, _ = multipliers(lambda x: F.max_pool2d(x, 3, 2), images, references, torch.ones(4, 2, 2).double())
    expected = torch.zeros_like(images)
    for n, c, row, column in torch.cartesian_prod(*(torch.arange(size) for size in (2, 4, 2, 2))).tolist():
        window = (n, c, slice(2 * row, 2 * row + 3), slice(2 * column, 2 * column + 3))
        a, r = images[window].flatten(), references[window].flatten()
        top = max(a.max(), r.max())
        share = torch.zeros(9, dtype=torch.float64)
        share[a.argmax()] += top - r.max()
        share[r.argmax()] += a.max() - top
        expected[window] += share.reshape(3, 3)
    torch.testing.assert_close(found, expected / (images - references))


def test_references_are_swapped_on_one_graph():
    images, references = batches()
    passes, leaf = Passes(), images.clone().requires_grad_(True)
    with passes.of_images():
        here = twice(leaf.clone())
    for each in (references, -references, references):
        with passes.of_references():
            twice(each.clone())
        (found,) = torch.autograd.grad(here.sum(), leaf, retain_graph=True)
        expected, _ = multipliers(twice, images, each, torch.tensor(1.0).double())
        assert torch.equal(found, expected)


def test_a_model_that_does_something_else_with_references_is_refused():
    images, references = batches()
    for function in (
        lambda x: x.relu() if x.sum() > 0 else x.relu().tanh(),
        lambda x: x.relu() if x.sum() > 0 else x.tanh(),
        lambda x: x[:, : 2 + int(x.sum() > 0)].relu().sum(dim=1),
    ):
        with pytest.raises(ConfigurationError, match="Expected the model to do the same with references as with"):
            multipliers(function, images.abs(), -references.abs())


def test_multipliers_without_references_are_refused():
    leaf = torch.randn(1, 3, requires_grad=True)
    passes = Passes()
    with passes.of_images():
        outputs = leaf.clone().relu()
    with pytest.raises(ConfigurationError, match="Expected references to be run before"):
        torch.autograd.grad(outputs.sum(), leaf)


def test_nothing_is_kept_when_the_passes_are_over():
    images, references = batches()
    passes, leaf = Passes(), images.clone().requires_grad_(True)
    with passes.of_images():
        outputs = in_place(leaf.clone())
    with passes.of_references():
        in_place(references.clone())
    gone = [weakref.ref(call) for call in passes._calls.values()]
    assert len(gone) == 5
    del passes, outputs
    gc.collect()
    assert not any(each() for each in gone)
