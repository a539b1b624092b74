from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from xai_callbacks.access.outputs import binary_logits, looks_like_probabilities, select_output
from xai_callbacks.errors import OutputError

LOGITS, FEATURES = torch.randn(4, 3), torch.randn(4, 7)
MAPS = torch.randn(4, 2, 5, 5)


@dataclass
class Answer:
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
        (LOGITS, FEATURES),
        [MAPS, LOGITS],
        {"loss": torch.tensor(1.0), "logits": LOGITS, "features": FEATURES},
        {"maps": MAPS, "whatever": LOGITS},
        ModelOutput(features=FEATURES, logits=LOGITS),
        Answer(FEATURES, LOGITS),
        Pair(FEATURES, LOGITS),
    ],
    ids=lambda raw: type(raw).__name__,
)
def test_the_automatic_choice_finds_the_logits(raw):
    assert torch.equal(select_output(raw, None, 4), LOGITS)


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
    assert torch.equal(select_output(raw, output, 4), expected)


def test_one_number_an_image_becomes_a_column_and_half_becomes_float():
    assert select_output(torch.zeros(4), None, 4).shape == (4, 1)
    assert select_output(LOGITS.half(), None, 4).dtype == torch.float32


@pytest.mark.parametrize(
    ("raw", "output", "message"),
    [
        (
            MAPS,
            None,
            "Expected the model outputs to have shape (N, K) with N = 4, but the automatic choice gave (4, 2, 5, 5)",
        ),
        ({"a": FEATURES, "b": LOGITS}, None, "a dict with {a: a tensor of shape (4, 7), b: a tensor of shape (4, 3)}"),
        (
            {"a": LOGITS},
            "logit",
            "Expected `output` to be a key, attribute or index of what the model returns, but got 'logit'",
        ),
        ((LOGITS,), 3, "but got 3 for a tuple of [a tensor of shape (4, 3)]"),
        (None, None, "led to None"),
        (LOGITS, 1, "to be left out, or a callable, for a model that returns a tensor, but got 1"),
        (LOGITS, lambda raw: "x", "led to 'x'"),
        (torch.randn(3, 3), None, "with N = 4"),
        (Answer(FEATURES, LOGITS), "logit", "but got 'logit' for a Answer with {features: a tensor of shape (4, 7)"),
        (torch.zeros(4, 0), None, "but the automatic choice gave (4, 0)"),
    ],
)
def test_what_does_not_fit_is_described(raw, output, message):
    with pytest.raises(OutputError) as caught:
        select_output(raw, output, 4)
    assert message in str(caught.value)
    assert any(advice in str(caught.value) for advice in ("output=", "a key", "left out"))


def test_one_sigmoid_logit_becomes_two_classes_of_the_same_probabilities():
    logit = torch.tensor([[-3.0], [0.0], [2.5]])
    two = binary_logits(logit)
    torch.testing.assert_close(two.softmax(dim=1)[:, 1:], logit.sigmoid())
    torch.testing.assert_close(two[:, 1:] - two[:, :1], logit)


def test_probabilities_are_told_from_logits():
    assert looks_like_probabilities(LOGITS.softmax(dim=1))
    assert not looks_like_probabilities(LOGITS)
    assert not looks_like_probabilities(LOGITS.log_softmax(dim=1))
    assert not looks_like_probabilities(torch.ones(4, 1))
    assert not looks_like_probabilities(torch.zeros(4, 3))  # a head that starts at zero
    assert not looks_like_probabilities(LOGITS.softmax(dim=1) * torch.tensor([[1.0], [1.0], [1.0], [1.01]]))


def test_rounded_probabilities_are_told_by_the_type_they_were_computed_in():
    rounded = torch.tensor([[0.6, 0.402], [0.5, 0.5]])
    assert not looks_like_probabilities(rounded)
    assert looks_like_probabilities(rounded, torch.bfloat16)


@pytest.mark.parametrize("output", [1, "logits"])
def test_a_bare_tensor_has_no_parts_to_choose_from(output):
    """Entry 1 would be the second image, and two of its logits could pass for one value an image."""
    with pytest.raises(OutputError) as caught:
        select_output(torch.randn(2, 2), output, 2)
    assert f"to be left out, or a callable, for a model that returns a tensor, but got {output!r}" in str(caught.value)
