"""`diagnose`: what a callback, or the call of an explainer, disturbs in a training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from xai_callbacks._lightning import Callback, LightningDataModule, LightningModule, is_callback, quiet
from xai_callbacks.doctor.comparing import Disturbance, compare
from xai_callbacks.doctor.digits import load_digits
from xai_callbacks.doctor.training import SCENARIOS, ExplainerCallback, Patient, Scenario, copied, train
from xai_callbacks.doctor.watching import Watch
from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.randomness import isolated_rng

# Enough for what happens at the end of an epoch to show in the next.
_EPOCHS, _BATCHES = 2, 4


@dataclass(frozen=True)
class Diagnosis:
    """What was found in some short trainings.

    Attributes:
        name: Name of the callback or the call.
        scenarios: Names of the ways of training that were tried.
        disturbances: Those found, in the order of the scenarios; what hooks did comes first, then what it led to.
        unrepeatable: Kinds of disturbances that the training shows by itself; they were not looked for in its end.
    """

    name: str
    scenarios: tuple[str, ...]
    disturbances: tuple[Disturbance, ...]
    unrepeatable: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing at all was disturbed."""
        return not self.disturbances

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {"healthy": self.healthy, **asdict(self)}

    def __str__(self) -> str:
        """One line for each disturbance, by scenario."""
        ill = dict.fromkeys(each.scenario for each in self.disturbances)
        verdict = f"disturbs {len(ill)} of" if ill else "disturbs nothing in"
        count = f"{len(self.scenarios)} training{'s' * (len(self.scenarios) != 1)}"
        lines = [f"{self.name} {verdict} {count} ({', '.join(self.scenarios)})."]
        for scenario in ill:
            lines += [f"{scenario}:", *(f"  {each}" for each in self.disturbances if each.scenario == scenario)]
        if self.unrepeatable:
            lines.append(f"Not compared, since the training does not repeat it: {', '.join(self.unrepeatable)}.")
        return "\n".join(lines)


def diagnose(
    given: Callback | Callable[..., object],
    *,
    seed: int = 0,
    scenarios: Sequence[str] | None = None,
    module: LightningModule | None = None,
    datamodule: LightningDataModule | None = None,
) -> Diagnosis:
    """Train shortly with and without a callback, on the same seeds, and name what it disturbs.

    Looked at are train and eval modes, `.grad`, parameters, buffers, `requires_grad`, hooks, attributes of modules,
    keys of the `state_dict`, optimizers, metrics that the module logs, random streams, and torch's global switches:
    just before and just after each hook of the callback, so that the hook is named, and at the end, in comparison with
    a training without it. What a callback adds to the logs is no disturbance.

    The default net is `module.net`, a small residual net that learns scikit-learn's digits, 3 x 32 x 32 pixels of 10
    classes; the last layer of its feature maps is `module.net.backbone[-1]`.

    Args:
        given: A Lightning callback (copied for each training), a function or class that makes one without arguments, or
            the call of an explainer, `(module, images, labels) -> anything`, made with gradients on eight images at the
            hook of the scenario; training survives what that raises.
        seed: Seed of the random streams.
        scenarios: Names among "plain" (validation each epoch), "accumulation" (gradients pending at validation),
            "train-epoch-end" (no validation) and "frozen" (only the head is trained); all where None. "frozen" is for
            the default net only.
        module: What to train instead, copied for each training.
        datamodule: Its data; digits where None. For the call of an explainer, batches are to be `(images, labels)`.

    Out of reach: whatever is neither torch's, Lightning's nor the module's, such as files and other processes; state
    of optimizers that is no number; two changes that undo each other within one hook; and functions replaced in the
    process, but for what becomes of the rest of the training. Everything runs on the CPU.

    Cost: two trainings of eight batches for each scenario, and two more where the end differs; two copies of the
    training's state at each call of a hook.

    Raises a `ConfigurationError` if a training fails without the callback, or if the call is never made.
    """
    require_integer("seed", seed, minimum=0)
    chosen, patient = _chosen(scenarios, module), Patient(module, datamodule)
    found: list[Disturbance] = []
    unrepeatable: dict[str, None] = {}
    with isolated_rng(), quiet():
        for scenario in chosen:
            disturbances, unsure = _examine(_maker(given, scenario, module), scenario, seed, patient)
            found += [replace(each, scenario=scenario.name) for each in disturbances]
            unrepeatable |= dict.fromkeys(unsure)
    return Diagnosis(_name(given), tuple(each.name for each in chosen), tuple(found), tuple(unrepeatable))


def _examine(
    make: Callable[[], Callback], scenario: Scenario, seed: int, patient: Patient
) -> tuple[list[Disturbance], list[str]]:
    """What is disturbed, and which kinds of differences the training shows by itself."""
    reference = train(scenario, seed=seed, patient=patient)
    if reference.crash is not None:
        raise ConfigurationError(
            f"Expected a training without the callback to finish in the scenario {scenario.name!r}, but it raised "
            f"{reference.crash}. Mend `module` or `datamodule`, or choose other `scenarios`."
        )
    run = train(scenario, make, seed, patient, Watch(reference.logged))
    if run.calls == 0 and not run.errors and run.crash is None:
        raise ConfigurationError(
            f"Expected the scenario {scenario.name!r} to reach `{scenario.hook}` after a batch of `(images, labels)`, "
            "so that the explainer is called, but it never did. Mend `datamodule`, or choose other `scenarios`."
        )
    raised = [f"raised {error}" for error in dict.fromkeys(run.errors)]
    found = [*run.found, *(Disturbance("raised", words, hook=scenario.hook) for words in raised)]
    if run.crash is not None:
        if all(each.what != "crash" for each in found):
            after = f"training crashed after {len(run.snapshot.losses)} steps: {run.crash}"
            found.append(Disturbance("crash", after))
        return found, []
    ends = compare(reference.snapshot, run.snapshot)
    if not ends:
        return found, []
    # Is it the callback, something that it left in the process, or does this training never repeat itself?
    control, again = (train(scenario, seed=seed, patient=patient) for _ in range(2))
    noise = {each.what for each in compare(control.snapshot, again.snapshot)}
    if left := [each for each in compare(reference.snapshot, control.snapshot) if each.what not in noise]:
        found.append(Disturbance("process", f"trainings without it are no longer as before: {left[0].words}"))
    known = {each.what for each in found} | noise
    return found + [each for each in ends if each.what not in known], sorted(noise)


def _chosen(names: Sequence[str] | None, module: LightningModule | None) -> list[Scenario]:
    possible = {each.name: each for each in SCENARIOS if module is None or not each.frozen}
    names = list(possible) if names is None else [names] if isinstance(names, str) else list(names)
    if not names or not set(names) <= possible.keys():
        raise ConfigurationError(
            f"Expected `scenarios` to be some of {', '.join(map(repr, possible))}, but got {names!r}. Leave it out to "
            "try all of them."
        )
    return [replace(possible[name], epochs=_EPOCHS, batches=_BATCHES) for name in dict.fromkeys(names)]


def _maker(given: Any, scenario: Scenario, module: LightningModule | None) -> Callable[[], Callback]:
    """What makes the callback for one training."""
    if is_callback(given):
        duplicate = copied("given", given)
        return lambda: duplicate
    if _takes(given, 0):
        return cast("Callable[[], Callback]", given)
    if not _takes(given, 3):
        raise ConfigurationError(
            "Expected `given` to be a Lightning callback, a function or class that makes one without arguments, or a "
            f"call of an explainer with `(module, images, labels)`, but got {given!r}. Wrap it in such a function."
        )
    images, labels = load_digits().probes if module is None else (None, None)
    return lambda: ExplainerCallback(given, scenario.hook, images, labels)


def _takes(given: Any, count: int) -> bool:
    """Whether something can be called with so many arguments."""
    try:
        inspect.signature(given).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _name(given: object) -> str:
    named = type(given) if is_callback(given) else given
    return str(getattr(named, "__qualname__", type(named).__qualname__))
