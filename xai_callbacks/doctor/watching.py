"""Watching the hooks of a callback: a snapshot just before, and one just after."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from xai_callbacks._lightning import Callback, Trainer, is_callback
from xai_callbacks.doctor.comparing import Disturbance, compare
from xai_callbacks.doctor.snapshot import Snapshot, take_snapshot


class Watch:
    """What a callback does at its hooks, each kind of disturbance once a hook; of metrics, to those of these keys.

    Cost: two snapshots, each a copy of the state of the training, at each call of a hook that the callback defines.
    """

    def __init__(self, logged: Collection[str] = ()) -> None:
        self._logged = logged
        self._found: dict[tuple[str, str], Disturbance] = {}
        self._inside = False

    @property
    def found(self) -> tuple[Disturbance, ...]:
        """Disturbances, as they came."""
        return tuple(self._found.values())

    def construct(self, make: Callable[[], Callback], module: nn.Module) -> Callback:
        """Make the callback, and have its hooks watched from now on."""
        callback: Callback = self._observe("__init__", 0, lambda: take_snapshot(module, [], {}), make)
        for hook in hooks_of(callback) if is_callback(callback) else ():
            setattr(callback, hook, partial(self._call, hook, getattr(callback, hook)))
        return callback

    def _call(
        self, hook: str, method: Callable[..., Any], trainer: Trainer, module: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        def snapshot() -> Snapshot:
            metrics = {key: value for key, value in trainer.callback_metrics.items() if key in self._logged}
            taken = take_snapshot(module, trainer.optimizers, metrics)
            saved = args[0] if hook == "on_save_checkpoint" else {}
            return replace(taken, keys=taken.keys | {f"saved {key}" for key in saved.get("state_dict", {})})

        call = partial(method, trainer, module, *args, **kwargs)
        return call() if self._inside else self._observe(hook, trainer.global_step, snapshot, call)

    def _observe(self, hook: str, step: int, snapshot: Callable[[], Snapshot], call: Callable[[], Any]) -> Any:
        before, self._inside = snapshot(), True
        try:
            return call()
        except Exception as error:
            self._note(hook, step, Disturbance("crash", f"raised {first_line(error)}"))
            raise
        finally:
            self._inside = False
            for each in compare(before, snapshot()):
                self._note(hook, step, each)

    def _note(self, hook: str, step: int, found: Disturbance) -> None:
        self._found.setdefault((hook, found.what), replace(found, hook=hook, step=step))


def hooks_of(callback: Callback) -> list[str]:
    """Names of the hooks that a callback defines."""
    inherited = {id(method) for base in Callback.__mro__ for method in vars(base).values()}
    return [
        name
        for name in dir(Callback)
        if (name.startswith("on_") or name in {"setup", "teardown"})
        and (name in vars(callback) or id(getattr(type(callback), name)) not in inherited)
    ]


def first_line(error: BaseException) -> str:
    """`Type: first line of the message`, for a table."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
