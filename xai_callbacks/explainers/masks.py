"""`RISE`: random masks that hide parts of the images, and the score of what is left."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xai_callbacks.access import Trace
from xai_callbacks.errors import ConfigurationError, require_integer, require_number
from xai_callbacks.explainers.base import Explainer, Observation, Plan, Units
from xai_callbacks.explainers.pixels import Baseline, baseline_of, read_baseline


class RISE(Explainer):
    """Randomized input sampling for explanation (Petsiuk, Das and Saenko, BMVC 2018): a black box under random masks.

    With `s_i` the score of an image under mask `M_i`, which keeps a pixel wholly at 1, the map is
    `sum_i s_i M_i / sum_i M_i - mean_i s_i`: how much higher the score is where the pixel was kept. The second term is
    not in the paper; it keeps a constant that is added to the score from showing, and the mean of the map near 0. No
    gradients, so that functions are explained, too. All images, questions and audits get the same masks, and one set of
    forward passes answers all questions. Nothing smaller than a cell shows, `1 / cells` of the shorter side, and the
    error falls with the root of `masks`. Cost: `masks` forward passes.

    Args:
        masks: Number of masks.
        cells: Cells of a mask along the shorter side of the images, enlarged bilinearly and shifted at random.
        keep: Probability with which a cell is kept.
        baseline: What hides the rest, as in `Occlusion`.
        name: What keys begin with.
    """

    name = "rise"
    units: ClassVar[Units] = "relative"

    def __init__(
        self, masks: int = 500, cells: int = 7, keep: float = 0.5, baseline: Baseline = "mean", name: str | None = None
    ) -> None:
        require_integer("masks", masks, minimum=2)
        require_integer("cells", cells, minimum=2)
        keep = require_number("keep", keep, 0, 1, ends="()")
        super().__init__(name)
        self.masks, self.cells, self.keep = masks, cells, keep
        self.baseline: Baseline = read_baseline("baseline", baseline)

    def prepare(self, trace: Trace, reference: Tensor | None) -> Plan:
        """Settle the grid of the masks for the size of the images."""
        rows, columns = grid_of(trace.images, self.cells)
        return Plan(reason=f"the pixels, under {self.masks} random masks of {rows} x {columns} cells", cost=self.masks)

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """One forward pass a mask for all questions, `chunk_size` images at a time."""
        images, done = observation.images, 0
        count, size = len(images), (images.shape[2], images.shape[3])
        base, places = baseline_of(images, self.baseline), torch.arange(count, device=images.device)
        raised = torch.zeros(len(observation.posed), count, *size, dtype=torch.float64)
        kept, total = torch.zeros(size, dtype=torch.float64), torch.zeros(raised.shape[:2], dtype=torch.float64)
        cells, shifts = self._drawn(images, observation.seed)
        with torch.no_grad():
            for some in torch.split(torch.arange(self.masks), max(1, observation.chunk_size // count)):
                masks = _enlarged(cells[some], shifts[some], size)
                altered = base + masks.to(images)[:, None, None] * (images - base)
                scores = observation.scores(altered.flatten(0, 1), places.repeat(len(some)))
                scores = scores.reshape(len(scores), len(some), count).cpu().double()
                raised += torch.einsum("qmn,mhw->qnhw", scores, masks.double())
                kept, total = kept + masks.double().sum(dim=0), total + scores.sum(dim=1)
                done += len(some)
                observation.progress(done / self.masks)
        # Of a pixel that no mask kept, of very few masks, nothing is known.
        return (raised / kept.clamp_min(1e-6) - total[:, :, None, None] / self.masks).where(kept > 0, 0).float()

    def _drawn(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Cells of all masks, `(masks, h + 1, w + 1)` of 0 and 1, and shifts `(masks, 2)` as shares of a cell."""
        generator, (rows, columns) = torch.Generator().manual_seed(seed), grid_of(images, self.cells)
        cells = torch.rand(self.masks, rows + 1, columns + 1, generator=generator) < self.keep
        return cells.float(), torch.rand(self.masks, 2, generator=generator)


def grid_of(images: Tensor, cells: int) -> tuple[int, int]:
    """Rows and columns of cells, nearly square ones, for images `(N, C, H, W)`: `cells` along the shorter side.

    Raises a `ConfigurationError` if there are fewer pixels than cells.
    """
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if cells > shorter:
        raise ConfigurationError(
            f"Expected `cells` to be at most {shorter}, the shorter side of the images, but got {cells}."
        )
    return round(cells * height / shorter), round(cells * width / shorter)


def _enlarged(cells: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks `(M, H, W)` in [0, 1]: cells `(M, h + 1, w + 1)` enlarged to a cell more than the image, and cut to it."""
    sides = [math.ceil(pixels / (count - 1)) for pixels, count in zip(size, cells.shape[1:], strict=True)]
    whole = [side * count for side, count in zip(sides, cells.shape[1:], strict=True)]
    large = interpolate(cells[:, None], size=whole, mode="bilinear", align_corners=False)[:, 0]
    starts = (shifts * torch.tensor(sides)).long().tolist()
    cut = [each[y : y + size[0], x : x + size[1]] for each, (y, x) in zip(large, starts, strict=True)]
    return torch.stack(cut)
