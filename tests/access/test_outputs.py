from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from xai_callbacks.access.subject import select_output
from xai_callbacks.errors import OutputError
from xai_callbacks.tasks import SingleLabel

ANY = SingleLabel()

LOGITS, FEATURES = torch.randn(4, 3), torch.randn(4, 7)
MAPS = torch.randn(4, 2, 5, 5)


@dataclass
class Answer:
    features: torch.Tensor
    logits: torch.Tensor


@dataclass(slots=True)
class Slotted:
    features: torch.Tensor
    logits: torch.Tensor


class ModelOutput(OrderedDict):
    """In the manner of Hugging Face: a mapping with attributes."""

    def __getattr__(self, name):
        return self[name]


Pair = namedtuple("Pair", ["aux", "output"])


@pytest.mark.parametrize(
    "raw",
    [
        LOGITS,
        (LOGITS, MAPS),
        [MAPS, LOGITS],
        {"loss": torch.tensor(1.0), "logits": LOGITS, "features": FEATURES},
        {"maps": MAPS, "whatever": LOGITS},
        ModelOutput(features=FEATURES, logits=LOGITS),
        Answer(FEATURES, LOGITS),
        Slotted(FEATURES, LOGITS),
        Pair(MAPS, LOGITS),
    ],
    ids=lambda raw: type(raw).__name__,
)
def test_the_automatic_choice_finds_the_logits(raw):
    assert torch.equal(select_output(raw, None, 4, ANY), LOGITS)


@pytest.mark.parametrize(
    ("raw", "output"),
    [
        ((FEATURES, LOGITS), 1),
        ({"a": FEATURES, "b": LOGITS}, "b"),
        (Answer(FEATURES, LOGITS), "logits"),
        (Pair(LOGITS, FEATURES), "aux"),
        (MAPS, lambda raw: raw.mean(dim=(2, 3))),
    ],
)
def test_the_user_says_where_they_are(raw, output):
    expected = MAPS.mean(dim=(2, 3)) if callable(output) else LOGITS
    assert torch.equal(select_output(raw, output, 4, ANY), expected)


def test_one_number_an_image_becomes_a_column_and_half_becomes_float():
    assert select_output(torch.zeros(4), None, 4, ANY).shape == (4, 1)
    assert select_output(LOGITS.half(), None, 4, ANY).dtype == torch.float32


@pytest.mark.parametrize(
    ("raw", "output", "message"),
    [
        (
            MAPS,
            None,
            "values of shape (N, K) with N = 4, but the automatic choice led to a tensor of shape (4, 2, 5, 5)",
        ),
        ({"a": MAPS}, None, "led to None in a dict with {a: a tensor of shape (4, 2, 5, 5)}"),
        (
            {"a": LOGITS},
            "logit",
            "or to be left out for a tensor, but got 'logit'",
        ),
        ((LOGITS,), 3, "but got 3 for a tuple with {0: a tensor of shape (4, 3)}"),
        (None, None, "led to None"),
        (LOGITS, 1, "or to be left out for a tensor, but got 1"),
        (LOGITS, lambda raw: "x", "led to 'x'"),
        (torch.randn(3, 3), None, "with N = 4"),
        (Answer(FEATURES, LOGITS), "logit", "but got 'logit' for a Answer with {features: a tensor of shape (4, 7)"),
        (torch.zeros(4, 0), None, "but the automatic choice led to a tensor of shape (4, 0)"),
    ],
)
def test_what_does_not_fit_is_described(raw, output, message):
    with pytest.raises(OutputError) as caught:
        select_output(raw, output, 4, ANY)
    assert message in str(caught.value)
    assert any(advice in str(caught.value) for advice in ("output=", "a key", "left out"))


@pytest.mark.parametrize("kind", [tuple, list, dict], ids=lambda kind: kind.__name__)
def test_what_several_tensors_could_be_is_refused_with_what_to_write(kind):
    raw = {"a": FEATURES, "b": LOGITS} if kind is dict else kind([FEATURES, LOGITS])
    keys = r"`output='a'` or `output='b'`" if kind is dict else r"`output=0` or `output=1`"
    with pytest.raises(OutputError, match=rf"\(4, 7\) at .* and \(4, 3\) at .*Say which .*{keys}"):
        select_output(raw, None, 4, ANY)
    assert torch.equal(select_output(raw, None, 4, SingleLabel(("x", "y", "z"), 3)), LOGITS)
    assert torch.equal(select_output(raw, None, 4, SingleLabel(labels=5)), FEATURES)
    with pytest.raises(OutputError, match="none of them fits outputs for 9 classes, as the probes name"):
        select_output(raw, None, 4, SingleLabel(tuple("abcdefghi"), 9))


def test_arrays_are_read_like_tensors():
    assert torch.equal(select_output(LOGITS.numpy(), None, 4, ANY), LOGITS)


@pytest.mark.parametrize("output", [1, "logits"])
def test_a_bare_tensor_has_no_parts_to_choose_from(output):
    """Entry 1 would be the second image, and two of its logits could pass for one value an image."""
    with pytest.raises(OutputError) as caught:
        select_output(torch.randn(2, 2), output, 2, ANY)
    assert f"or to be left out for a tensor, but got {output!r}" in str(caught.value)
