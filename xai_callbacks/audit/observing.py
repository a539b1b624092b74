"""`observe`: the one forward pass over a chunk of images that all explainers and scores share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from xai_callbacks.access import Layer, Subject, Tapped, capture, tap
from xai_callbacks.errors import AuditError, is_out_of_memory, require_instance
from xai_callbacks.explainers import Observation
from xai_callbacks.questions import Posed, Question

__all__ = ["observe"]


def observe(
    subject: Subject,
    images: Tensor,
    truth: Tensor | None,
    questions: Sequence[Question],
    layers: Sequence[Layer],
    *,
    head: str | None = None,
    reference: Tensor | None = None,
    chunk_size: int = 16,
) -> Observation:
    """Run a chunk of images once and pose the questions; call inside `undisturbed`.

    The graph begins at the earliest layer; without layers there is none.

    Args:
        subject: The model, whose outputs are known.
        images: `(N, C, H, W)`.
        truth: Labels or targets of the images.
        questions: The questions.
        layers: Layers to capture, each once.
        head: Name of the last linear layer, to be tapped; None for none.
        reference: Familiar images.
        chunk_size: Images in one forward pass, for explainers that run the model again.

    Raises:
        TargetLayerError: A layer did not run once, or the outputs do not depend on any.
        AuditError: The device ran out of memory.
    """
    images = subject.images(images)
    try:
        outputs, activations, tapped = _forward(subject, images, layers, head)
    except Exception as error:
        if is_out_of_memory(error):
            raise AuditError(
                f"Expected {len(images)} images of {tuple(images.shape[1:])} (C, H, W) to fit into memory, but the "
                f"device ran out of it: {error}. Lower `chunk_size`, now {chunk_size}."
            ) from error
        raise
    settled = outputs.detach()
    truth = None if truth is None else truth.to(settled.device)
    posed = tuple(question.pose(settled, truth, subject.task) for question in questions)
    for question, each in zip(questions, posed, strict=True):
        require_instance(f"{question!r}.pose", each, Posed, "a method that returns a Posed")
    return Observation(
        subject=subject,
        images=images,
        outputs=outputs,
        posed=posed,
        activations=activations,
        head=tapped,
        reference=reference,
        chunk_size=chunk_size,
    )


def _forward(
    subject: Subject, images: Tensor, layers: Sequence[Layer], head: str | None
) -> tuple[Tensor, dict[str, Tensor], Tapped | None]:
    names = list(dict.fromkeys(layer.name for layer in layers))
    # `capture` switches gradients on at the first layer. A model that switches them off itself, as wrappers of frozen
    # backbones do, undoes that on leaving its `no_grad`; with gradients on from the start, leaving it switches them on
    # again, at the price of a graph for what came before.
    # So do views that are changed in place.
    for mode in (torch.no_grad, torch.enable_grad) if names else (torch.no_grad,):
        with ExitStack() as stack:
            stack.enter_context(mode())
            captured = stack.enter_context(capture(subject, names) if names else nullcontext())
            calls = stack.enter_context(tap(subject, head, detach=not names)) if head is not None else []
            try:
                outputs = subject(images)
            except RuntimeError as error:
                if mode is torch.no_grad and "created in no_grad mode" in str(error):
                    continue
                raise
        if outputs.requires_grad or not names:
            break
    return outputs, {} if captured is None else captured.tensors(), calls[0] if calls else None
