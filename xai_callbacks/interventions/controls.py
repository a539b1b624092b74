"""Edits beside a cue: controls, of the same place and size of change, whose content no data taught; and neighbours."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from xai_callbacks.interventions.fills import named_generator
from xai_callbacks.interventions.shown import Shown

CONTROLS: tuple[str, ...] = ("blocks", "natural")
NEARBY: tuple[str, ...] = ("left", "right", "up", "down", "weaker", "stronger", "smaller", "larger")

# A neighbour is moved by this share of the shorter side, and its change times these.
_ASIDE, _WEAKER, _STRONGER, _SMALLER, _LARGER = 0.1, 0.6, 1.5, 0.7, 1.4
_BLOCK = 2  # side of a block of `blocks`, in pixels
_CHANGED, _LARGEST = 1e-4, 10.0  # change of a pixel that counts, and how far what another probe shows may be enhanced


def control_of(kind: str, edited: Tensor, *, shown: Shown, plain: Tensor) -> Tensor:
    """Edit images where a cue edits them, by as much, in another way.

    | control | what is added to the plain image |
    |---|---|
    | `blocks` | the size of the change of each pixel, its sign drawn for blocks of 2 x 2 px |
    | `natural` | in the pixels that are changed, what another probe shows there, scaled to the same mean square |

    `kind` is one of `CONTROLS`, `edited` are images with the cue `(n, C, H, W)` in [0, 1], `plain` the same without it.
    What is drawn depends on each of the probes `shown`, its set and the seed only.
    """
    change = edited - plain
    if kind == "natural":
        count = len(shown.probes)
        other = shown.scale.displayed(shown.probes.images[(shown.rows + count // 2) % count]).to(plain) - plain
        other = other - other.mean(dim=(1, 2, 3), keepdim=True)
        there = (change.abs().amax(dim=1, keepdim=True) > _CHANGED).to(plain)
        size, own = (((each * there) ** 2).sum(dim=(1, 2, 3), keepdim=True).sqrt() for each in (change, other))
        change = other * there * (size / own.clamp_min(1e-6)).clamp_max(_LARGEST)
    else:
        height, width = change.shape[-2:]
        blocks = (1, -(-height // _BLOCK), -(-width // _BLOCK))
        streams = (named_generator("blocks", shown.seed, name) for name in shown.names)
        minus = torch.stack([torch.rand(blocks, generator=each) < 0.5 for each in streams]).to(change)
        large = minus.repeat_interleave(_BLOCK, 2).repeat_interleave(_BLOCK, 3)[:, :, :height, :width]
        change = change.abs() * (1 - 2 * large)
    return (plain + change).clamp(0, 1)


def neighbour_of(kind: str, edited: Tensor, *, plain: Tensor) -> Tensor:
    """Edit images almost as a cue does: moved a tenth of the shorter side, weaker or stronger, smaller or larger.

    `kind` is one of `NEARBY`, `edited` are images with the cue `(n, C, H, W)` in [0, 1], `plain` the same without it.
    """
    change, (height, width) = edited - plain, edited.shape[-2:]
    step = max(1, round(_ASIDE * min(height, width)))
    moves = {"left": (0, -step), "right": (0, step), "up": (-step, 0), "down": (step, 0)}
    if kind in moves:
        down, right = moves[kind]
        change = pad(change, (right, -right, down, -down))  # nothing comes in over the border
    elif kind in ("weaker", "stronger"):
        change = change * (_WEAKER if kind == "weaker" else _STRONGER)
    else:
        change = _zoomed(change, _SMALLER if kind == "smaller" else _LARGER)
    return (plain + change).clamp(0, 1)


def _zoomed(change: Tensor, factor: float) -> Tensor:
    """A change enlarged about its own middle."""
    height, width = change.shape[-2:]
    weight = change.abs().sum(dim=1) + 1e-12
    ends = []
    for side, axis in ((width, 2), (height, 1)):
        line = (2 * torch.arange(side).to(change) + 1) / side - 1
        ends.append((weight.sum(dim=3 - axis) * line).sum(dim=1) / weight.sum(dim=(1, 2)))
    middle = torch.stack(ends, dim=1)
    # `affine_grid` maps places of the result to places of the source.
    scale = torch.eye(2).to(change) / factor
    affine = torch.cat([scale.expand(len(change), -1, -1), (middle - middle / factor)[:, :, None]], dim=2)
    grid = affine_grid(affine, list(change.shape), align_corners=False)
    return grid_sample(change, grid, align_corners=False)
