"""A trial of a user's own, for the tests of trials in an audit."""

from __future__ import annotations

from xai_callbacks.record import PerProbe
from xai_callbacks.trials import Trial, Views


class Own(Trial):
    """A user's own: each probe as `edit` leaves it, judged by `judge_by`."""

    def __init__(self, edit=lambda images: images * 0.5, judge_by=None, name="own"):
        self.edit, self.judge_by, self.name = edit, judge_by, name

    def check(self, probes):
        pass

    def views(self, shown):
        return Views({"edited": self.edit(shown.images)})

    def judge(self, probes, answers):
        if self.judge_by is not None:
            return self.judge_by(probes, answers)
        kept = answers.views["edited"].argmax(dim=1) == answers.given.argmax(dim=1)
        return {f"{self.name}/kept": PerProbe(kept.double())}
