"""Attention of vision transformers, multiplied through the blocks from the tokens that the outputs read to the patches.

With `A_l` `(heads, S, S)` the attention among the S tokens in block l, G_l the gradient of a question's score with
respect to it, and I the identity:

| explainer | each block | source |
|---|---|---|
| `AttentionRollout` | `R = (mean_heads(A_l) + I) / 2 R` | Abnar and Zuidema, ACL 2020 |
| `GradientAttention` | `R = R + mean_heads(relu(G_l A_l)) R` | Chefer, Gur and Wolf, ICCV 2021, for self-attention |

R starts at the identity. The map is the row of the class token at the patches; where the outputs read several tokens,
as after average pooling or beside a distillation token, it is the mean of their rows.

Matrices are seen by a `TorchFunctionMode`, in one forward pass: the model is not touched, whether it is written with
`nn.MultiheadAttention`, `F.scaled_dot_product_attention` or a softmax. What is done to a matrix after its softmax is
not seen, nor are kernels of other libraries, such as flash-attn.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xai_callbacks.access import FeatureLayout, Layer, Subject, Trace, choose_layer
from xai_callbacks.access.layouts import possible_layouts
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers.base import About, Explainer, Observation, Plan, Units, require_gradients

_WITHOUT = "Use GradCAM() or Occlusion(), which need none."


@dataclass(frozen=True, kw_only=True)
class AttentionPlan(Plan):
    """A plan with the place of the patches among the tokens, and the tokens that the outputs read, such as `(0,)`."""

    tokens: FeatureLayout
    read: tuple[int, ...]


class _AttentionExplainer(Explainer):
    """Base of explainers by attention: non-negative maps on the grid of the patches."""

    units: ClassVar[Units] = "relative"
    cost: ClassVar[float]

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that all tokens attend to each other in each block, and find the patches and what is read of them.

        Cost: as `access.choose_layer`.
        """
        name, kind, count = type(self).__name__, type(trace.subject.module).__name__, len(trace.images)
        with torch.no_grad():
            shapes = [weights.shape for weights in _attend(trace.subject, trace.images.detach())[1]]
        size = shapes[0][-1] if shapes else 0
        wanted = f"Expected self-attention among all tokens of an image in each block for {name}()"
        if not shapes or any((shape[0], *shape[2:]) != (count, size, size) for shape in shapes):
            seen = ", ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes))
            found = f"attention of shape {seen} for {count} images" if seen else "no attention"
            raise ConfigurationError(f"{wanted}, but {kind} has {found}. {_WITHOUT}")
        layer = choose_layer(trace)
        layout = layer.layout
        if "L" not in layout.name or layout.prefix + layout.cells + layout.suffix != size:
            raise ConfigurationError(
                f"{wanted}, but the tokens of {kind}, {size}, are not those that lie on the image, of which "
                f"`{layer.name}` has {layout.cells}. {_WITHOUT}"
            )
        read = _read(trace, layer)
        rows, columns = layout.grid
        reason = (
            f"{len(shapes)} matrices of attention among {size} tokens, {rows} x {columns} of them patches; the outputs "
            f"read {len(read)}"
        )
        return AttentionPlan(reason=reason, cost=self.cost, verified=layer.verified, tokens=layout, read=read)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One forward pass; see the class for what else."""
        assert isinstance(plan, AttentionPlan)  # noqa: S101  # as `prepare` made it; narrows the type
        layout = plan.tokens
        size = layout.prefix + layout.cells + layout.suffix
        row = torch.zeros(len(observation.images), 1, size, device=observation.images.device)
        row[..., list(plan.read)] = 1 / len(plan.read)
        rows = torch.cat([*self.rows(observation, row)], dim=1).transpose(0, 1)
        patches = rows[..., layout.prefix : layout.prefix + layout.cells]
        return patches.reshape(*patches.shape[:2], *layout.grid)

    @abstractmethod
    def rows(self, observation: Observation, row: Tensor) -> Iterator[Tensor]:
        """Carry a row `(N, 1, S)` of the identity back through the blocks; one for each map."""


class AttentionRollout(_AttentionExplainer):
    """Attention rollout: the mean attention of the heads, with half for the residual connection, multiplied through.

    It shows from where tokens were mixed, whatever is asked: the values that were mixed, the MLPs and the classes do
    not count. The cells add up to 1 at most. Cost: one forward pass.
    """

    name = "attention_rollout"
    about: ClassVar[About] = "image"
    cost: ClassVar[float] = 1.0

    def rows(self, observation: Observation, row: Tensor) -> Iterator[Tensor]:
        """Backwards, a row needs products with vectors alone."""
        with torch.no_grad():
            _, kept = _attend(observation.subject, observation.images, lambda weights: weights.float().mean(dim=1))
        for attention in reversed(kept):
            row = (row @ attention + row) / 2
        yield row


class GradientAttention(_AttentionExplainer):
    """Attention weighted by its gradient: where the score would rise with attention, multiplied through the blocks.

    Only positive products count, so that a map shows no evidence against. The identity with which R starts is taken off
    in the end (ours; it would be a constant of maps that are means of rows). Twice the score is not twice the map.
    Cost: one forward pass, and one backward pass a question; the attention matrices of all blocks are kept meanwhile.
    """

    name = "gradient_attention"
    cost: ClassVar[float] = 2.0

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Check that the model can be differentiated, too."""
        require_gradients(trace, self)
        return super().prepare(trace, reference)

    def rows(self, observation: Observation, row: Tensor) -> Iterator[Tensor]:
        """One backward pass a question."""
        images = observation.images.detach().clone().requires_grad_(True)
        outputs, kept = _attend(observation.subject, images)
        # What a function returns may be another view than what it went on with.
        used = [weights if weights._base is None else weights._base for weights in kept]
        for done, posed in enumerate(observation.posed, 1):
            score = posed.score(outputs).sum()
            gradients = torch.autograd.grad(score, used, retain_graph=True, materialize_grads=True)
            gained = torch.zeros_like(row)  # beside the identity, in which what is small would be lost to rounding
            for attention, gradient in zip(reversed(kept), reversed(gradients), strict=True):
                weights = attention.detach().float() * gradient.view_as(attention).float()
                gained = gained + (row + gained) @ weights.clamp_min(0).mean(dim=1)
            yield gained
            observation.progress(done / len(observation.posed))


def _attend(
    subject: Subject, images: Tensor, keep: Callable[[Tensor], Tensor] = lambda weights: weights
) -> tuple[Tensor, list[Tensor]]:
    """Outputs of a model, and what `keep` makes of each matrix `(N, heads, L, S)` by which L tokens attend to S."""
    kept: list[Tensor] = []
    with _Attending(lambda weights: kept.append(keep(weights))):
        return subject(images), kept


class _Attending(TorchFunctionMode):
    """Shows attention matrices as they are used, on the graph; answers are those of the model up to rounding."""

    def __init__(self, show: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._show = show

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Operators of exported programs are named with their overload, such as `softmax.int`.
        name = getattr(func, "__name__", "").partition(".")[0]
        if name == "scaled_dot_product_attention":
            output, weights = _attention(*args, **kwargs)
            self._show(weights)
            return output
        if name == "multi_head_attention_forward":
            given = inspect.signature(func).bind(*args, **kwargs).arguments
            output, weights = func(**given | {"need_weights": True, "average_attn_weights": False})
            self._show(weights)
            if not given.get("need_weights", True):
                return output, None
            return output, weights.mean(dim=1) if given.get("average_attn_weights", True) else weights
        output = func(*args, **kwargs)
        if name == "softmax" and output.ndim == 4 and _adds_up(output):
            self._show(output)
        return output


def _attention(  # noqa: PLR0917  # the arguments of PyTorch
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention as PyTorch documents it, and its weights before dropout."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -torch.inf) if hidden else logits + attn_mask
    weights = logits.softmax(dim=-1)
    return F.dropout(weights, dropout_p) @ value, weights


def _adds_up(weights: Tensor) -> bool:
    """Whether rows add up to 1 along the last axis, so that the softmax was taken along it."""
    return bool(((weights.detach().float().sum(dim=-1) - 1).abs() < 0.05).all())


def _read(trace: Trace, layer: Layer) -> tuple[int, ...]:
    """The tokens that the outputs depend on after the last attention: the class token, or all that are averaged."""
    layout, axis = layer.layout, layer.layout.name.index("L")
    values = [
        value
        for value in reversed(trace.values)
        if layout in possible_layouts(value.shape, trace.images.shape, trace.grids, layout.name)
    ]
    gradient = next(each for each in trace.gradients_of(values) if each is not None)
    return tuple(gradient.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0].tolist())
