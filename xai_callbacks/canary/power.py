"""`Power`: what an audit would have seen, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass

from xai_callbacks.record import Estimate

__all__ = ["Planted", "Power"]


@dataclass(frozen=True)
class Planted:
    """One shortcut that was planted, and what the audit made of it.

    Attributes:
        strength: Share of the training images that had the cue of their class; what was offered.
        gap: Accuracy with the cue of the class minus that with another's; what was taken up.
        effect: `cue/<name>/effect` at the last audit.
        state: What the rule says.
    """

    strength: float
    gap: Estimate
    effect: Estimate
    state: str


@dataclass(frozen=True)
class Power:
    """What an audit would have seen.

    Attributes:
        rows: The shortcuts planted, by rising strength.
        probes: Number of probes audited.
    """

    rows: tuple[Planted, ...]
    probes: int

    @property
    def weakest(self) -> Planted | None:
        """The shortcut of the smallest gap above 0 that raised an alarm, as did all of larger ones; None without."""
        found = None
        for row in self._shortcuts():
            if row.state != "alarm":
                break
            found = row
        return found

    @property
    def missed(self) -> Planted | None:
        """The shortcut of the largest gap that raised no alarm; None if all above 0 did."""
        return next((row for row in self._shortcuts() if row.state != "alarm"), None)

    @property
    def sentence(self) -> str:
        """What it comes to. It holds for cues like the planted one."""
        shortcuts, weakest, missed = self._shortcuts(), self.weakest, self.missed
        if not shortcuts:
            return (
                "Nothing is known of what the audit would have seen: no copy of the model took up the cue. Fine-tune "
                "with more `epochs`, a larger `learning_rate` or stronger `strengths`."
            )
        if weakest is None:
            largest = shortcuts[0].gap.value
            return (
                f"With these {self.probes} probes the audit would have seen no shortcut that was planted, not even one "
                f"that costs {largest:.2f} of accuracy. Larger ones need more `epochs` or a larger `learning_rate`."
            )
        rest = "it missed none that was planted" if missed is None else f"it missed one of {missed.gap.value:.2f}"
        return (
            f"With these {self.probes} probes the audit would have seen a shortcut that costs "
            f"{weakest.gap.value:.2f} of accuracy or more; {rest}."
        )

    def table(self) -> str:
        """One line a shortcut, as plain text."""
        lines = [f"{'strength':<10}{'gap':<22}{'effect':<22}state"]
        lines += [f"{row.strength:<10.2f}{_words(row.gap):<22}{_words(row.effect):<22}{row.state}" for row in self.rows]
        return "\n".join(lines)

    def _shortcuts(self) -> list[Planted]:
        return sorted((row for row in self.rows if row.gap.value > 0), key=lambda row: row.gap.value, reverse=True)


def _words(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:z.2f}, {estimate.high:z.2f}]"
    return f"{estimate.value:z.2f}{interval}"
