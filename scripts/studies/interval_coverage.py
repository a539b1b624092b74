"""How often do the 95 % intervals of an audit hold the truth?

Draws probes from distributions whose mean is known, as metrics of an audit have them: shares near 0 and 1, flips that
are rare, paired answers, small values with few large ones, U-shaped and heavy-tailed ones, and classes of unequal size
that count alike. Prints, and writes, the share of intervals that hold the mean, and their mean width, at 30, 64 and 128
probes. Where no interval was given, that share is reported beside it.

    python scripts/studies/interval_coverage.py --json docs/results/coverage.json

Takes about ten minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _provenance import provenance

from xai_callbacks.record import summarize

PROBES = (30, 64, 128)
DRAWS, DRAWS_UNBOUNDED = 8000, 1000
FREE = (None, None)


class Case(NamedTuple):
    """One distribution.

    Attributes:
        name: In words.
        draw: `(draws, n)` values from a shape and a generator.
        mean: Its mean.
        bounds: What the values lie between; none where they may be of any size.
        rare: Share of the probes that are of the first of two classes, which count alike; None for a plain mean.
    """

    name: str
    draw: Callable[[tuple[int, int], torch.Generator], Tensor]
    mean: float
    bounds: tuple[float | None, float | None]
    rare: float | None = None


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def share(rate: float, bounds: tuple[float, float] = (0.0, 1.0)) -> Case:
    """Yes or no; as the effect of a cue that flips so many, within -1 and 1."""
    name = f"share {rate:g}" if bounds[0] == 0 else f"flips of {rate:.0%}"
    return Case(name, lambda shape, generator: (_uniform(shape, generator) < rate).double(), rate, bounds)


def paired(up: float, down: float) -> Case:
    """Differences of two answers: 1, 0 or -1."""

    def draw(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        value = _uniform(shape, generator)
        return (value < up).double() - (value > 1 - down).double()

    return Case(f"paired, {up:.0%} up, {down:.0%} down", draw, up - down, (-1.0, 1.0))


def few_large(rate: float) -> Case:
    """Small changes of a probability, and few near .7."""

    def draw(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        small, large = 0.02 * _normal(shape, generator), 0.4 + 0.6 * _uniform(shape, generator)
        return torch.where(_uniform(shape, generator) < rate, large, small).clamp(-1, 1)

    return Case(f"small, {rate:.0%} large", draw, 0.7 * rate, (-1.0, 1.0))


def power(exponent: float) -> Case:
    """A skewed value in [0, 1], such as the heat on a small region: a power of a uniform one."""
    return Case(
        f"skewed, mean {1 / (exponent + 1):.2f}", lambda s, g: _uniform(s, g) ** exponent, 1 / (exponent + 1), (0, 1)
    )


def u_shaped() -> Case:
    """Near -1 or 1, hardly ever between."""
    return Case("U-shaped", lambda s, g: torch.sin(math.pi * (_uniform(s, g) - 0.5)), 0.0, (-1.0, 1.0))


def two_classes(rare: float) -> Case:
    """A class that is rare and flips, and one that is frequent and does not, which count alike."""
    return Case(
        f"class of {rare:.0%} flips by half", lambda s, g: (_uniform(s, g) < 0.5).double(), 0.25, (-1.0, 1.0), rare
    )


def lognormal(sigma: float) -> Case:
    """A ratio without an upper bound."""
    mean = math.exp(sigma**2 / 2)
    return Case(f"lognormal, sigma {sigma:g}", lambda s, g: (sigma * _normal(s, g)).exp(), mean, FREE)


def heavy() -> Case:
    """Student's t of three degrees of freedom, such as differences of logits."""

    def draw(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        squares = sum(_normal(shape, generator) ** 2 for _ in range(3))
        return _normal(shape, generator) / torch.sqrt(torch.as_tensor(squares) / 3)

    return Case("Student's t, 3 degrees", draw, 0.0, FREE)


def mostly_zero(rate: float) -> Case:
    """Nought, but for a share that is exponential."""

    def draw(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return -_uniform(shape, generator).log() * (_uniform(shape, generator) < rate)

    return Case(f"nought, {rate:.0%} exponential", draw, rate, FREE)


CASES = (
    *(share(rate) for rate in (0.5, 0.8, 0.9, 0.98, 0.99)),
    *(share(rate, (-1.0, 1.0)) for rate in (0.01, 0.02, 0.05, 0.1, 0.3)),
    *(paired(*rates) for rates in ((0.02, 0.02), (0.1, 0.05), (0.3, 0.05))),
    *(few_large(rate) for rate in (0.03, 0.1, 0.3)),
    *(power(exponent) for exponent in (3, 9, 30)),
    u_shaped(),
    *(two_classes(rare) for rare in (0.5, 0.25)),
    *(lognormal(sigma) for sigma in (0.5, 1.0)),
    heavy(),
    *(mostly_zero(rate) for rate in (0.3, 0.05)),
)


def coverage(case: Case, probes: int) -> dict[str, float | None]:
    """Share of the intervals that hold the mean, their mean width, and the share of draws that had one."""
    draws = DRAWS if case.bounds[0] is not None else DRAWS_UNBOUNDED
    values = case.draw((draws, probes), torch.Generator().manual_seed(probes))
    strata = None
    if case.rare is not None:
        strata = (torch.arange(probes) >= round(case.rare * probes)).long()
        values = values.where(strata == 0, 0.0)
    found = [summarize(row, bounds=case.bounds, strata=strata) for row in values]
    ends = [(each.low, each.high) for each in found if each.low is not None and each.high is not None]
    given = len(ends) / draws
    if not ends:
        return {"coverage": None, "width": None, "given": given}
    held = sum(low - 1e-9 <= case.mean <= high + 1e-9 for low, high in ends) / len(ends)
    return {"coverage": held, "width": sum(high - low for low, high in ends) / len(ends), "given": given}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {case.name: {str(count): coverage(case, count) for count in PROBES} for case in CASES}
    table = Table("values", *(f"{count} probes: held, width" for count in PROBES))
    for name, row in figures.items():
        cells = []
        for each in row.values():
            held, width = each["coverage"], each["width"]
            rest = "" if each["given"] == 1 else f" ({each['given']:.0%} have one)"
            cells.append("none" if held is None or width is None else f"{held:.1%}, {width:.3f}{rest}")
        table.add_row(name, *cells)
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": figures, "provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
