"""Questions posed once: what is asked stays what it was for the images themselves, whatever outputs are scored."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from xai_callbacks.questions import Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

OUTPUTS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.3, 0.2], [-1.0, 4.0, 3.9]], dtype=torch.float64)
HOT = torch.tensor([[0, 1, 1], [0, 0, 0], [1, -1, 0]])
LABELS = MultiLabel(("cat", "dog", "cow"), 3)
CLASSES = SingleLabel(("cat", "dog", "cow"), 3)
QUESTIONS = [
    Why(),
    Why("label"),
    Why(1),
    Why("cow"),
    WhyRatherThan(),
    WhyRatherThan("cow"),
    WhyNotCertain(),
]


def test_fact_and_foil_stay_when_other_outputs_are_scored():
    altered = OUTPUTS.flip(1)
    assert Why().pose(OUTPUTS, None, CLASSES).score(altered).tolist() == [-1.0, 0.3, 4.0]
    assert Why().pose(altered, None, CLASSES).score(altered).tolist() == [2.0, 0.3, 4.0]
    posed = WhyRatherThan(fact="predicted").pose(OUTPUTS, None, CLASSES)
    assert (posed.fact.tolist(), posed.foil.tolist()) == ([0, 1, 1], [1, 2, 2])
    torch.testing.assert_close(posed.score(altered), torch.tensor([-1.5, 0.2, 5.0], dtype=torch.float64))
    certain = WhyNotCertain().pose(OUTPUTS, None, CLASSES).score(altered)
    torch.testing.assert_close(certain, -altered.log_softmax(dim=1)[torch.arange(3), [0, 1, 1]])


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.key)
def test_rows_are_the_same_questions_about_some_images(question):
    posed = question.pose(OUTPUTS, HOT, LABELS)
    rows = torch.tensor([2, 0, 2, 1])
    assert torch.equal(posed.rows(rows).score(OUTPUTS[rows]), posed.score(OUTPUTS)[rows])


def test_a_label_is_the_most_probable_of_those_that_an_image_has():
    posed = Why("label").pose(OUTPUTS, HOT, LABELS)
    assert posed.fact.tolist() == [1, -1, 0]
    assert posed.score(OUTPUTS).tolist() == [0.5, 0.0, -1.0]
    outputs = OUTPUTS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(Why("label").pose(outputs, HOT, LABELS).score(outputs).sum(), outputs)
    assert gradient.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_contrasts_of_labels_are_binary_cross_entropies():
    toward = WhyRatherThan().pose(OUTPUTS, HOT, LABELS)
    assert toward.fact.tolist() == [0, 1, 1]
    assert toward.foil.tolist() == [1, 2, 2]
    rows = torch.arange(3)
    away = binary_cross_entropy_with_logits(OUTPUTS[rows, toward.fact], torch.zeros(3).double(), reduction="none")
    there = binary_cross_entropy_with_logits(OUTPUTS[rows, toward.foil], torch.ones(3).double(), reduction="none")
    torch.testing.assert_close(toward.score(OUTPUTS), away + there)
    certain = WhyNotCertain().pose(OUTPUTS, HOT, LABELS)
    expected = binary_cross_entropy_with_logits(OUTPUTS[rows, toward.fact], torch.ones(3).double(), reduction="none")
    torch.testing.assert_close(certain.score(OUTPUTS), expected)


def test_the_gradient_of_a_contrast_of_labels_has_its_closed_form():
    outputs = OUTPUTS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(WhyRatherThan(2).pose(outputs, None, LABELS).score(outputs).sum(), outputs)
    p = OUTPUTS.sigmoid()
    expected = torch.zeros(3, 3).double()
    for row, fact in enumerate([0, 1, 1]):
        expected[row, fact] += p[row, fact]
        expected[row, 2] -= 1 - p[row, 2]
    torch.testing.assert_close(gradient, expected)


def test_one_of_several_values_is_asked_about_by_index_or_name():
    task, values = Regression(("blur", "noise"), 2), torch.tensor([[0.5, 2.0], [1.0, -1.0]])
    targets = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    assert Why("noise").pose(values, targets, task).score(values).tolist() == [2.0, -1.0]
    assert Why(0).pose(values, targets, task).score(values).tolist() == [0.5, 1.0]
    toward = WhyValueRatherThan(of="noise").pose(values, targets, task)
    assert toward.value.tolist() == [3.0, 1.0]
    assert toward.score(values).tolist() == [1.0, 4.0]
    assert WhyValueRatherThan(of="noise").key == "why_noise_rather_than_target"
    assert WhyValueRatherThan(0.5, of=0).pose(values, None, task).score(values).tolist() == [0.0, 0.25]


def test_names_become_keys_that_tags_can_hold():
    assert Why("golden retriever/dog").key == "why_golden_retriever_dog"
