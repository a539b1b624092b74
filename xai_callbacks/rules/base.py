"""`Rule`: a conclusion from the history of a run."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Finding, Key


class Rule(ABC):
    """A conclusion from a history: an alarm, an expectation. A pure function: equal histories give equal findings.

    A rule that raises is left out of that audit, and said; the others go on.

    Attributes:
        keys: Declarations of the values of its findings, for charts, tables and expectations.
    """

    keys: tuple[Key, ...] = ()

    @abstractmethod
    def conclude(self, history: History) -> Sequence[Finding]:
        """Conclude from all audits so far; the latest is `history.last`, which may hold findings of earlier rules."""

    def check(self, keys: Sequence[Key], probes: int, identity: AuditRecord | None = None) -> Sequence[str]:
        """Say before training what cannot be concluded, in sentences, such as for want of probes.

        Args:
            keys: Declarations of all keys that audits of this run may have, those of rules among them.
            probes: Number of probes.
            identity: A record of what is known of the probes before an audit, `class_names`, `groups` and `truth`.

        Raises a `ConfigurationError` if the rule asks for what no audit of this run has.
        """
        return ()

    def announce(self, finding: Finding) -> None:  # noqa: B027  # most rules only conclude
        """Tell of a finding whose value is the highest so far, once the record is logged; does nothing by default."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
