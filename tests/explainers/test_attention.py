"""Attention by hand: what torchvision, timm and transformers give of it, and the matrices of the papers in full."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.testing import assert_close

from tests.explaining import explain, subject_of
from xai_callbacks import GradCAM, Why, WhyRatherThan
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import AttentionRollout, GradientAttention
from xai_callbacks.explainers.attention import _attend, _attention

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}
EXPLAINERS = [AttentionRollout(), GradientAttention()]


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def shaken(model):
    """A model whose weights are the same each time, and not so small that attention is uniform."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def torchvision_net():
    return shaken(torchvision.models.VisionTransformer(32, 8, 3, 3, 24, 48, num_classes=4))


def timm_net(name="deit_tiny_patch16_224", fused=True, **settings):
    timm = pytest.importorskip("timm", reason="timm builds the net")
    model = timm.create_model(name, **SMALL, **settings)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return shaken(model)


def hub_net(attention="sdpa"):
    transformers = pytest.importorskip("transformers", reason="transformers builds the net")
    small = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(**small, image_size=32, patch_size=8, num_labels=4)
    return shaken(transformers.AutoModelForImageClassification.from_config(config, attn_implementation=attention))


NETS = {
    "torchvision": torchvision_net,
    "timm fused": timm_net,
    "timm unfused": lambda: timm_net(fused=False),
    "timm distilled": lambda: timm_net("deit_tiny_distilled_patch16_224"),
    "timm registers": lambda: timm_net("vit_little_patch16_reg4_gap_256"),
    "timm average": lambda: timm_net("deit_tiny_patch16_224", global_pool="avg"),
    "transformers sdpa": hub_net,
    "transformers eager": lambda: hub_net("eager"),
}
every_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())


def rolled_out(matrices):
    """Rollout `(N, S, S)` as in the published code: identity added, rows normalised, the last block on the left."""
    joint = None
    for attention in matrices:
        mixed = attention.mean(dim=1) + torch.eye(attention.shape[-1])
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        joint = mixed if joint is None else mixed @ joint
    return joint


def relevance(matrices, score):
    """Relevance `(N, S, S)` as in the published code, image by image."""
    gradients = torch.autograd.grad(score.sum(), matrices, retain_graph=True)
    count, _, size, _ = matrices[0].shape
    found = torch.eye(size).repeat(count, 1, 1)
    for image in range(count):
        for attention, gradient in zip(matrices, gradients, strict=True):
            cam = (gradient[image] * attention[image]).clamp(min=0).mean(dim=0)
            found[image] = found[image] + cam @ found[image]
    return found.detach()


def hooked(model):
    """Logits of a net of timm, and what hooks at its dropout of attention see, which the net goes on with."""
    matrices, handles = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        keep = block.attn.attn_drop.register_forward_hook(lambda _m, given, _out: matrices.append(given[0]))
        handles.append(keep)
    logits = model(images())
    for handle in handles:
        handle.remove()
    return logits, matrices


def test_rollout_is_that_of_the_weights_of_each_block_of_torchvision():
    model, matrices = torchvision_net(), []
    tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(images())], dim=1)
    tokens = tokens + model.encoder.pos_embedding
    for layer in model.encoder.layers:
        normed = layer.ln_1(tokens)
        matrices.append(layer.self_attention(normed, normed, normed, average_attn_weights=False)[1].detach())
        tokens = layer(tokens)
    found = explain(AttentionRollout(), model, images(), [Why(0), Why(1)]).heatmaps
    assert_close(found, rolled_out(matrices)[None, :, 0, 1:].unflatten(-1, (4, 4)))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "settings", "rows", "first"),
    [
        ("deit_tiny_patch16_224", {}, [0], 1),
        ("deit_tiny_distilled_patch16_224", {}, [0, 1], 2),
        ("vit_little_patch16_reg4_gap_256", {}, range(4, 20), 4),
        ("deit_tiny_patch16_224", {"global_pool": "avg"}, range(1, 17), 1),
        ("deit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, range(16), 0),
    ],
)
def test_maps_are_those_of_hooks_in_timm_at_the_tokens_that_the_outputs_read(name, settings, rows, first, fused):
    logits, matrices = hooked(timm_net(name, **settings))
    twin = timm_net(name, fused, **settings)
    rollout = explain(AttentionRollout(), twin, images(), [Why(0)]).heatmaps
    assert_close(rollout[0], rolled_out(matrices)[:, list(rows)].mean(dim=1)[:, first:].unflatten(-1, (4, 4)))
    found = explain(GradientAttention(), twin, images(), [Why(2), WhyRatherThan(foil=1, fact=0)]).heatmaps
    for each, score in zip(found, (logits[:, 2], logits[:, 0] - logits[:, 1]), strict=True):
        full = relevance(matrices, score) - torch.eye(matrices[0].shape[-1])
        expected = full[:, list(rows)].mean(dim=1)[:, first:].unflatten(-1, (4, 4))
        assert_close(each, expected, rtol=1e-4, atol=1e-6)
        assert (each.amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_maps_are_those_of_the_attentions_that_transformers_returns(attention):
    returned = hub_net("eager")(images(), output_attentions=True)
    model = hub_net(attention)
    rollout = explain(AttentionRollout(), model, images(), [Why(0)]).heatmaps[0]
    assert_close(rollout, rolled_out(returned.attentions)[:, 0, 1:].unflatten(-1, (4, 4)).detach())
    found = explain(GradientAttention(), model, images(), [Why(2)]).heatmaps[0]
    expected = relevance(returned.attentions, returned.logits[:, 2])[:, 0, 1:].unflatten(-1, (4, 4))
    assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_scores_that_hardly_move_are_not_lost_beside_the_identity():
    maps = []
    for scale in (1e-4, 1e-8):
        model = timm_net("deit_tiny_patch16_224", global_pool="avg")
        with torch.no_grad():
            model.head.weight.mul_(scale)
        maps.append(explain(GradientAttention(), model, images(), [Why(0)]).heatmaps / scale)
    # To first order a map is the sum of the blocks, which is linear in the gradient.
    assert maps[0].max() > 0
    assert_close(*maps, rtol=1e-2, atol=1e-2 * float(maps[0].max()))


def test_rollout_of_attention_that_is_uniform_has_a_closed_form():
    model = torchvision_net()
    for layer in model.encoder.layers:
        nn.init.zeros_(layer.self_attention.in_proj_weight[:48])  # queries and keys
    found = explain(AttentionRollout(), model, images(), [Why()]).heatmaps
    assert_close(found, torch.full((1, 2, 4, 4), (1 - 2**-3) / 17))


@every_net
def test_answers_are_those_of_the_model_that_is_left_alone(net):
    model = net()
    with undisturbed(model):
        subject, _ = subject_of(model, images())
        expected = subject(images())
        found, matrices = _attend(subject, images())
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # What is kept is what the outputs were computed from.
        assert all(gradient.any() for gradient in _gradients(found, matrices))
        assert [tuple(each.shape[:2]) for each in matrices] == [(2, 3)] * 3
        assert torch.equal(subject(images()), expected)


def _gradients(outputs, matrices):
    used = [each if each._base is None else each._base for each in matrices]
    return torch.autograd.grad(outputs[:, 0].sum(), used)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.3},
        {"attn_mask": torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))},
        {"enable_gqa": True},
    ],
    ids=lambda settings: " ".join(settings) or "plain",
)
def test_scaled_dot_product_attention_is_that_of_torch(settings):
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    if "enable_gqa" in settings:
        key, value = key[:, :2], value[:, :2]
    if isinstance(mask := settings.get("attn_mask"), torch.Tensor) and mask.dtype == torch.bool:
        mask.fill_diagonal_(True)
    output, weights = _attention(query, key, value, **settings)
    assert_close(output, F.scaled_dot_product_attention(query, key, value, **settings))
    assert_close(weights.sum(dim=-1), torch.ones(2, 4, 5))


def test_weights_are_those_before_the_dropout_of_a_model_that_never_switches_it_off():
    output, weights = _attention(*torch.randn(3, 2, 4, 5, 8), dropout_p=1.0)
    assert not output.any()
    assert_close(weights.sum(dim=-1), torch.ones(2, 4, 5))


@pytest.mark.parametrize("returns", ["nothing", "the mean", "heads"])
def test_a_block_that_reads_its_own_weights_gets_them(returns):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.attention = nn.Conv2d(3, 8, 8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, batch):
            tokens = self.patch(batch).flatten(2).transpose(1, 2)
            asked = {"need_weights": returns != "nothing", "average_attn_weights": returns == "the mean"}
            mixed, weights = self.attention(tokens, tokens, tokens, **asked)
            assert (weights is None) == (returns == "nothing")
            if weights is not None:
                mixed = mixed + weights.sum(dim=-1).reshape(len(batch), -1, 16).sum(dim=1)[..., None]
            return self.head((tokens + mixed).mean(dim=1))

    model = Block().eval()
    with undisturbed(model):
        subject, _ = subject_of(model, images())
        assert_close(_attend(subject, images())[0], subject(images()))


def test_questions_cost_one_backward_pass_each(monkeypatch):
    model, explainer, calls = timm_net(), GradientAttention(), []
    with undisturbed(model):
        plan = explainer.prepare(subject_of(model, images())[1], None)
        assert plan.verified
        assert plan.reason == "3 matrices of attention among 17 tokens, 4 x 4 of them patches; the outputs read 1"
    true = torch.autograd.grad
    monkeypatch.setattr(GradientAttention, "prepare", lambda *_: plan)
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or true(*args, **kwargs))
    explain(explainer, model, images(), [Why(0), Why(1), Why(2)])
    assert len(calls) == 3


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
@pytest.mark.parametrize(
    ("net", "size", "seen"),
    [
        (lambda: torchvision.models.resnet18(num_classes=4), 64, "ResNet has no attention"),
        (lambda: torchvision.models.swin_t(num_classes=4), 64, r"has attention of shape \(\d+, 3, 49, 49\)"),
        (lambda: timm_net("vit_base_patch16_siglip_224"), 32, r"shape \(2, 3, 16, 16\), \(2, 3, 1, 16\) for 2 images"),
    ],
    ids=["no attention", "windows", "pooled"],
)
def test_nets_without_one_attention_among_all_tokens_are_refused(explainer, net, size, seen):
    name = type(explainer).__name__
    with pytest.raises(ConfigurationError, match=rf"for {name}\(\), but .*{seen}.*Use GradCAM\(\) or Occlusion\(\)"):
        explain(explainer, net(), images(2, size), [Why(0)])


def test_attention_among_what_are_no_patches_is_refused():
    class Channels(nn.Module):
        """16 channels attend to each other, while 8 x 8 patches are the tokens."""

        def __init__(self):
            super().__init__()
            self.patch, self.head, self.norm = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 3), nn.LayerNorm(16)

        def forward(self, batch):
            tokens = self.patch(batch).flatten(2)
            tokens = F.scaled_dot_product_attention(*[tokens[:, None]] * 3)[:, 0]
            return self.head(self.norm(tokens.transpose(1, 2)).mean(dim=1))

    with pytest.raises(ConfigurationError, match="the tokens of Channels, 16, are not those that lie on the image"):
        explain(AttentionRollout(), Channels(), images(), [Why()])


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_no_mode_outlives_a_model_that_fails(explainer):
    model = timm_net()
    with undisturbed(model):
        subject, trace = subject_of(model, images())
        plan = explainer.prepare(trace, None)
        with pytest.raises(AssertionError):  # images of another size
            _attend(subject, images(2, 64))
        assert _get_current_function_mode_stack() == []
        assert plan.tokens.grid == (4, 4)


@every_net
def test_grad_cam_finds_the_patches_of_these_nets(net):
    explained = explain(GradCAM(), net(), images(), [Why()])
    assert explained.heatmaps.shape == (1, 2, 4, 4)
    assert explained.plan.verified
