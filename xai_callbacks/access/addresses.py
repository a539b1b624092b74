"""Names of the tensors that exist while a model runs: what a module returns, or what a function called in it does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from xai_callbacks.errors import TargetLayerError

__all__ = ["Address"]

_GRAMMAR = re.compile(
    r"(?P<module>(?:[^:#\[\]\\]|\\.)*)(?::(?P<function>\w+))?(?:#(?P<index>\d+))?(?:\[(?P<item>\d+)\])?", re.DOTALL
)
# Keys of a `ModuleDict` may hold any character but the dot.
_SPECIAL = re.compile(r"([:#\[\]\\])")


@dataclass(frozen=True)
class Address:
    r"""Where a tensor comes from in one forward pass.

    | written | the tensor |
    |---|---|
    | `layer4.1` | what the module `layer4.1` returns; of a tuple or list the first item |
    | `layer4.1[1]` | the second item of what it returns |
    | `block#11` | what the module returns at its twelfth call, where it runs several times |
    | `layer4.1:relu` | what the function `relu` returns, called in the forward of `layer4.1` itself |
    | `:add#2` | what the third `add` returns in the forward of the model itself |
    | `stages.a\:b` | what the module `stages.a:b` returns |

    Attributes:
        module: Dotted name of the module, empty for the model itself.
        function: Name of the function; None for what the module returns.
        index: Which call, from 0; None for the only one.
        item: Which item of a tuple or list; None for the tensor itself or the first.
    """

    module: str
    function: str | None = None
    index: int | None = None
    item: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as it is written.

        Raises:
            TargetLayerError: It is no address.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or not (found["module"] or found["function"]):
            raise TargetLayerError(
                f"Expected `target_layer` to be a name such as 'layer4', 'blocks.11[1]' or 'layer4.1:relu', but got "
                f"{text!r}. Give the dotted name of a module; a function called in it follows a colon."
            )
        index, item = (None if found[part] is None else int(found[part]) for part in ("index", "item"))
        return cls(re.sub(r"\\(.)", r"\1", found["module"], flags=re.DOTALL), found["function"], index, item)

    def matches(self, other: Address) -> bool:
        """Whether a tensor at `other`, whose call is counted, is at this address."""
        return (
            self.module == other.module
            and self.function == other.function
            and self.index in (None, other.index)
            and (self.item or 0) == (other.item or 0)
        )

    def __str__(self) -> str:
        function = f":{self.function}" if self.function else ""
        index = "" if self.index is None else f"#{self.index}"
        item = "" if self.item is None else f"[{self.item}]"
        module = _SPECIAL.sub(r"\\\1", self.module)
        return f"{module}{function}{index}{item}"
