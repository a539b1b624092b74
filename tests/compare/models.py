"""Audits of small nets that differ in a known way."""

import copy

import torch

from tests.tiny import centre_masks, pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, GradCAM, HiResCAM, Localization, Occlusion, Representations, Why, WhyRatherThan

PROBES = 40


def probes(count=PROBES, **fields):
    return tiny_probes(count, **{"masks": centre_masks(count), **fields})


def auditor(**given):
    settings = {
        "questions": [Why(), Why(of="label"), WhyRatherThan()],
        "explainers": [GradCAM(), HiResCAM(), Occlusion(window=4)],
        "measures": [Localization(), Representations()],
        **given,
    }
    return Auditor(probes(), settings.pop("questions"), **settings)


def net(seed=0):
    """A net whose answers differ among probes."""
    found = tiny_net(seed=seed, channels=8)
    with torch.no_grad():
        found[6].weight.mul_(20)
        found[6].bias.sub_(found.eval()(pictures(PROBES)).mean(dim=0))
    return found


def permuted(given):
    """A copy with its channels in another order: it computes the same."""
    other = copy.deepcopy(given)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for tensor in (other[0].weight, other[0].bias, *other[1].parameters(), *other[1].buffers()):
            if tensor.ndim:
                tensor.copy_(tensor[order].clone())
        other[6].weight.copy_(other[6].weight[:, order].clone())
    return other
