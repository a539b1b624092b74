"""`Trial`: an edit of the probes, and a judgement of what the model makes of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from xai_callbacks.errors import with_settings
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import Key, Measured


@dataclass(frozen=True, eq=False)
class Views:
    """Some probes, edited in several ways.

    Attributes:
        images: By name of the view, `(n, C, H, W)` in [0, 1]; those as shown or in an earlier view are not run again.
        facts: More about these probes that the judgement needs, `(n, ...)` by name.
    """

    images: Mapping[str, Tensor]
    facts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answers:
    """Outputs of the model for all probes.

    Attributes:
        given: Logits of the probes as they are, `(N, K)`, or values `(N, 1)` for regression.
        views: Those of each view, by name.
        facts: The facts of `Views`, `(N, ...)` by name.
    """

    given: Tensor
    views: Mapping[str, Tensor]
    facts: Mapping[str, Tensor]


class Trial(ABC):
    """An edit of the probes, and a judgement of what the model makes of it.

    Attributes:
        name: Beginning of the keys of the trial, such as `cue/patch`; differs from that of every other trial.
    """

    name: str

    def keys(self) -> Sequence[Key]:
        """Declare the keys of `judge`, for charts and expectations; what is not declared may have any value."""
        return ()

    def __repr__(self) -> str:
        return with_settings(self)

    @abstractmethod
    def check(self, probes: ProbeSet) -> None:
        """Raise a `ConfigurationError` if the trial does not suit a probe set, before anything is run."""

    @abstractmethod
    def views(self, shown: Shown) -> Views:
        """Edit some probes."""

    @abstractmethod
    def judge(self, probes: ProbeSet, answers: Answers) -> Measured:
        """Judge the answers, by full key."""

    def notes(self, answers: Answers, judged: Measured) -> Sequence[str]:
        """Say what the figures of `judge` cannot show; for the notes of the record, and told once."""
        return ()
