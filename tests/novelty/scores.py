"""Scores of users, some of which fail, and audits of them, for the tests of several scores at once."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tests.tiny import pictures, tiny_probes
from xai_callbacks import Auditor, ProbeSet, Separation
from xai_callbacks.access import Subject
from xai_callbacks.novelty import LastLayerScore, ModelScore


class Brightness(ModelScore):
    """The mean pixel, which shows exactly what was scored."""

    name = "brightness"

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        return images.double().flatten(1).mean(dim=1)


def inliers(count=40):
    return tiny_probes(count, seed=11)


def bright_probes(count=5):
    return ProbeSet.from_tensors(pictures(count, seed=5) / 2 + 0.5, pixels=None)


class Fails(ModelScore):
    """Fails from the n-th time on that it is asked, or while it learns."""

    name = "fails"
    learns = True

    def __init__(self, at, error=None):
        self.at, self.asked = at, 0
        self.error = RuntimeError("out of luck.\nAt great length.") if error is None else error

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        if self.at == "fit":
            raise self.error

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        self.asked += 1
        if self.at != "fit" and self.asked >= self.at:
            raise self.error
        return images.double().flatten(1).mean(dim=1)


class FailsAtTheEnd(LastLayerScore):
    """The same of the last layer."""

    name = "fails"
    learns = True

    def __init__(self, at, error=None):
        self.at, self.asked = at, 0
        self.error = RuntimeError("out of luck.\nAt great length.") if error is None else error

    def fit(self, inliers):
        Fails.fit(self, None, None)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return Fails.score(self, None, features)


def auditors(scores, **given):
    given = {"inliers": inliers(), "measures": [Separation(bright_probes())], "chunk_size": 4, **given}
    return [Auditor(tiny_probes(), questions, novelty=scores, **given) for questions in (None, [])]


ERRORS = [
    IndexError("out of range"),
    ValueError("no variance"),
    KeyError("layer"),
    ZeroDivisionError("division by zero"),
    NotImplementedError(),
    TypeError("wrong"),
    AssertionError("no"),
    np.linalg.LinAlgError("singular matrix"),
    type("SomeoneElsesError", (Exception,), {})("of a library"),
]


class Careless(LastLayerScore):
    """Writes into what it gets."""

    name = "careless"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        features.zero_()
        return logits.fill_(3)[:, 0]
