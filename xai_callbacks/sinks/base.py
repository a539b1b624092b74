"""`Sink`: where records and pictures go; and what several sinks write alike."""

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from xai_callbacks.gallery import Picture
from xai_callbacks.record import AuditRecord

_LONGEST_PART = 100  # bytes; file systems take 255


class Sink(ABC):
    """Takes records and pictures. A sink that raises or blocks costs its own pictures, never the run."""

    @abstractmethod
    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Write one audit, with its findings, and its pictures, which are drawn when the first sink takes them.

        While Lightning trains, called on a thread of its own, one audit after another.
        """

    def close(self) -> None:  # noqa: B027  # most sinks hold nothing back
        """Finish what was begun; nothing is written afterwards."""


def findings_text(record: AuditRecord) -> str:
    """The findings of an audit as a list in Markdown, the most alarming first, and what failed; empty if nothing is."""
    found = sorted(record.findings, key=lambda each: -each.urgency)
    lines = [f"- **{_plain(each.state)}** {_plain(each.sentence)}" for each in found]
    lines += [f"- **left out** {_plain(sentence)}" for sentence in (*record.failed, *record.useless)]
    return "\n".join(lines)


def tag_path(tag: str) -> str:
    """A tag as a relative path that every file system takes; different tags give different paths.

    What is no letter, digit, space or one of `_ - . =` becomes `_`, as do slashes after the third, and long parts are
    cut; a part that was changed ends with a hash of what it was.
    """
    return "/".join(_part(part) for part in tag.split("/", 3))


def main_scalars(record: AuditRecord, name: str = "audit") -> dict[str, float]:
    """The values of all metrics, such as `audit/gradcam/why/relevance_mass/core`; NaN where no probe was valid."""
    return {f"{name}/{key}": estimate.value for key, estimate in record.metrics.items()}


def detail_scalars(record: AuditRecord, name: str = "audit") -> dict[str, float]:
    """Ends of the 95 % intervals that charts draw, such as `audit_range/cue/patch/effect/low` and `/high`.

    Only of the key metrics, for each line is a card more on TensorBoard's page; the record has all intervals.
    """
    scalars: dict[str, float] = {}
    for key in key_metrics(record):
        low, high = record.metrics[key].low, record.metrics[key].high
        if low is not None and high is not None:
            scalars |= {f"{name}_range/{key}/low": low, f"{name}_range/{key}/high": high}
    return scalars


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and inf, which charts cannot draw."""
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def key_metrics(record: AuditRecord) -> dict[str, tuple[float, ...]]:
    """Metrics to look at first, with the thresholds they are held against.

    Those that findings are about, in the order of the findings; the accuracy where there are none.
    """
    found: dict[str, tuple[float, ...]] = {}
    for finding in record.findings:
        if finding.about in record.metrics:
            given = () if finding.threshold is None else (finding.threshold,)
            found[finding.about] = tuple(dict.fromkeys((*found.get(finding.about, ()), *given)))
    return found or ({"accuracy": ()} if "accuracy" in record.metrics else {})


def key_charts(record: AuditRecord, prefix: str = "", name: str = "audit") -> dict[str, tuple[str, list[object]]]:
    """Title and chart of each key metric for TensorBoard's custom scalars page, with its interval if there is one.

    Thresholds and the chance level stand in the title: lines of one run share a colour, so further lines could not be
    told apart. A metric that is not finite has no chart. `prefix` is what the logger puts before every tag.
    """
    drawn, found = finite(detail_scalars(record, name)), dict[str, tuple[str, list[object]]]()
    for key, thresholds in key_metrics(record).items():
        estimate = record.metrics[key]
        if math.isfinite(estimate.value):
            notes = [f"threshold {value:.3g}" for value in thresholds]
            if estimate.chance is not None and math.isfinite(estimate.chance):
                notes.append(f"chance {estimate.chance:.2g}")
            ends = [tag for end in ("low", "high") if (tag := f"{name}_range/{key}/{end}") in drawn]
            tags = [f"{prefix}{tag}" for tag in (f"{name}/{key}", *ends)]
            title = f"{key} ({', '.join(notes)})" if notes else key
            found[key] = title, ["Margin" if len(ends) == 2 else "Multiline", tags]
    return found


def _part(part: str) -> str:
    clean = re.sub(r"[^\w .=-]", "_", part).strip(" .")
    clean = clean.encode()[:_LONGEST_PART].decode(errors="ignore") or "_"
    return clean if clean == part else f"{clean}_{hashlib.sha256(part.encode(errors='replace')).hexdigest()[:8]}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*<\[\]])", r"\\\1", " ".join(text.split()))
