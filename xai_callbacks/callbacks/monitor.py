"""`ShortcutMonitor`: an `AuditCallback` that is set up to watch for one shortcut or several."""

from __future__ import annotations

from collections.abc import Sequence

from xai_callbacks.access import ModelSelector, OutputSelector
from xai_callbacks.alarms import AlarmRule
from xai_callbacks.callbacks.audit import AuditCallback
from xai_callbacks.callbacks.base import OnError, loaded
from xai_callbacks.callbacks.batches import BatchReader
from xai_callbacks.callbacks.groups import Group
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import Explainer
from xai_callbacks.interventions.cues import Cue
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Why
from xai_callbacks.trials import CueTrial, RegionTrial, Trial

__all__ = ["ShortcutMonitor"]


class ShortcutMonitor(AuditCallback):
    """Says, while a classifier trains, whether it leans on a cue.

    At each audit the probes are shown with the cue and without, the region `spurious` is filled beside an equal area
    elsewhere if the probes have one, heatmaps are judged by nulls, and clustered where there are enough probes; the
    region and the clusters are for probes of one label each. An alarm is raised when the interval of
    `audit/cue/<cue>/effect` lies above the threshold at two consecutive audits. Keys and pictures are those of
    `AuditCallback`.

    Cost: at most 12 forward passes over the probes an audit with one cue; at the first audit three more, by models with
    random weights.

    Args:
        probes: The probe set, labelled, or the path of a saved one. An interval needs 30 probes or more; what 64 and
            320 are worth is in `docs/shortcuts.md`.
        cue: What the model must not go by, such as `PatchCue(...)`, or several.
        explainers: See `AuditCallback`; `[]` for a model without a feature map that lies on the image.
        group: See `AuditCallback`.
        expectations: See `AuditCallback`.
        alarm: See `AuditCallback`.
        every_n_epochs: See `AuditCallback`.
        every_n_train_steps: See `AuditCallback`.
        at_start: See `AuditCallback`.
        model: See `AuditCallback`.
        output: See `AuditCallback`.
        chunk_size: See `AuditCallback`.
        max_panels: See `AuditCallback`.
        on_error: See `AuditCallback`.
        name: See `AuditCallback`.

    Raises:
        ConfigurationError: See `AuditCallback`.

    Example::

        cue = PatchCue([1.0, 0.0, 0.0], points_to="benign")
        trainer = Trainer(callbacks=[ShortcutMonitor(probes, cue=cue)])
    """

    def __init__(
        self,
        probes: ProbeSet | str,
        cue: Cue | list[Cue],
        *,
        explainers: list[Explainer] | None = None,
        group: Group | BatchReader | None = None,
        expectations: list[str | dict[str, str]] | None = None,
        alarm: AlarmRule | None = None,
        every_n_epochs: int | None = 1,
        every_n_train_steps: int | None = None,
        at_start: bool = True,
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
        max_panels: int = 16,
        on_error: OnError = "warn",
        name: str = "audit",
    ) -> None:
        probes = loaded(probes)
        labelled = probes.labels is not None
        super().__init__(
            probes,
            [Why(), Why("label")] if labelled else [Why()],
            explainers=explainers,
            novelty=[],
            group=group,
            trials=_trials(probes, cue if isinstance(cue, Sequence) else [cue]),
            nulls=True,
            clusters=labelled and probes.task.kind == "single-label" and explainers != [],
            alarm=alarm,
            expectations=expectations,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            at_start=at_start,
            model=model,
            output=output,
            chunk_size=chunk_size,
            max_panels=max_panels,
            on_error=on_error,
            name=name,
        )


def _trials(probes: ProbeSet, cues: Sequence[Cue]) -> list[Trial]:
    if not cues:
        raise ConfigurationError(
            "Expected `cue` to be a cue such as PatchCue(...), or several, but got none. AuditCallback does without."
        )
    trials: list[Trial] = [CueTrial(cue) for cue in cues]
    # A region is tried by right answers: of one label each.
    single = probes.labels is not None and probes.task.kind == "single-label"
    if "spurious" in probes.masks and single and len(probes) > 1:
        trials.append(RegionTrial("spurious"))
    return trials
