"""`LogitTap`: the logits of a user's own forward passes, overheard."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from xai_callbacks.access import Subject
from xai_callbacks.access.subject import find_module
from xai_callbacks.tasks import binary_logits

__all__ = ["LogitTap"]


@dataclass
class _Heard:
    """Calls in one step that gave logits for all its images, and the logits of the first."""

    logits: Tensor | None = None
    calls: int = 0

    def hear(self, logits: Tensor) -> None:
        self.calls += 1
        if self.logits is None:
            # A copy, since what follows may change it in place.
            self.logits = logits.detach().clone()


class LogitTap:
    """Listens to a classifier while it is used for something else. Nothing is changed and nothing is run.

    It listens at the last linear layer, where the model ends in one, since a step may call parts of the model one by
    one; and to the classifier as a whole, since a compiled part hides what is in it. A module inside a compiled one is
    left alone: a hook would have it compiled anew.

    Args:
        subject: The model.
        head: Name of its last linear layer, or None.
    """

    def __init__(self, subject: Subject, head: str | None) -> None:
        self._subject = subject
        self._images = 0
        self._head, self._whole = _Heard(), _Heard()
        self._other_sizes: list[int] = []
        self._stack = ExitStack()
        hidden = _inside_compiled(subject.root)
        # A callable that is no module may do anything with what the module returns.
        whole = subject.module if isinstance(subject.call, nn.Module) else None
        layer = None if head is None else find_module(subject.module, head, "head")
        self._listens = False
        for module, hook in ((layer, self._hear_head), (whole, self._hear_whole)):
            if module is not None and module not in hidden:
                self._stack.callback(module.register_forward_hook(hook).remove)
                self._listens = True

    def expect(self, images: int) -> None:
        """Listen for logits of so many images, and forget what was heard before; 0 for none."""
        self._images = images
        self._head, self._whole = _Heard(), _Heard()
        self._other_sizes = []

    def take(self) -> tuple[Tensor | None, int]:
        """The logits `(N, K)` of the first call that gave any for all images, and the number of such calls."""
        heard = self._head if self._head.calls else self._whole
        self._images = 0
        return heard.logits, heard.calls

    def why_nothing(self) -> str:
        """What there was instead of logits, in words."""
        if not self._listens:
            return "it is compiled as a whole, or is no module, and cannot be listened to"
        if self._other_sizes:
            sizes = ", ".join(str(size) for size in dict.fromkeys(self._other_sizes))
            return f"it was called, but for {sizes} images instead of those that have labels"
        return "it was not called, or returned nothing that could be logits"

    def close(self) -> None:
        """Stop listening."""
        self._stack.close()

    def _hear_head(self, _module: nn.Module, _given: tuple[object, ...], output: object) -> None:
        logits = _first_tensor(output)
        if not self._images or logits is None or logits.ndim != 2:
            return
        if len(logits) != self._images:
            self._other_sizes.append(len(logits))
            return
        self._head.hear(binary_logits(logits) if logits.shape[1] == 1 else logits)

    def _hear_whole(self, _module: nn.Module, _given: tuple[object, ...], output: object) -> None:
        if not self._images or self._head.calls:
            return
        try:
            logits = self._subject.interpret(self._subject.select(output, self._images))
        except Exception:
            # Whatever `output` says of it: a strategy may have the module return what the step returns.
            tensor = _first_tensor(output)
            if tensor is not None and tensor.ndim == 2:
                self._other_sizes.append(len(tensor))
            return
        self._whole.hear(logits)


def _first_tensor(output: object) -> Tensor | None:
    """The tensor itself, or the first entry of a tuple or list if that is a tensor."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _inside_compiled(root: nn.Module) -> set[nn.Module]:
    """Modules whose calls are part of compiled code."""
    if getattr(root, "_compiler_ctx", None) is not None:  # how Lightning marks a LightningModule that is compiled
        return set(root.modules())
    inside: set[nn.Module] = set()
    for module in root.modules():
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):
            inside.update(part for part in module.modules() if part is not module)
        elif getattr(module, "_compiled_call_impl", None) is not None:
            inside.update(module.modules())
    return inside
