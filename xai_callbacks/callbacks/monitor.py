"""`ShortcutMonitor`: an `AuditCallback` that is set up to watch for one shortcut or several."""

import os
from collections.abc import Sequence

from xai_callbacks.audit import Auditor
from xai_callbacks.callbacks.audit import AuditCallback
from xai_callbacks.callbacks.notices import OnError
from xai_callbacks.callbacks.schedule import Schedule
from xai_callbacks.callbacks.watch import Watch
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.cues import Cue
from xai_callbacks.measures import Baselines, Localization, MapClusters, Measure
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Why
from xai_callbacks.rules import AlarmRule, Rule, as_rules
from xai_callbacks.sinks import Sink
from xai_callbacks.trials import CueTrial


class ShortcutMonitor(AuditCallback):
    """Says, while a classifier trains, whether it leans on a cue.

    At each audit the probes are shown with the cue and without, and with controls of it; heatmaps are judged by
    baselines, and clustered where there are enough probes of one label each. An alarm is raised when the interval of
    `audit/cue/<cue>/pull` lies beyond the threshold at two consecutive audits and the cue was learnt, see `AlarmRule`.
    Keys and pictures are those of `AuditCallback`.

    This is `AuditCallback` with an `Auditor(probes, [Why(), Why("label")], novelty=[], trials=[CueTrial(cue), ...],
    measures=[Localization(), Baselines(), MapClusters()])`. Take that door for anything beside cues. Cost: at most 12
    forward passes over the probes an audit with one cue; at the first audit three more, by models with random weights.

    Args:
        probes: The probe set, labelled, or the path of a saved one; or an `Auditor`, whose probes, questions,
            explainers and other settings stay, and to which trials and measures are added. An interval needs 30 probes
            or more; what 64 and 320 are worth is in `docs/shortcuts.md`.
        cue: What the model must not go by, such as `PatchCue(...)`, or several.
        rules: See `AuditCallback`, as for all other arguments and errors; an `AlarmRule()` is added if there is none.

    Example::

        cue = PatchCue([1.0, 0.0, 0.0], points_to="benign")
        trainer = Trainer(callbacks=[ShortcutMonitor(probes, cue)])
    """

    def __init__(
        self,
        probes: Auditor | ProbeSet | str | os.PathLike[str],
        cue: Cue | list[Cue],
        *,
        watches: list[Watch] | None = None,
        rules: list[Rule | str | dict[str, str]] | None = None,
        sinks: list[Sink] | None = None,
        schedule: Schedule | None = None,
        max_panels: int = 16,
        on_error: OnError = "warn",
        name: str = "audit",
    ) -> None:
        given = as_rules(rules or [])
        alarms = [] if any(isinstance(rule, AlarmRule) for rule in given) else [AlarmRule()]
        super().__init__(
            _auditor(probes, cue if isinstance(cue, Sequence) else [cue]),
            watches=watches,
            rules=[*alarms, *given],
            sinks=sinks,
            schedule=schedule,
            max_panels=max_panels,
            on_error=on_error,
            name=name,
        )


def _auditor(probes: Auditor | ProbeSet | str | os.PathLike[str], cues: Sequence[Cue]) -> Auditor:
    if not cues:
        raise ConfigurationError(
            "Expected `cue` to be a cue such as PatchCue(...), or several, but got none. AuditCallback does without."
        )
    given = probes if isinstance(probes, Auditor) else Auditor(probes, novelty=[])
    labelled = given.probes.labels is not None
    measures: list[Measure] = [Localization(), Baselines()]
    if labelled and given.probes.task.kind == "single-label" and given.explainers:
        measures.append(MapClusters())
    usual = (Why(), Why("label")) if labelled else (Why(),)
    questions = given.questions if given is probes else usual
    return given.extended(questions=questions, trials=[CueTrial(cue) for cue in cues], measures=measures)
