"""`Patchwise`: each window of an image explained by another explainer."""

import math
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xai_callbacks.access import Trace, trace_model
from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.explainers.base import Every, Explainer, Observation, Plan
from xai_callbacks.explainers.windows import Border, WindowExplainer


@dataclass(frozen=True)
class _PatchwisePlan(Plan):
    inner: Plan = field(default_factory=Plan)  # of the explainer, for a window
    head: str | None = None  # name of the last linear layer


class Patchwise(WindowExplainer):
    """Each window of an image explained by another explainer, its maps pasted where they belong.

    For nets that judge patches and average, such as nets of image quality: "Why 0.58, rather than 0.75?" is decided
    patch by patch by the score of each, as `2 (y_patch - q) R` (Prabhushankar et al., ICIP 2020, at a stride of 4).
    What is asked stays what it was of the whole image, and so does its fact. Maps are enlarged to the window, and each
    pixel gets the mean over the windows that cover it. Where windows lie side by side, the sum over the pixels is
    the mean over the windows of the sums of their maps. Cost: for each window a forward pass of its size, and what the
    explainer costs.

    Familiar images are known to the explainer by the window in their middle. To answer at every n-th audit only, wrap
    this one: `Every(5, Patchwise(...))`.

    Args:
        explainer: What explains a window, such as `HiResCAM()`.
        window: Side of the window in pixels.
        stride: Pixels from one window to the next; None for half the window.
        border: See `Border`.
        name: What keys begin with; None for the name of the explainer and `_patchwise`.
    """

    def __init__(
        self,
        explainer: Explainer,
        window: int,
        stride: int | None = None,
        *,
        border: Border = "flush",
        name: str | None = None,
    ) -> None:
        require_instance("explainer", explainer, Explainer, "an explainer such as HiResCAM()")
        if isinstance(explainer, Every):
            raise ConfigurationError(
                f"Expected `explainer` to explain at every audit, but got {explainer!r}. Write "
                f"Every({explainer.every}, Patchwise(...))."
            )
        super().__init__(window, stride, border, f"{explainer.name}_patchwise" if name is None else name)
        self.explainer = explainer
        self.units = explainer.units  # type: ignore[misc]  # those of the explainer, whose place this one takes
        self.about = explainer.about  # type: ignore[misc]

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Trace two windows, in the middle of the images, and plan the explainer on them."""
        windows = self.windows(trace.images)
        middle = self._middle(trace.images.detach())
        small = trace_model(trace.subject, middle, chunk_size=trace.chunk_size)
        inner, head = self.explainer.prepare(small, self._familiar(reference)), small.head()
        count, side = math.prod(windows.grid), windows.side
        return _PatchwisePlan(
            reason=f"{count} windows of {side} x {side} pixels, each explained on its own. {inner.reason}",
            cost=count * (1 + inner.cost),
            verified=inner.verified,
            notes=inner.notes,
            inner=inner,
            head=None if head is None else head.name,
        )

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """Observe and explain windows, `chunk_size` at a time."""
        images, windows, planned = observation.images, self.windows(observation.images), cast("_PatchwisePlan", plan)
        bare = replace(observation, reference=self._familiar(observation.reference), progress=lambda _share: None)
        counts, done = windows.counts().to(images.device), 0
        questions = 1 if self.about == "image" else len(observation.posed)
        sums = torch.zeros(questions, len(images), *counts.shape, device=images.device)
        for parts, rows, places in windows.cut(images, observation.chunk_size):
            seen = bare.of(parts, rows, planned.inner.layers, planned.head)
            maps = self.explainer.explain(seen, planned.inner).detach().to(images.device, torch.float32)
            # Each cell as if the whole window looked like it, so that grids of any size are alike.
            spots = maps * maps.shape[-2:].numel()
            large = interpolate(spots, size=parts.shape[-2:], mode="bilinear", align_corners=False)
            for index, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
                sums[:, row, *windows.at(place)] += large[:, index]
            done += len(parts)
            observation.progress(done / (math.prod(windows.grid) * len(images)))
        rows, columns = (
            torch.arange(size).clamp(max=end - 1) for size, end in zip(images.shape[-2:], counts.shape, strict=True)
        )
        return (sums / counts)[..., rows[:, None], columns] / images.shape[-2:].numel()

    def _middle(self, images: Tensor) -> Tensor:
        """The window in the middle of each image."""
        windows = self.windows(images)
        return images[..., *windows.at(math.prod(windows.grid) // 2)]

    def _familiar(self, reference: Tensor | None) -> Tensor | None:
        return None if reference is None else self._middle(reference)

    def __repr__(self) -> str:
        settings = f"window={self.window}, stride={self.stride}, border={self.border!r}, name={self.name!r}"
        return f"Patchwise({self.explainer!r}, {settings})"
