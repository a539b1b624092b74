"""`Explaining`: several explainers of one audit, each for what it costs, and none at the price of another."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from xai_callbacks.access import Layer, NoFeatureMapError, Trace
from xai_callbacks.access.subject import BlackBox
from xai_callbacks.audit.checks import require_instances
from xai_callbacks.audit.results import Gathered, Progress, bounded
from xai_callbacks.errors import ConfigurationError, blaming, require_different, require_instance, require_name
from xai_callbacks.explainers import Explainer, GradCAM, HiResCAM, Observation, Plan

_NOT_AVERAGED = (
    "HiResCAM explains instead of Grad-CAM, which averages gradients over the cells: here they add up to 0, as after "
    "global max and min pooling."
)
_BLACK_BOX = (
    "There are no heatmaps. The model is a function, into which nobody can look. Explainers such as Occlusion() "
    "explain functions as well."
)
_TRIED = 8.0  # explainers that cost more forward passes an image are not tried before training


class Explaining:
    """The explainers of an auditor; None for Grad-CAM, or HiResCAM where mean gradients are 0, if a layer suits."""

    def __init__(self, explainers: Sequence[Explainer] | None) -> None:
        self._default = explainers is None
        given = [GradCAM()] if explainers is None else explainers
        require_instances("explainers", given, Explainer, "Pass explainers such as [GradCAM()]; [] goes without.")
        self.explainers = tuple(given)
        for each in self.explainers:
            require_name(f"`name` of the explainer {type(each).__name__}", getattr(each, "name", None))
        hint = "Give one another, as in GradCAM('layer3', name='{}_layer3')."
        require_different("explainers", (each.name for each in self.explainers), hint)

    def prepare(self, trace: Trace, reference: Tensor | None) -> tuple[dict[str, Plan], tuple[str, ...]]:
        """Plans by name of the explainer, and notes; a `ConfigurationError` if the model does not suit one."""
        if self._default:
            self.explainers = (GradCAM(),)
            if isinstance(trace.subject.module, BlackBox):
                return {}, (_BLACK_BOX,)
        try:
            plans = {each.name: _prepared(each, trace, reference) for each in self.explainers}
            if self._default and any(layer.cancels for plan in plans.values() for layer in plan.layers):
                self.explainers = (HiResCAM(),)
                return {each.name: _prepared(each, trace, reference) for each in self.explainers}, (_NOT_AVERAGED,)
        except NoFeatureMapError as error:
            if not self._default:
                raise
            return {}, (f"There are no heatmaps. {error}",)
        return plans, tuple(note for plan in plans.values() for note in plan.notes)

    def due(self, plans: Mapping[str, Plan], audits: int) -> dict[Explainer, Plan]:
        """Explainers that answer at an audit, after so many audits before."""
        return {each: plans[each.name] for each in self.explainers if each.name in plans and audits % each.every == 0}

    def attempt(self, observation: Observation, plans: Mapping[str, Plan]) -> None:
        """Let explainers answer that cost little, so that mistakes show before training, as a `ConfigurationError`."""
        for each, plan in self.due(plans, 0).items():
            if plan.cost <= _TRIED:
                with blaming(f"the explainer `{each.name}`", "explain two probes", "explainers"):
                    _answer(each, observation, plan)


def explain(
    observation: Observation, due: Mapping[Explainer, Plan], gathered: Gathered, chunk: slice, tell: Progress = None
) -> None:
    """Explain one chunk, and tell the number of probes done; an explainer that fails is left out from then on."""
    observation.shared = sum(bool(plan.layers) for plan in due.values()) > 1
    done, total = 0.0, sum(1 + plan.cost for plan in due.values())
    for each, plan in due.items():
        if tell is not None:
            observation.progress = _part(tell, chunk, done / total, (1 + plan.cost) / total)
        done += 1 + plan.cost
        if each.name in gathered.failures:
            continue
        try:
            maps = bounded(_answer(each, observation, plan), each.units)
            gathered.put("maps", each.name, maps.transpose(0, 1), chunk)
        except Exception as error:  # told; the rest of the audit must not be lost for it
            gathered.fail(each.name, error)
    gathered.notes |= dict.fromkeys(observation.notes)


def layers_of(plans: Mapping[Explainer, Plan]) -> list[Layer]:
    """The layers that some explainers want, each once."""
    return list({layer.name: layer for plan in plans.values() for layer in plan.layers}.values())


def _part(tell: Callable[[int], None], chunk: slice, begun: float, share: float) -> Callable[[float], None]:
    """Progress of one explainer, 0 to 1, as a number of probes."""
    return lambda part: tell(chunk.start + int((begun + share * part) * (chunk.stop - chunk.start)))


def _prepared(explainer: Explainer, trace: Trace, reference: Tensor | None) -> Plan:
    with blaming(f"the explainer `{explainer.name}`", "suit the model", "explainers"):
        plan: object = explainer.prepare(trace, reference)
    require_instance(f"{explainer.name}.prepare", plan, Plan, "a method that returns a Plan")
    return plan  # type: ignore[return-value]  # checked


def _answer(explainer: Explainer, observation: Observation, plan: Plan) -> Tensor:
    """Heatmaps `(Q, N, h, w)` float32, detached, if that is what an explainer gives."""
    heatmaps: object = explainer.explain(observation, plan)
    leading = (1 if explainer.about == "image" else len(observation.posed), len(observation.images))
    if not isinstance(heatmaps, Tensor) or heatmaps.ndim != 4 or heatmaps.shape[:2] != leading:
        got = f"shape {tuple(heatmaps.shape)}" if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise ConfigurationError(
            f"Expected the explainer `{explainer.name}` to return heatmaps (Q, N, h, w) with (Q, N) = {leading}, but "
            f"got {got}. See `Explainer.explain`."
        )
    return heatmaps.detach().float()
