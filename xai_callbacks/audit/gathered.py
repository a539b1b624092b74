"""Results of the chunks of one audit, collected in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.audit.grids import bounded
from xai_callbacks.questions import Posed

__all__ = ["Asked", "Gathered", "Observed"]


@dataclass(frozen=True, eq=False)
class Asked:
    """What one question was about, for all N probes.

    Attributes:
        fact: Outputs asked about, `(N,)` int64, -1 for none.
        foil: Outputs they are held against, `(N,)` int64; None where there are none.
        value: Values they are held against, `(N,)` float32; None for classes and labels.
    """

    fact: Tensor
    foil: Tensor | None
    value: Tensor | None


@dataclass(frozen=True, eq=False)
class Observed:
    """Everything one pass over the probes gave, stacked over chunks and on the CPU.

    Attributes:
        outputs: `(N, K)`; None where nothing is asked of them.
        asked: One entry a question.
        maps: Signed heatmaps `(Q, N, h, w)` by explainer.
        scores: Novelty scores `(N,)` by name.
    """

    outputs: Tensor | None
    asked: tuple[Asked, ...]
    maps: dict[str, Tensor]
    scores: dict[str, Tensor]


class Gathered:
    """Results of all chunks, in tensors on the CPU made when the first chunk comes.

    Collecting small results in lists would leave them between large temporary ones and fragment the heap, so that the
    memory of an audit would grow with the number of probes after all.
    """

    def __init__(self, probes: int) -> None:
        self._probes = probes
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._questions = 0

    def put(self, key: tuple[str, str], values: Tensor, chunk: slice) -> None:
        """Store values `(n, ...)` of one chunk."""
        if key not in self._tensors:
            self._tensors[key] = torch.empty(self._probes, *values.shape[1:], dtype=values.dtype)
        self._tensors[key][chunk] = values.detach().to("cpu")

    def put_maps(self, explainer: str, heatmaps: Tensor, chunk: slice) -> None:
        """Store heatmaps `(Q, n, h, w)` of an explainer, on a grid that bounds memory."""
        self.put(("maps", explainer), bounded(heatmaps).transpose(0, 1), chunk)

    def put_posed(self, posed: tuple[Posed, ...], chunk: slice) -> None:
        """Store what was asked."""
        self._questions = len(posed)
        for index, each in enumerate(posed):
            for name in ("fact", "foil", "value"):
                values = getattr(each, name)
                if values is not None:
                    self.put((f"asked {index}", name), values, chunk)

    def drop(self, key: tuple[str, str]) -> None:
        """Forget what failed."""
        self._tensors.pop(key, None)

    def maps(self) -> dict[str, Tensor]:
        """Heatmaps `(Q, N, h, w)` by explainer."""
        return {name: maps.transpose(0, 1).contiguous() for name, maps in self._of_kind("maps").items()}

    def observed(self) -> Observed:
        """Everything, stacked."""
        return Observed(
            outputs=self._tensors.get(("answers", "outputs")),
            asked=tuple(self._asked(index) for index in range(self._questions)),
            maps=self.maps(),
            scores=self._of_kind("score"),
        )

    def _asked(self, index: int) -> Asked:
        fact, foil, value = (self._tensors.get((f"asked {index}", name)) for name in ("fact", "foil", "value"))
        assert fact is not None  # noqa: S101  # there always is one; narrows the type
        return Asked(fact, foil, value)

    def _of_kind(self, wanted: str) -> dict[str, Tensor]:
        return {name: values for (kind, name), values in self._tensors.items() if kind == wanted}
