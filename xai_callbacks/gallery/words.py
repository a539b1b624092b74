"""What is said of a probe and of an audit, in few words."""

import math
import re
from collections import Counter

from torch import Tensor

from xai_callbacks.errors import first_of
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Finding
from xai_callbacks.render import Line, Tone
from xai_callbacks.tasks import UNKNOWN, Task

_LABELS = 3  # labels or values named at a time
_FINDINGS = 4  # conclusions said in one picture
# What findings of a kind are about, and their number, in few words.
_IN_FEW = {
    "cue": ("cue", ": {0.value:+.2f} [{0.low:.2f}, {0.high:.2f}] for its class"),
    "attribution": ("region", ": {0.value:.1f}× heat"),
}


def when(record: AuditRecord) -> str:
    """Such as "epoch 3 · step 1200"; alarms count epochs, loggers steps."""
    return f"before training · step {record.step}" if record.untrained else f"epoch {record.epoch} · step {record.step}"


def step_in_few(step: int) -> str:
    """A step in at most five characters, such as "950", "12.3k", "1.23M"."""
    if step >= 999_500:
        return f"{step / 1e6:.3g}M"
    return f"{step / 1000:.3g}k" if step >= 10_000 or (step >= 1000 and step % 100 == 0) else str(step)


def plural(count: int, noun: str) -> str:
    """Such as "1 probe", "3 probes"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def tone(record: AuditRecord, index: int) -> Tone:
    """Whether the answer about a probe is right, as a tone; plain where that is unknown, and for values."""
    right = math.nan if record.correct is None else float(record.correct[index])
    return "plain" if math.isnan(right) else "right" if right == 1 else "wrong"


def answer(probes: ProbeSet, record: AuditRecord, index: int, *, sure: bool = True) -> str:
    """What the model answered about one probe, such as "cat (93 %)"; empty if nothing was asked of its outputs."""
    if record.outputs is None or record.predictions is None:
        return ""
    task, outputs = probes.task, record.outputs[index]
    if not task.classifies:
        return _values(task, outputs)
    chances, most = task.probabilities(outputs[None])[0], int(outputs.argmax())
    said = record.predictions[index].nonzero()[:, 0].tolist() if task.kind == "multi-label" else [most]
    names = [task.name(each) + (f" ({100 * float(chances[each]):.0f} %)" if sure else "") for each in said or [most]]
    # Of a picture with none of the labels, the likeliest is still worth knowing.
    return first_of(names, _LABELS) if said else f"none, at most {names[0]}"


def truth(probes: ProbeSet, index: int) -> str:
    """What is known of one probe, such as "is cat"; empty if nothing is."""
    if probes.truth is None:
        return ""
    known, task = probes.truth[index], probes.task
    if not task.classifies:
        return f"is {_values(task, known.reshape(-1))}"
    if known.ndim == 0:
        return f"is {task.name(int(known))}"
    if bool((known == UNKNOWN).all()):
        return ""
    names = [task.name(each) for each in (known == 1).nonzero()[:, 0].tolist()]
    nothing = "none of the known labels" if bool((known == UNKNOWN).any()) else "none of the labels"
    return f"is {first_of(names, _LABELS) or nothing}"


def asked_of(record: AuditRecord, question: int, index: int) -> str:
    """A question about one probe in few words, such as "Why cat?" or "cat vs dog"."""
    title, heading = record.titles[question][index], re.escape(record.headings[question])
    found = re.fullmatch(re.sub(r"\b[PQ]\b", "(.+)", heading), title)
    return " vs ".join(found.groups()) if found and found.re.groups == 2 else title


def findings(record: AuditRecord) -> list[Line]:
    """What rules found, most alarming first; one calm line where they found nothing."""
    loud = _loud(record)
    lines = [Line(finding.sentence, _tone_of(finding), rows=4) for finding in loud[:_FINDINGS]]
    if len(loud) > _FINDINGS:
        lines.append(Line(f"and {len(loud) - _FINDINGS} more", "watch"))
    if record.findings and not loud:
        lines.append(Line(f"no alarm from {plural(len(record.findings), 'check')}", "muted"))
    return lines


def headline(record: AuditRecord) -> list[Line]:
    """The same in at most two lines of few words: the most alarming finding, and the others."""
    words: dict[str, Tone] = {}
    for finding in _loud(record):
        words.setdefault(_in_few(finding, record), _tone_of(finding))
    parts = [[*words][:1], [*words][1:]]
    return [Line("; ".join(part), words[part[0]], rows=1) for part in parts if part] or findings(record)


def _loud(record: AuditRecord) -> list[Finding]:
    """Findings that speak against the model: alarms, then expectations that fail, then what to watch."""
    return sorted((each for each in record.findings if each.urgency > 0), key=lambda each: -each.urgency)


def _tone_of(finding: Finding) -> Tone:
    return "alarm" if finding.serious else "watch"


def _in_few(finding: Finding, record: AuditRecord) -> str:
    """Such as "ALARM cue patch: +0.58 [0.54, 0.63] for its class", or "1 of 2 expectations fail"."""
    kind, _, name = finding.key.removeprefix("alarm/").partition("/")
    if kind == "expectation":
        states = [each.state for each in record.findings if each.key.startswith("expectation/")]
        return f"{states.count('fail')} of {len(states)} expectations fail"
    noun, number = _IN_FEW.get(kind, (kind, ""))
    known = finding.estimate is not None and finding.estimate.low is not None
    words = f"{finding.state.replace('alarm', 'ALARM')} {noun} {name}".rstrip()
    return words + number.format(finding.estimate) if known else words


def confusion(probes: ProbeSet, record: AuditRecord) -> str:
    """The most common error of a classifier, such as "most often: cat taken for dog (4 of 9 errors)"; or empty."""
    if record.truth is None or record.predictions is None or probes.task.kind != "single-label":
        return ""
    pairs = zip(record.truth.tolist(), record.predictions.tolist(), strict=True)
    errors = Counter((known, said) for known, said in pairs if known != said)
    for (known, said), count in errors.most_common(1):
        if count > 1:
            pair = f"{probes.class_name(known)} taken for {probes.class_name(said)}"
            return f"most often: {pair} ({count} of {errors.total()} errors)"
    return ""


def _values(task: Task, values: Tensor) -> str:
    """Such as "0.58", or "blur 0.58, noise 0.1"."""
    if len(values) == 1:
        return f"{float(values[0]):.3g}"
    return first_of([f"{task.name(index)} {float(value):.3g}" for index, value in enumerate(values)], _LABELS)
