"""What is said where no layer is found: what was seen, why it was refused, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xai_callbacks.access.subject import BlackBox
from xai_callbacks.access.trace import Trace, Value

__all__ = ["nothing_holds", "nothing_to_explain"]

_WITHOUT = (
    "Explain by methods that need no layer, such as Occlusion() or IntegratedGradients(), or go without heatmaps with "
    "`explainers=[]`."
)


def nothing_to_explain(trace: Trace) -> str:
    """The message where no tensor may be a feature map."""
    module = trace.subject.module
    if folded := _folded(trace):
        return folded
    if isinstance(module, BlackBox):
        seen = "a function is not looked into"
    elif any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        seen = "what runs inside of its scripted parts is not seen"
    elif not trace.differentiable:
        seen = (
            "its outputs cannot be differentiated: it disables gradients for good, as `inference_mode` does, or goes "
            "through numbers that torch does not follow"
        )
    else:
        seen = "no tensor that is seen in it has rows and columns"
    return (
        f"Expected a feature map between the images and the outputs of {type(module).__name__}, but {seen}. Class "
        "activation maps need one; explainers such as Occlusion() and IntegratedGradients() do not."
    )


def _folded(trace: Trace) -> str:
    """What is said of maps that have another number of images; empty if there are none."""
    images = trace.images.shape[0]
    folded = [value for value in trace.values if len(value.shape) == 4 and value.shape[0] != images and value.weighted]
    if not folded:
        return ""
    several = folded[-1].shape[0] > images
    how = "folds crops, tiles, frames or other images into the batch" if several else "looks at images one by one"
    return (
        f"Expected one feature map an image, but `{trace.address(folded[-1])}` is {folded[-1].shape} for {images} "
        f"images: the model {how}. Audit the part that sees one of them with `model=`, or explain by Occlusion() or "
        "IntegratedGradients()."
    )


def nothing_holds(trace: Trace, maps: Sequence[Value], branches: Sequence[str], refused: Sequence[str]) -> str:
    """The message where none of the `maps`, the last first, passes.

    `branches` are names of maps side by side that lie on the image; `refused` is what was found of those through which
    all paths lead.
    """
    kind = type(trace.subject.module).__name__
    seen = f" Of those through which all paths lead, {'; '.join(refused[:4])}." if refused else ""
    if not trace.differentiable:
        return (
            f"Expected to differentiate {kind}, but its outputs are detached, rounded or computed without gradients "
            f"after `{trace.address(maps[0])}`. {_WITHOUT}"
        )
    if not branches:
        # Maps of crops, or of other images beside these, are no candidates.
        folded = "" if any(len(value.shape) == 4 for value in maps) else _folded(trace)
        return folded or f"Expected a feature map of {kind} that lies on the image, but found none.{seen} {_WITHOUT}"
    if len(branches) == 1:
        depend = f"see the images around `{branches[0]}` as well.{seen} Its heatmap would be given for all."
        each, advice = f"GradCAM({branches[0]!r})", "there all the same"
    else:
        listed = ", ".join(f"`{name}`" for name in branches)
        depend = f"depend on several side by side: {listed}.{seen} The heatmap of one branch would be given for all."
        each = ", ".join(f"GradCAM({name!r}, name='gradcam_{index + 1}')" for index, name in enumerate(branches))
        advice = "at each"
    return (
        f"Expected a feature map through which all paths from the images to the outputs of {kind} lead, but they "
        f"{depend} Explain {advice}, `explainers=[{each}]`. {_WITHOUT}"
    )
