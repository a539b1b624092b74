"""`ScoreJudge`: what novelty scores of one audit say, and the little that must be remembered to compare audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from xai_callbacks.metrics.novelty import rank_correlation, separate
from xai_callbacks.metrics.summary import Estimate, summarize
from xai_callbacks.probes import ProbeSet

__all__ = ["Judged", "ScoreJudge", "why_useless"]


class Judged(NamedTuple):
    """Scores that say something, and what they say.

    Attributes:
        known: Scores of the probes by name, each `(N,)`.
        novel: Scores of the images known to be novel, each `(M,)`; empty without such images.
        estimates: Metrics by key.
        useless: Which scores were left out and why, in sentences.
    """

    known: dict[str, Tensor]
    novel: dict[str, Tensor]
    estimates: dict[str, Estimate]
    useless: tuple[str, ...]


class ScoreJudge:
    """Judges novelty scores of one probe set, audit after audit.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `novelty/<score>` | mean over the probes | see the score | - |
    | `novelty/<score>/rank_correlation` | whether the same probes are novel as at the previous audit | [-1, 1] | 0 |
    | `novelty/<score>/auroc`, ... | how well it tells novel images from probes, see `separate` | [0, 1] | see there |

    A score that is NaN or infinite for some image, or the same for all, is left out, with a sentence that names the
    image: it has no order to judge. So is one that failed, with the reason.

    Args:
        probes: The probe set.
        novel: Images known to be novel, or None.
    """

    def __init__(self, probes: ProbeSet, novel: ProbeSet | None = None) -> None:
        self.probes = probes
        self.novel = novel
        self._previous: dict[str, Tensor] = {}

    def judge(
        self,
        known: Mapping[str, Tensor],
        novel: Mapping[str, Tensor],
        origins: Mapping[str, str],
        failed: Mapping[str, str] | None = None,
    ) -> Judged:
        """Judge the scores of one audit; remembers it for the next.

        Args:
            known: Scores of the probes by name, each `(N,)` on the CPU.
            novel: Scores of the images known to be novel, each `(M,)`; empty without such images.
            origins: What each score was computed from, for the notes, such as "layer `fc`".
            failed: Why scores could not be computed, in sentences by name; what there is of them is not looked at.
        """
        failed = {} if failed is None else failed
        whole = {name: values for name, values in known.items() if name not in failed}
        reasons = {name: self._why_useless(values, novel.get(name)) for name, values in whole.items()}
        sound = {name: values for name, values in whole.items() if reasons[name] is None}
        told = {name: values for name, values in novel.items() if name in sound}
        estimates = dict(self._estimates(sound, told))
        self._previous = sound
        useless = tuple(
            f"The novelty score `{name}` of {origins[name]} was left out: {why}."
            for name, why in reasons.items()
            if why is not None
        )
        failures = tuple(
            f"The novelty score `{name}` of {origins[name]} was left out because it failed: {why}"
            for name, why in failed.items()
        )
        return Judged(sound, told, estimates, useless + failures)

    def forget(self) -> None:
        """Begin anew, as if nothing had been judged."""
        self._previous = {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"fingerprint": self.probes.fingerprint, "scores": dict(self._previous)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes is ignored."""
        if state.get("fingerprint") == self.probes.fingerprint:
            self._previous = dict(state["scores"])

    def _why_useless(self, known: Tensor, novel: Tensor | None) -> str | None:
        why = why_useless(known, self.probes.names)
        if why is None and novel is not None and self.novel is not None:
            why = why_useless(novel, self.novel.names)
        return why

    def _estimates(self, known: dict[str, Tensor], novel: dict[str, Tensor]) -> Iterator[tuple[str, Estimate]]:
        for name, values in known.items():
            yield f"novelty/{name}", summarize(values)
            if name in self._previous:
                value = rank_correlation(self._previous[name], values)
                yield f"novelty/{name}/rank_correlation", Estimate(value, None, None, 0.0, len(values), 0)
            if name in novel:
                for key, estimate in separate(values, novel[name]).items():
                    yield f"novelty/{name}/{key}", estimate


def why_useless(values: Tensor, names: Sequence[str]) -> str | None:
    """What is wrong with scores `(N,)` of named images: NaN, inf, or all the same; None if nothing is."""
    broken = (~values.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        return f"it is NaN or inf for {len(broken)} of {len(values)} probes, first for {names[broken[0]]!r}"
    if len(values) > 1 and bool((values == values[0]).all()):
        return f"it is {float(values[0]):.3g} for all {len(values)} probes, so that it tells none from another"
    return None
