"""`Trust`: whether heatmaps show what the model goes by, or would look the same without it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, in_words, is_number, require_integer, require_number
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, keys_of_maps
from xai_callbacks.measures.map_clusters import clustered
from xai_callbacks.metrics.trust import (
    SHARES,
    area_under,
    blurred,
    chance_similarity,
    coarse,
    deletion_curve,
    insertion_curve,
    map_similarity,
    permuted_maps,
    shifted_maps,
)
from xai_callbacks.record import FEWEST_FOR_INTERVAL, AuditRecord, Key, MapSet, Measured, PerProbe, interval
from xai_callbacks.record.summary import Bounds

_COPIES = 3  # with random weights
_EMPTY = 0.05  # share of maps that may be empty or not finite
_HALF = 0.5  # of the modules random, or more: whatever is answered then, it is not what was learnt
_HIDES = {"deletion": "a random order", "random_map": "shifted maps"}  # what hiding is held against
_EPS = torch.finfo(torch.float32).eps
_SEED = 0


class Trust(Measure):
    """Tests whether heatmaps depend on the model, and mark what its answers depend on; gives each a verdict.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `<map>/trust/randomised` | rank correlation with the maps of three copies with random weights | [-1, 1] | with those of other probes |
    | `<map>/trust/cascade_<share>` | likewise, with that share of the modules random, from the last on | [-1, 1] | likewise |
    | `<map>/trust/deletion` | score lost by hiding what it marks, beyond cells in random order | any | 0 |
    | `<map>/trust/insertion` | score gained by showing what it marks alone, beyond cells in random order | any | 0 |
    | `<map>/trust/random_map` | score lost by hiding what it marks, beyond what the map marks if it is shifted | any | 0 |
    | `<map>/trust/degenerate` | share of maps that are empty or not finite | [0, 1] | 0 |

    Maps are compared as they are drawn, with their signs; scores are means over the shares hidden or shown. A map fails
    the randomisation test unless `randomised`, and `cascade_<share>` of half the modules or more, are below the middle
    between their chance level and 1; and the deletion test unless `deletion` and `random_map` are above 0: each with a
    confidence of 97.5 %, so that what marks places at random passes the latter one in 40 times at most. Both
    are needed: a random order has no habit of place, which helps without knowing anything, and a shifted map loses it. A
    map fails, too, if more than 5 % of the maps are empty. `docs/results/trust.json` has which explainers fail, how often.

    Verdicts are in `AuditRecord.trust`: "passed", "fails the ... test", or "not tested: ...". What fails is drawn grey,
    and what is measured of it is no evidence to any rule. Maps are tested at the first audit of a trained model, and
    again every some audits, as weights change; in between the verdict stands. An untrained model is not tested, as its
    maps are those of random weights; nor are fewer than 30 probes.

    Cost of an audit with tests: a forward pass over the probes and those of the explainers for each of the three copies
    and each share of `cascade`, and memory for one more model; three passes for each of `shares` and each map, and two
    for each of `shares` and each grid.

    Args:
        every: Audits from one test to the next.
        cascade: Shares of the modules with random weights, rising, in (0, 1).
        shares: Shares of the pixels that are hidden, or shown alone, rising, in (0, 1).
        max_cost: Most forward passes an image that an explainer may cost to be asked about random weights; what costs
            more does not pass.

    Raises a `ConfigurationError` if an argument is out of range.
    """  # noqa: E501 - a row of a table cannot be broken

    def __init__(
        self,
        every: int = 10,
        *,
        cascade: Sequence[float] = (0.25, 0.5, 0.75),
        shares: Sequence[float] = SHARES,
        max_cost: float = 8.0,
    ) -> None:
        require_integer("every", every, minimum=1)
        self.cascade, self.shares = _rising("cascade", cascade), _rising("shares", shares)
        if not self.shares:
            raise ConfigurationError(
                "Expected `shares` to be one at least, but got none. Leave it out for the default."
            )
        self.every, self.max_cost = every, require_number("max_cost", max_cost, 0)

    def keys(self, context: Context) -> Sequence[Key]:
        """Those of each map; maps about the image have no score to lose."""
        found, level = [], "that of maps of other probes"
        copies = {"randomised": "all weights random", **{_stage(each): f"{each:.0%} random" for each in self.cascade}}
        scores = {
            "deletion": "score lost by hiding what the map marks, beyond a random order",
            "insertion": "score gained by showing what the map marks, beyond a random order",
            "random_map": "score lost by hiding what the map marks, beyond a shifted map",
        }
        for name in context.maps:
            found += [
                Key(f"{name}/trust/{test}", f"rank correlation with maps of {words}", -1.0, 1.0, level)
                for test, words in copies.items()
            ]
            found.append(Key(f"{name}/trust/degenerate", "maps that are empty or not finite", 0.0, 1.0, "0", "share"))
        for name in context.asked:
            found += [Key(f"{name}/trust/{test}", words, None, None, "0") for test, words in scores.items()]
        return found

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Test the maps that are due, and let the verdicts on others stand."""
        earlier = next((each for each in reversed(past.without_tensors()) if each.trust), AuditRecord())
        known = {name for name, settings in earlier.explainers.items() if record.explainers.get(name) == settings}
        context.trust.update({key: said for key, said in earlier.trust.items() if key.partition("/")[0] in known})
        due = {
            name: given for name, given in record.maps.items() if name not in known or self._is_due(name, record, past)
        }
        why = f"fewer than {FEWEST_FOR_INTERVAL} probes" if len(context.probes) < FEWEST_FOR_INTERVAL else ""
        why = "the model has not been trained" if record.untrained else why
        why = why or ("" if context.model is not None else "there is no model to ask")
        if context.model is None or why or not due:
            context.trust.update({key: f"not tested: {why}" for name in due for key in keys_of_maps(record, name)})
            due = {}
        found = self._tested(due, record, context) if due else {}
        if (verdict := context.trust.get(clustered(record, context), "")).startswith("fails"):
            context.trust["cluster"] = verdict  # which is measured of these maps
        return found

    def _tested(self, due: Mapping[str, MapSet], record: AuditRecord, context: Context) -> dict[str, PerProbe]:
        """Test some maps, and give each a verdict."""
        found: dict[str, PerProbe] = {}
        copies, orders = self._copies(context), dict[torch.Size, tuple[Tensor, Tensor]]()
        for name, given in due.items():
            maps, empty = coarse(given.heatmaps), _degenerate(given, record)
            tests = {test: _likeness(maps, others) for test, others in copies[name].items()}
            tests |= _areas(maps, empty, self.shares, context, orders) if given.about == "question" else {}
            tests["degenerate"] = (empty, torch.zeros_like(empty))
            for row, key in enumerate(keys_of_maps(record, name)):
                own = {test: PerProbe(values[row], chance[row]) for test, (values, chance) in tests.items()}
                found |= {f"{key}/trust/{test}": values for test, values in own.items()}
                context.trust[key], said = self._verdict(own)
                context.notes.extend(f"The heatmaps `{key}` {each}" for each in said)
        return found

    def _is_due(self, name: str, record: AuditRecord, past: History) -> bool:
        """Whether maps were not tested at any of the last audits."""
        recent = past.without_tensors()[max(0, len(past) - self.every + 1) :]
        return not any(
            f"{key}/trust/degenerate" in each.metrics for each in recent for key in keys_of_maps(record, name)
        )

    def _copies(self, context: Context) -> Mapping[str, Mapping[str, list[Tensor]]]:
        """Maps of copies with random weights, by explainer and test, of those that could be asked."""
        found: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        asked = [("randomised", seed, 1.0) for seed in range(_COPIES)]
        asked += [(_stage(share), _COPIES, share) for share in self.cascade]
        assert context.model is not None  # noqa: S101  # the model of an audit; narrows the type
        try:
            for test, seed, share in asked:
                given = context.model.randomised(seed, share=share, max_cost=self.max_cost, as_posed=True)
                for name, maps in given.items():
                    found[name][test].append(coarse(maps))
        except Exception as error:  # told; what needs no copy must not be lost for it
            context.notes.append(f"Heatmaps were not compared with those of random weights. {in_words(error)}")
            found.clear()
        return found

    def _verdict(self, tests: Mapping[str, PerProbe]) -> tuple[str, list[str]]:
        """What becomes of a map, and what is said of each test that it fails."""
        fails, lacks = dict[str, str](), "" if "randomised" in tests else "not compared with random weights"
        empty = float(tests["degenerate"].values.nanmean())
        if empty > _EMPTY:
            fails["emptiness test"] = f"{empty:.0%} are empty or not finite"
        stages = ["randomised", *(_stage(share) for share in self.cascade if share >= _HALF)]
        for test in (each for each in [*stages, *_HIDES] if each in tests):
            values, level, _ = tests[test]
            assert level is not None  # noqa: S101  # all tests have one; narrows the type
            known, value = values.isfinite(), f"{float(values.nanmean()):.2g}"
            if int(known.sum()) < FEWEST_FOR_INTERVAL:
                lacks = f"fewer than {FEWEST_FOR_INTERVAL} maps have a value"
            elif test in _HIDES:
                if not _above_zero(values[known]):
                    fails["deletion test"] = (
                        f"hiding what they mark takes {value} more of the score than {_HIDES[test]}"
                    )
            elif not _above_zero((1 + level - 2 * values)[known] / 2, (-1.0, 2.0)):
                alike = f"rank correlation {value}, {float(level.nanmean()):.2g} by chance"
                fails.setdefault("randomisation test", f"random weights draw the like ({test}: {alike})")
        verdict = f"not tested: {lacks}" if lacks else "passed"
        said = [f"fail the {test}: {why}." for test, why in fails.items()]
        return f"fails the {' and the '.join(fails)}" if fails else verdict, said

    def __repr__(self) -> str:
        return f"Trust({self.every}, cascade={self.cascade!r}, shares={self.shares!r}, max_cost={self.max_cost:g})"


def _rising(name: str, values: Sequence[float]) -> tuple[float, ...]:
    given: object = values
    numbers = isinstance(given, list | tuple) and all(is_number(each) and 0 < each < 1 for each in given)
    if not numbers or list(values) != sorted(set(values)):
        raise ConfigurationError(f"Expected `{name}` to be rising numbers in (0, 1), but got {values!r}.")
    return tuple(values)


def _stage(share: float) -> str:
    return f"cascade_{share:g}"


def _above_zero(values: Tensor, bounds: Bounds = (None, None)) -> bool:
    """Whether the interval of the mean is above 0."""
    low = interval(values, bounds=bounds)[0]
    return low is not None and low > 0


def _likeness(maps: Tensor, copies: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean similarity of maps `(Q, N, h, w)` to those of copies, and that by chance, `(Q, N)` each."""
    same, chance = (
        torch.stack([judge(maps, each) for each in copies]) for judge in (map_similarity, chance_similarity)
    )
    return same.nanmean(dim=0), chance.nanmean(dim=0)


def _areas(
    maps: Tensor,
    empty: Tensor,
    shares: Sequence[float],
    context: Context,
    orders: dict[torch.Size, tuple[Tensor, Tensor]],
) -> dict[str, tuple[Tensor, Tensor]]:
    """What hiding or showing what maps `(Q, N, h, w)` mark does to scores, beyond maps that know nothing; `(Q, N)`.

    `orders` keeps the areas of random orders by grid.
    """
    hide, show = (partial(_area, curve, shares=shares, context=context) for curve in (deletion_curve, insertion_curve))
    grid = maps.shape[-2:]
    if grid not in orders:
        order = permuted_maps(torch.arange(float(grid.numel())).view(grid).expand(maps.shape[1:]), _SEED)
        orders[grid] = hide(order), show(order)
    hidden, shown = orders[grid]
    own, alone, shifted = (
        torch.stack([area(each)[row] for row, each in enumerate(given)])
        for area, given in ((hide, maps), (show, maps), (hide, shifted_maps(maps, _SEED)))
    )
    found = {"deletion": hidden - own, "insertion": alone - shown, "random_map": shifted - own}
    return {test: (each.where(empty == 0, torch.nan), torch.zeros_like(each)) for test, each in found.items()}


def _area(curve: Callable[..., Tensor], maps: Tensor, *, shares: Sequence[float], context: Context) -> Tensor:
    """Area under the curve of each question by maps `(N, h, w)`, `(Q, N)` float64."""
    assert context.model is not None  # noqa: S101  # the model of an audit; narrows the type
    parts = []
    for rows in torch.split(torch.arange(len(maps)), context.chunk_size):
        images = context.probes.images[rows]
        score = partial(context.model.answers, rows=rows)
        parts.append(area_under(curve(score, images, maps[rows], fill=blurred(images), shares=shares), shares))
    return torch.cat(parts, dim=1).double()


def _degenerate(given: MapSet, record: AuditRecord) -> Tensor:
    """Whether maps are empty or not finite, `(Q, N)` float64; NaN where nothing is asked."""
    peaks = given.heatmaps.new_tensor(given.peaks or (0.0,) * len(given.heatmaps))[:, None]
    largest = given.heatmaps.abs().amax(dim=(-2, -1))
    sound = given.heatmaps.isfinite().flatten(2).all(dim=2) & (largest > _EPS * peaks)
    empty = (~sound).double()
    if given.about == "question" and record.facts is not None and record.foils is not None:
        nothing = (record.facts < 0) | ((record.facts == record.foils) & (largest == 0))  # as "why P, rather than P?"
        empty = empty.where(~nothing, torch.nan)
    return empty
