"""What a user's validation step says of its images: labels and cues of its batch, and logits of its forward passes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks.access import Subject
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import ConfigurationError, in_words
from xai_callbacks.tasks import binary_logits

BatchReader = int | str | Callable[[Any], object]
"""Where in a batch something is: a key, an index, a dotted path of keys, indexes and attributes, or a function."""

# Names under which batches commonly hold labels, most specific first.
LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class")


def read_labels(batch: object, label: BatchReader | None) -> Tensor:
    """The labels of a batch, see `read_integers`; without `label`, entry 1 of a tuple or list, or the usual names."""
    if label is None:
        named = _named(batch)
        second = 1 if isinstance(batch, Sequence) and len(batch) >= 2 else None
        label = next((name for name in LABEL_NAMES if name in named), second)
    if label is None:
        raise ConfigurationError(
            f"Expected a batch with labels at index 1, or under one of {', '.join(LABEL_NAMES)}, but got "
            f"{_describe(batch)}. Say where they are with `label=`: a key, an index, or a function of the batch."
        )
    return read_integers(batch, label, "label")


def read_integers(batch: object, where: BatchReader, argument: str) -> Tensor:
    """One integer an image, `(N,)` int64, on the device where the batch has them.

    Booleans, whole floats, `(N, 1)` and lists will do. Where there is no such thing, or it is something else, a
    `ConfigurationError` names the `argument` and lists what the batch has.
    """
    found = _found(batch, where, argument)
    try:
        values = found.detach() if isinstance(found, Tensor) else torch.as_tensor(found)
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim != 1 or values.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"Expected `{argument}={where!r}` to lead to one integer an image, (N,), but got {_describe(found)}. Pass "
            "a function of the batch that returns them."
        ) from error
    if values.is_floating_point() and not bool((values == values.trunc()).all()):
        raise ConfigurationError(
            f"Expected `{argument}={where!r}` to lead to whole numbers, but got fractions or NaN. Turn them into "
            "classes with a function of the batch."
        )
    return values.long()


def _found(batch: object, where: BatchReader, argument: str) -> object:
    if callable(where):
        try:
            return where(batch)
        except Exception as error:
            raise ConfigurationError(
                f"Expected `{argument}`, a function, to read a batch, but it raised {in_words(error)} "
                f"The batch is {_describe(batch)}."
            ) from error
    whole = isinstance(where, int) or (isinstance(batch, Mapping) and where in batch)  # a key may hold dots itself
    try:
        return reduce(_entry, [where] if whole else str(where).split("."), batch)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"Expected `{argument}` to be a key, index or path in the validation batch, but got {where!r} for "
            f"{_describe(batch)}. With several validation dataloaders, `dataloader=` chooses one."
        ) from error


def _entry(found: object, part: str | int) -> object:
    if isinstance(found, Mapping):
        return found[part]
    if isinstance(part, str) and not part.isdecimal():
        return getattr(found, part)
    if isinstance(found, Sequence):
        return found[int(part)]
    raise TypeError  # such as the third image of a tensor, which could pass for something


def _named(batch: object) -> Mapping[Any, object]:
    return batch if isinstance(batch, Mapping) else batch._asdict() if hasattr(batch, "_asdict") else {}


def _describe(item: object) -> str:
    kind = type(item).__name__
    if isinstance(item, Tensor):
        return f"a tensor {tuple(item.shape)}"
    if named := _named(item):
        return f"a {kind} of {{{', '.join(f'{key}: {_describe(value)}' for key, value in named.items())}}}"
    if isinstance(item, (list, tuple)):
        return f"a {kind} of [{', '.join([*map(_describe, item[:6]), *(['...'] if len(item) > 6 else [])])}]"
    return repr(item) if item is None or isinstance(item, (str, int, float)) else f"a {kind}"


class LogitTap:
    """Listens to a classifier while it is used for something else. Nothing is changed and nothing is run.

    It listens at `head`, the last linear layer, where the model ends in one, since a step may call its parts one by
    one; and to the classifier as a whole, since a compiled part hides what is in it. A module inside a compiled one is
    left alone: a hook would have it compiled anew.
    """

    def __init__(self, subject: Subject, head: str | None) -> None:
        self._subject = subject
        self.expect(0)
        hidden = _inside_compiled(subject.root)
        # A callable that is no module may do anything with what the module returns.
        whole = subject.module if isinstance(subject.call, nn.Module) else None
        layer = None if head is None else find_module(subject.module, head, "head")
        self._stack, self._listens = ExitStack(), False
        for module, hook in ((layer, self._hear_head), (whole, self._hear_whole)):
            if module is not None and module not in hidden:
                self._stack.enter_context(module.register_forward_hook(hook))
                self._listens = True

    def expect(self, images: int) -> None:
        """Listen for logits of so many images, and forget what was heard before; 0 for none."""
        self._images = images
        self._first: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._other_sizes: list[int] = []

    def take(self) -> tuple[Tensor | None, int]:
        """The logits `(N, K)` of the first call that gave any for all images, and the number of such calls."""
        self._images = 0
        place = "head" if "head" in self._first else "whole"
        return self._first.get(place), self._calls[place]

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
        logits = _first_matrix(output)
        if not self._images or logits is None:
            return
        if len(logits) == self._images:
            self._note("head", binary_logits(logits) if logits.shape[1] == 1 else logits)
        else:
            self._other_sizes.append(len(logits))

    def _hear_whole(self, _module: nn.Module, _given: tuple[object, ...], output: object) -> None:
        if not self._images or "head" in self._first:
            return
        try:
            self._note("whole", self._subject.interpret(self._subject.select(output, self._images)))
        except Exception:
            # Whatever `output` says of it: a strategy may have the module return what the step returns.
            if (matrix := _first_matrix(output)) is not None:
                self._other_sizes.append(len(matrix))

    def _note(self, place: str, logits: Tensor) -> None:
        self._calls[place] += 1
        if place not in self._first:
            self._first[place] = logits.detach().clone()  # a copy, since what follows may change it in place


def _first_matrix(output: object) -> Tensor | None:
    """The tensor itself, or the first entry of a tuple or list, if that is a tensor `(N, K)`."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim == 2 else None


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
