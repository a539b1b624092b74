"""How outputs are read, against definitions and torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import multilabel_accuracy

from xai_callbacks.errors import ConfigurationError, OutputError
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel, binary_logits, in_key, task_of

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 4.0, 3.9], [0.1, 0.2, -0.3]])


def test_the_task_is_that_of_the_probes():
    assert task_of(torch.tensor([0, 2]), None, ["a", "b", "c"]) == SingleLabel(("a", "b", "c"), 3, labels=3)
    assert task_of(torch.tensor([0, 2]), None) == SingleLabel(labels=3)
    assert task_of(None, None) == SingleLabel()
    assert task_of(torch.tensor([[0, 1]]), None) == MultiLabel(width=2)
    assert task_of(None, torch.rand(3)) == Regression(width=1)
    assert task_of(None, torch.rand(3, 2), ["x", "y"]) == Regression(("x", "y"), 2)


def test_probabilities_become_logits_whose_reading_is_the_probabilities_again():
    single, several = SingleLabel(), MultiLabel(width=3)
    softmax, sigmoid = LOGITS.softmax(dim=1), LOGITS.sigmoid()
    torch.testing.assert_close(single.probabilities(single.read(softmax, probabilities=True)), softmax)
    torch.testing.assert_close(several.probabilities(several.read(sigmoid, probabilities=True)), sigmoid)
    one = torch.tensor([[0.3], [-2.0]])
    torch.testing.assert_close(single.read(one, probabilities=False), binary_logits(one))
    torch.testing.assert_close(single.read(one.sigmoid(), probabilities=True), binary_logits(one))
    torch.testing.assert_close(several.read(one, probabilities=False), one)


def test_answers_of_single_labels():
    task = SingleLabel(width=3)
    assert task.predictions(LOGITS).tolist() == [0, 1, 1]
    assert task.correct(LOGITS, torch.tensor([0, 2, 1])).tolist() == [1, 0, 1]
    assert task.truth_of(torch.tensor([0, 2, 1]), LOGITS).tolist() == [0, 2, 1]
    torch.testing.assert_close(task.confidences(LOGITS), LOGITS.softmax(dim=1).amax(dim=1))


def test_answers_of_several_labels():
    task, truth = MultiLabel(width=3), torch.tensor([[1, 0, 0], [0, 1, -1], [-1, -1, -1]])
    assert task.predictions(LOGITS).tolist() == [[True, False, True], [False, True, True], [True, True, False]]
    found = task.correct(LOGITS, truth)
    torch.testing.assert_close(found[:2], torch.tensor([2 / 3, 1.0], dtype=torch.float64))
    assert found[2].isnan()
    full = torch.randint(2, (40, 5))
    outputs = torch.randn(40, 5)
    expected = multilabel_accuracy(outputs.sigmoid(), full, num_labels=5, average="micro")
    torch.testing.assert_close(MultiLabel(width=5).correct(outputs, full).mean().float(), expected)
    torch.testing.assert_close(task.confidences(LOGITS), LOGITS.sigmoid().amax(dim=1))
    assert task.truth_of(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, -1]]), LOGITS).tolist() == [0, -1, 1]


def test_answers_of_values():
    assert Regression().predictions(LOGITS[:, :1]).tolist() == LOGITS[:, 0].tolist()
    assert torch.equal(Regression(width=3).predictions(LOGITS), LOGITS)
    assert Regression(width=3).confidences(LOGITS).isnan().all()
    assert Regression(width=3).probabilities(LOGITS).isnan().all()


@pytest.mark.parametrize(
    ("task", "width", "fits"),
    [
        (SingleLabel(("a", "b"), 2), 2, True),
        (SingleLabel(("a", "b"), 2), 1, True),
        (SingleLabel(("a", "b"), 2), 3, False),
        (SingleLabel(labels=3), 2, False),
        (SingleLabel(labels=3), 1000, True),
        (SingleLabel(labels=2), 1, True),
        (SingleLabel(labels=3), 1, False),
        (MultiLabel(width=3), 3, True),
        (MultiLabel(width=3), 4, False),
        (Regression(width=2), 2, True),
        (Regression(), 2, False),
    ],
)
def test_widths_that_do_not_fit_are_refused_with_both_numbers(task, width, fits):
    outputs = torch.randn(4, width)
    assert task.accepts(width) == fits
    if fits:
        assert not task.check(outputs, None)
        return
    with pytest.raises(OutputError, match=rf"the model gives {width:,}\..* `output="):
        task.check(outputs, None)


def ordinal(count, thresholds=4):
    """Cumulative logits with one weight, as CORAL has them."""
    return torch.randn(count, 1) + torch.linspace(2, -2, thresholds)


@pytest.mark.parametrize(
    ("task", "outputs", "ending", "message"),
    [
        (SingleLabel(), LOGITS.sigmoid(), "sigmoid", r"ends in 3 sigmoids, which do not\. .* multi-label model"),
        (SingleLabel(), ordinal(3), None, "looks like cumulative logits. Ordinal heads"),
        (SingleLabel(labels=5), ordinal(3), None, "gives 4. Ordinal heads of cumulative logits have one output less"),
        (SingleLabel(tuple("abcde"), 5), torch.randn(3, 4), None, "gives 4. Ordinal heads of cumulative logits have"),
        (MultiLabel(width=3), LOGITS.softmax(dim=1), "softmax", "the model ends in a softmax"),
        (Regression(width=2), LOGITS, None, r"Expected 2 values an image, .* gives 3\. A classifier wants probes with"),
    ],
)
def test_other_kinds_of_outputs_are_refused_with_advice(task, outputs, ending, message):
    with pytest.raises(OutputError, match=message):
        task.check(outputs, ending)


def test_what_is_no_ordinal_head_is_not_taken_for_one():
    assert not SingleLabel().check(torch.zeros(3, 4), None)  # a head of zeros
    assert not SingleLabel().check(torch.randn(1, 4), None)
    assert not SingleLabel(labels=2).check(ordinal(3, thresholds=2), None)  # or of two classes
    assert not SingleLabel().check(torch.randn(3, 1) * torch.tensor([1.0, -1.0]), None)
    assert SingleLabel().check(LOGITS.softmax(dim=1), None)
    assert SingleLabel().check(torch.rand(3, 1), "sigmoid")
    assert MultiLabel(width=3).check(LOGITS.sigmoid(), "sigmoid")


def test_names_and_indexes_lead_to_outputs():
    task = SingleLabel(("cat", "dog"), 2)
    assert (task.index("of", "dog"), task.index("of", 1), task.name(1), task.name(7)) == (1, 1, "dog", "7")
    for reference, message in (("cow", "one of cat, dog"), (2, "below 2, the number of outputs, but got 2")):
        with pytest.raises(ConfigurationError, match=message):
            task.index("of", reference)
    with pytest.raises(ConfigurationError, match="has no names: give its index"):
        MultiLabel(width=2).index("of", "cow")
    assert in_key("golden retriever/dog") == "golden_retriever_dog"


def test_what_needs_classes_refuses_other_tasks():
    SingleLabel().require_classes("group", single=True)
    MultiLabel(width=2).require_classes("the cue patch")
    with pytest.raises(ConfigurationError, match="one label each for `group`, but got multi-label probes"):
        MultiLabel(width=2).require_classes("group", single=True)
    with pytest.raises(ConfigurationError, match="but got regression probes"):
        Regression().require_classes("group")
