"""`PerSampleGradients`: what each image asks of the weights, from one forward and one backward pass over a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from xai_callbacks.access.subject import plain_name
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.ledger import GradientReading, Ledger, Reduce, joined
from xai_callbacks.novelty.usage import Axes, Use, assign_uses, find_axes, recording

__all__ = ["GradientReading", "PerSampleGradients"]

Loss = Callable[[object, Tensor], Tensor]

# Numbers of images in one pass on a CPU, six images of 3 x 224 x 224. The feature maps of more leave the caches and are
# given back to the system after every layer: on 16 images, MobileNetV2 then takes 1.6 times as long.
_PASS = 2**20


class PerSampleGradients:
    """Measures the gradient of every image's own loss without a backward pass for each.

    Convolutions (strided, dilated, grouped, transposed; one to three dimensions), linear layers, embeddings, batch norm
    in eval mode, instance, group and layer norm, and multi-head attention are computed from what went into the layer
    and the gradient of what came out. Any other module that holds parameters is run again under `torch.func`, with all
    that is in it, and `GradientReading.slow` says so: a vision transformer holds its class token itself, so that the
    whole network is run again, which takes several times as long, unless `parameters` leaves that out. Layers used
    several times, weights shared between layers, in-place activations and frozen parameters are accounted for by
    walking the autograd graph: right or refused, never silently wrong.

    Call inside `access.undisturbed`, or with the model in eval mode: no `.grad` is touched and no hook is left behind.
    Cost where every module has a rule: about one forward and backward pass, or less; memory about the same. On a CPU,
    batches of more than `2**20` numbers go through the model in several passes, which is faster there.

    Args:
        module: The model.
        call: What to call with the images; None for the module itself.
        parameters: Which parameters, as names or patterns such as `decoder.*.weight`; None for all that require grad.

    Raises:
        ConfigurationError: No such parameter, or none requires grad.

    Example:
        >>> measure = PerSampleGradients(torch.nn.Linear(4, 2))
        >>> reading = measure(torch.ones(3, 4), lambda outputs, images: outputs.sum(dim=1))
        >>> reading.squared_norms["weight"]
        tensor([8., 8., 8.], dtype=torch.float64)
    """

    def __init__(
        self,
        module: nn.Module,
        call: Callable[[Tensor], object] | None = None,
        *,
        parameters: Sequence[str] | None = None,
    ) -> None:
        self.module = module
        self.call = module if call is None else call
        self.parameters = _choose(module, parameters)
        self._axes: dict[torch.Size, dict[tuple[str, int], Axes]] = {}

    def __call__(
        self,
        images: Tensor,
        loss: Loss,
        *,
        norms: bool = True,
        reference: Mapping[str, Tensor] | None = None,
        reduce: Reduce | None = None,
    ) -> GradientReading:
        """Measure one batch.

        Args:
            images: `(N, ...)`, as the model expects them, where the model is.
            loss: From what the model returned and the images to one loss an image, `(N,)`; called once a pass.
            norms: Whether to compute squared norms.
            reference: Gradients to compare with, by parameter name; those of other parameters are ignored.
            reduce: Called with a name and the gradients `(N, *parameter.shape)`, which are formed for it; what it
                returns is kept.

        Raises:
            ConfigurationError: The loss is not one a image, images are not independent, or a parameter is used where
                its gradient cannot be told apart by image.
            AuditError: A loss is NaN or inf.
        """
        if len(images) == 0:
            raise ConfigurationError(
                "Expected one image or more to measure gradients of, but got none. Leave empty batches out."
            )
        images = images.detach().clone() if images.is_inference() else images.detach()
        axes = self._find_axes(images)
        size = _at_once(images)
        readings = [
            self._pass(images[start : start + size], loss, Ledger(norms, dict(reference or {}), reduce), axes, start)
            for start in range(0, len(images), size)
        ]
        return readings[0] if len(readings) == 1 else joined(readings)

    def _pass(
        self, images: Tensor, loss: Loss, ledger: Ledger, axes: dict[tuple[str, int], Axes], first: int
    ) -> GradientReading:
        holders = {name.rpartition(".")[0] for name in self.parameters}
        above = {".".join(holder.split(".")[:depth]) for holder in holders for depth in range(holder.count(".") + 2)}
        uses: list[Use] = []
        try:
            with recording(self.module, ledger.arrived, above, uses), torch.enable_grad():
                outputs = self.call(images)
                losses = _checked(loss(outputs, images), images.shape[0], first)
            assigned = assign_uses(self.module, self.parameters, uses, axes, losses)
            if nodes := ledger.open(uses, assigned, axes):
                # Only the deepest need be asked for: the way there leads past all others, whose gradients are not kept.
                torch.autograd.grad(losses.sum(), _deepest(nodes), allow_unused=True)
            return ledger.reading(outputs, losses)
        finally:
            for use in uses:
                use.forget()

    def _find_axes(self, images: Tensor) -> dict[tuple[str, int], Axes]:
        _refuse_coupling(self.module)
        kind = images.shape[1:]
        if kind not in self._axes:
            self._axes = {kind: find_axes(self.module, self.call, images)}
        return self._axes[kind]


def _choose(module: nn.Module, patterns: Sequence[str] | None) -> dict[str, Tensor]:
    everything: dict[str, Tensor] = {plain_name(name): parameter for name, parameter in module.named_parameters()}
    chosen = everything
    if patterns is not None:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in everything):
                near = get_close_matches(pattern, everything, n=3, cutoff=0.4) or list(everything)[:3]
                raise ConfigurationError(
                    f"Expected `parameters` to match names of parameters, but {pattern!r} matches none. Did you mean "
                    f"{' or '.join(repr(name) for name in near)}?"
                )
        chosen = {name: p for name, p in everything.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    trainable = {name: parameter for name, parameter in chosen.items() if parameter.requires_grad}
    if not trainable:
        which = "the model" if patterns is None else f"those that match `parameters={list(patterns)!r}`"
        raise ConfigurationError(
            f"Expected trainable parameters, whose gradients are measured, but {which} has none of the "
            f"{len(chosen)} that require grad. Unfreeze some with `requires_grad_(True)`, or use a score of the last "
            "layer, which needs no gradients."
        )
    return trainable


def _at_once(images: Tensor) -> int:
    """How many images one pass takes."""
    if images.device.type != "cpu":
        return len(images)
    return max(1, _PASS // max(1, images[0].numel()))


def _refuse_coupling(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            raise ConfigurationError(
                f"Expected batch norm to use running statistics, but `{name}` uses those of the batch, so that no "
                "gradient belongs to one image. Call inside `access.undisturbed` or after `model.eval()`, and keep "
                "`track_running_stats=True`."
            )


def _checked(losses: object, count: int, first: int) -> Tensor:
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigurationError(
            f"Expected `loss` to give one loss an image, shape ({count},), but got {got}. Use reduction='none' and sum "
            "or average over everything but the first axis."
        )
    if not losses.requires_grad:
        raise ConfigurationError(
            "Expected the losses to depend on trainable parameters, but they have no gradient. The model may run under "
            "`no_grad`, or detach what it returns."
        )
    broken = (~losses.detach().isfinite()).nonzero()[:, 0].tolist()
    if broken:
        raise AuditError(
            f"Expected finite losses, but got NaN or inf for {len(broken)} of {count} images, first for image "
            f"{first + broken[0]}. The training has probably diverged; look at the loss and the learning rate."
        )
    return losses


def _deepest(edges: list[tuple[Node, int]]) -> list[GradientEdge]:
    """Those of the edges from which no way leads on to another one."""
    nodes = {node for node, _ in edges}
    leads_on: dict[Node, bool] = {}
    for start in nodes:
        waiting = [(start, False)]
        while waiting:
            node, followed = waiting.pop()
            if followed:
                leads_on[node] = any(
                    after in nodes or leads_on[after] for after, _ in node.next_functions if after is not None
                )
            elif node not in leads_on:
                leads_on[node] = False
                waiting.append((node, True))
                waiting.extend((after, False) for after, _ in node.next_functions if after is not None)
    # Several outputs of one node, as of a split, are asked for together.
    return [GradientEdge(node, number, None) for node, number in dict.fromkeys(edges) if not leads_on[node]]
