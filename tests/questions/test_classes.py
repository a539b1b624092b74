import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.questions import (
    Why,
    WhyNotCertain,
    WhyRatherThan,
    WhyValueRatherThan,
    check_questions,
    default_questions,
)
from xai_callbacks.questions.kinds import cross_entropy_toward
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

CLASSES = SingleLabel(width=4)
VALUE = Regression()

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [0.1, 0.3, 0.2, -2.0], [-1.0, 4.0, 3.9, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([3, 1, 2])
EVERY_CLASSIFIER_QUESTION = [
    Why(),
    Why(of="label"),
    Why(of=2),
    WhyRatherThan(),
    WhyRatherThan(foil="label"),
    WhyRatherThan(foil=0),
    WhyRatherThan(foil=0, fact=1),
    WhyRatherThan(fact="label"),
    WhyNotCertain(),
]


def gradient(question, logits=LOGITS, truth=LABELS):
    logits = logits.clone().requires_grad_(True)
    return torch.autograd.grad(score(question, logits, truth).sum(), logits)[0]


def score(question, logits=LOGITS, truth=LABELS):
    return question.pose(logits, truth, CLASSES).score(logits)


def one_hot(classes):
    return torch.nn.functional.one_hot(torch.as_tensor(classes), 4).double()


@pytest.mark.parametrize(
    ("question", "score", "fact", "foil"),
    [
        (Why(), [2.0, 0.3, 4.0], [0, 1, 1], None),
        (Why(of="label"), [1.0, 0.3, 3.9], [3, 1, 2], None),
        (Why(of=2), [-1.0, 0.2, 3.9], [2, 2, 2], None),
        (WhyRatherThan(fact="predicted"), [1.0, 0.1, 0.1], [0, 1, 1], [3, 2, 2]),
        (WhyRatherThan(foil=0, fact=1), [-1.5, 0.2, 5.0], [1, 1, 1], [0, 0, 0]),
        (WhyRatherThan(fact="label"), [-1.0, 0.1, -0.1], [3, 1, 2], [0, 2, 1]),
    ],
)
def test_scores_that_are_logits_or_differences_of_logits(question, score, fact, foil):
    posed = question.pose(LOGITS, LABELS, CLASSES)
    torch.testing.assert_close(posed.score(LOGITS), torch.tensor(score, dtype=torch.float64))
    assert posed.fact.tolist() == fact
    assert (posed.foil is None) == (foil is None)
    assert foil is None or posed.foil.tolist() == foil


@pytest.mark.parametrize(
    ("question", "foil"),
    [
        (WhyRatherThan(), [3, 2, 2]),
        (WhyRatherThan(foil="label"), [3, 1, 2]),
        (WhyRatherThan(foil=2), [2, 2, 2]),
        (WhyNotCertain(), [0, 1, 1]),
    ],
)
def test_contrasts_are_the_cross_entropy_toward_the_foil(question, foil):
    posed = question.pose(LOGITS, LABELS, CLASSES)
    assert posed.foil.tolist() == foil
    torch.testing.assert_close(posed.score(LOGITS), cross_entropy(LOGITS, torch.tensor(foil), reduction="none"))
    torch.testing.assert_close(gradient(question), LOGITS.softmax(dim=1) - one_hot(foil))


def test_the_cross_entropy_keeps_the_precision_of_its_gradient_where_the_probability_rounds_to_one():
    logits = torch.tensor([[40.0, 0.0, 1.0, -2.0]], requires_grad=True)
    exact = logits.detach().double().requires_grad_(True)
    (ours,) = torch.autograd.grad(cross_entropy_toward(logits, torch.tensor([0])).sum(), logits)
    others = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64).exp()
    expected = torch.cat([-others.sum(dim=1, keepdim=True), others], dim=1) / (
        torch.tensor(40.0).double().exp() + others.sum()
    )
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=0)
    (usual,) = torch.autograd.grad(cross_entropy(exact.float(), torch.tensor([0])), exact)
    assert usual[0, 0] == 0  # the usual form says nothing here


def test_the_cross_entropy_toward_an_impossible_class_stays_finite():
    logits = torch.tensor([[300.0, -300.0]], requires_grad=True)
    score = cross_entropy_toward(logits, torch.tensor([1]))
    (found,) = torch.autograd.grad(score.sum(), logits)
    torch.testing.assert_close(score.detach(), torch.tensor([600.0]))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0]]))


def test_regression_scores_and_their_closed_form_gradients():
    values = torch.tensor([[0.58], [0.9]], requires_grad=True)
    posed = WhyValueRatherThan(0.75).pose(values, None, VALUE)
    (found,) = torch.autograd.grad(posed.score(values).sum(), values)
    torch.testing.assert_close(posed.score(values).detach(), torch.tensor([0.17**2, 0.15**2]))
    torch.testing.assert_close(found[:, 0], 2 * (values.detach()[:, 0] - 0.75))
    toward_target = WhyValueRatherThan().pose(values, torch.tensor([0.0, 1.0]), VALUE)
    assert toward_target.value.tolist() == [0.0, 1.0]
    assert Why().pose(values, None, VALUE).score(values).tolist() == values[:, 0].tolist()


def test_titles_read_as_questions():
    assert Why().title("cat", "") == "Why cat?"
    assert WhyRatherThan().title("cat", "dog") == "Why cat, rather than dog?"
    assert WhyRatherThan(foil="label").title("cat", "cat") == "Why not cat with 100 % confidence?"
    assert WhyRatherThan(foil="label", fact=0).title("cat", "cat") == "Why cat, rather than cat?"
    assert WhyNotCertain().title("cat", "cat") == "Why not cat with 100 % confidence?"
    assert WhyValueRatherThan(0.75).title("0.58", "0.75") == "Why 0.58, rather than 0.75?"


def test_keys_tell_questions_apart_and_equality_goes_by_arguments():
    keys = [question.key for question in EVERY_CLASSIFIER_QUESTION]
    assert len(set(keys)) == len(keys)
    assert [Why().key, WhyRatherThan().key, WhyNotCertain().key] == ["why", "why_rather_than", "why_not_certain"]
    assert WhyValueRatherThan(0.75).key == "why_value_rather_than_0.75"
    assert WhyValueRatherThan(0.12345678).key != WhyValueRatherThan(0.12345679).key
    assert Why(of=3) == Why(3)
    assert Why(of=3) != Why(of=4)
    assert Why() != WhyNotCertain()
    assert len({Why(of=3), Why(3), WhyNotCertain()}) == 2
    assert repr(WhyRatherThan(foil=2)) == "WhyRatherThan(foil=2, fact=None)"


@pytest.mark.parametrize("question", EVERY_CLASSIFIER_QUESTION, ids=lambda question: question.key)
def test_each_score_belongs_to_its_image_alone(question):
    together = score(question)
    alone = torch.cat([score(question, LOGITS[i : i + 1], LABELS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Why(of=""),
            "Expected `of` to be 'predicted', 'label', a rank such as 'top-2', an index >= 0, or the name",
        ),
        (lambda: Why(of=-1), "Expected `of`"),
        (lambda: Why(of=True), "Expected `of`"),
        (lambda: WhyRatherThan(foil=3, fact=3), "to differ, but got 3 for both. Ask WhyNotCertain"),
        (lambda: WhyValueRatherThan(float("nan")), "Expected `value` to be a finite number or 'target', but got nan"),
        (lambda: WhyValueRatherThan("mean"), "Expected `value`"),
        (lambda: WhyValueRatherThan(True), "Expected `value`"),
        (lambda: WhyValueRatherThan(np.zeros(2)), "Expected `value`"),
        (lambda: Why(of=np.arange(2)), "Expected `of`"),
        (lambda: Why(of=torch.tensor(1.5)), "Expected `of`"),
        (lambda: Why(of=1.0), "Expected `of`"),
        (lambda: Why(of=None), "Expected `of`"),
        (lambda: Why(of=np.int64(3)), "Expected `of`"),
        (lambda: WhyRatherThan(foil="label", fact="label"), "to differ, but got 'label' for both"),
        (lambda: WhyRatherThan(foil="top-1", fact="predicted"), "to differ, but got 'top-1' for both"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("questions", "task", "labelled", "message"),
    [
        ([Why(of="label")], CLASSES, False, "Expected probes with `labels` because `of` is 'label'"),
        ([Why(of="best")], CLASSES, True, "Expected `of` to name a class, but got 'best'. A class has no names"),
        ([Why(of="dog")], SingleLabel(("cat", "cow")), True, "A class is one of cat, cow. Or write 'predicted' or"),
        ([WhyRatherThan(foil="predicted")], CLASSES, True, "Expected `foil` to name a class, but got 'predicted'"),
        ([WhyRatherThan(0, fact="runner-up")], CLASSES, True, "Expected `fact` to name a class, but got 'runner-up'"),
        ([WhyRatherThan(foil=7)], SingleLabel(width=5), True, "Expected `foil` to be the index of a class below 5"),
        ([WhyRatherThan(fact=7)], SingleLabel(width=5), True, "Expected `fact`"),
        ([WhyRatherThan()], MultiLabel(width=1), True, "Expected `questions` to suit a model of one label"),
        ([Why(of=3)], MultiLabel(width=3), True, "Expected `of` to be the index of a label below 3"),
        ([WhyNotCertain()], VALUE, True, "to suit regression probes, but got WhyNotCertain(), which asks about"),
        (
            [Why(of=1)],
            VALUE,
            True,
            "Expected `of` to be the index of a value below 1, the number of outputs, but got 1",
        ),
        ([Why()], Regression(("blur", "noise"), 2), True, "Name one, by index or name: 'blur', 'noise'"),
        ([WhyValueRatherThan()], VALUE, False, "Expected probes with `targets`"),
        ([WhyValueRatherThan(1.0)], CLASSES, True, "to suit single-label probes"),
        ([Why(), Why()], CLASSES, True, "to differ, but got Why(of='predicted'), whose key 'why' another has too"),
        (["why"], CLASSES, True, "a list of questions such as Why(), but got str 'why'"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_it_is_asked(questions, task, labelled, message):
    with pytest.raises(ConfigurationError) as caught:
        check_questions(questions, task, labelled=labelled)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "task", [CLASSES, VALUE, SingleLabel(), MultiLabel(width=3), MultiLabel(width=1), Regression(width=9)], ids=str
)
def test_default_questions_can_be_answered(task):
    check_questions(default_questions(task), task, labelled=task.kind == "regression")


@pytest.mark.parametrize("gap", [0.0, 1.0, 17.0, 25.0, 40.0, 70.0])
@pytest.mark.parametrize("toward", [0, 1])
def test_the_cross_entropy_has_the_relative_precision_of_its_type_on_both_sides(gap, toward):
    rest = torch.tensor([0.0, 0.5, -3.0])
    logits = torch.cat([torch.tensor([gap]), rest])[None].requires_grad_(True)
    (found,) = torch.autograd.grad(cross_entropy_toward(logits, torch.tensor([toward])).sum(), logits)
    exponentials = logits.detach().double()[0].exp()
    others = (exponentials * (torch.arange(4) != toward)).sum()
    expected = exponentials / exponentials.sum()
    expected[toward] = -others / exponentials.sum()  # p - 1 would be zero
    torch.testing.assert_close(found[0].double(), expected, rtol=2e-5, atol=0)


def test_the_cross_entropy_equals_that_of_torch_in_double_precision():
    logits = 10 * torch.randn(50, 7, dtype=torch.float64)
    classes = torch.randint(7, (50,))
    expected = cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(cross_entropy_toward(logits, classes), expected, rtol=1e-12, atol=1e-12)


def test_where_the_label_is_what_was_predicted_the_contrast_asks_about_certainty():
    correct = LOGITS.argmax(dim=1)
    toward_label = WhyRatherThan(foil="label").pose(LOGITS, correct, CLASSES)
    certain = WhyNotCertain().pose(LOGITS, None, CLASSES)
    assert torch.equal(toward_label.score(LOGITS), certain.score(LOGITS))
    assert toward_label.foil.tolist() == toward_label.fact.tolist() == certain.foil.tolist()
    assert torch.equal(gradient(WhyRatherThan(foil="label"), truth=correct), gradient(WhyNotCertain()))


@pytest.mark.parametrize("question", [Why(of="label"), WhyRatherThan(foil="label")])
def test_a_question_about_the_label_needs_labels(question):
    with pytest.raises(ConfigurationError, match="Expected probes with `labels`"):
        question.pose(LOGITS, None, CLASSES)
    with pytest.raises(ConfigurationError, match="Expected probes with `labels`"):
        question.check(CLASSES, labelled=False)


def test_a_question_about_the_target_needs_targets():
    with pytest.raises(ConfigurationError, match="Expected probes with `targets`"):
        WhyValueRatherThan().pose(torch.zeros(2, 1), None, VALUE)


def test_class_indexes_are_checked_where_the_number_of_classes_is_known():
    for question in (Why(of=4), WhyRatherThan(foil=4), WhyRatherThan(fact=4)):
        question.check(SingleLabel(width=5), labelled=False)
        question.check(SingleLabel(), labelled=False)
        with pytest.raises(ConfigurationError, match=r"the index of a class below 4, the number of outputs, but got 4"):
            question.check(SingleLabel(width=4), labelled=False)


def test_values_are_the_same_from_wherever_they_come_and_near_ones_keep_apart():
    assert WhyValueRatherThan(np.float64(0.5)) == WhyValueRatherThan(0.5)
    assert WhyValueRatherThan(3.0).key == WhyValueRatherThan(3).key == "why_value_rather_than_3"
    near = [WhyValueRatherThan(0.1234567), WhyValueRatherThan(0.1234568)]
    assert near[0].key != near[1].key
    check_questions(near, VALUE, labelled=False)


def test_ranks_are_those_of_each_image():
    assert Why("top-1").pose(LOGITS, None, CLASSES).fact.tolist() == [0, 1, 1]
    assert Why("top-2").pose(LOGITS, None, CLASSES).fact.tolist() == [3, 2, 2]
    assert Why("top-4").pose(LOGITS, None, CLASSES).fact.tolist() == [2, 3, 0]
    posed = WhyRatherThan(foil="top-3", fact="top-2").pose(LOGITS, None, CLASSES)
    assert (posed.fact.tolist(), posed.foil.tolist()) == ([3, 2, 2], [1, 0, 3])
    torch.testing.assert_close(posed.score(LOGITS), torch.tensor([0.5, 0.1, 3.9], dtype=torch.float64))
    labels = Why("top-2").pose(LOGITS, None, MultiLabel(width=4))
    assert labels.fact.tolist() == [3, 2, 2]
    assert torch.equal(
        WhyRatherThan("top-2").pose(LOGITS, None, CLASSES).foil, WhyRatherThan().pose(LOGITS, None, CLASSES).foil
    )
    assert [Why("top-2").key, WhyRatherThan("top-3").key] == ["why_top-2", "why_rather_than_top-3"]


@pytest.mark.parametrize(
    ("question", "task", "message"),
    [
        (Why("top-5"), CLASSES, "Expected `of` to be the rank of a class or label, but got 'top-5' of 4 outputs"),
        (WhyRatherThan("top-9"), MultiLabel(width=3), "Expected `foil` to be the rank of .* 'top-9' of 3 outputs"),
        (Why("top-2"), VALUE, "but got 'top-2' of values, which have no order"),
        (WhyValueRatherThan(1.0, of="top-2"), Regression(width=3), "but got 'top-2' of values"),
        (Why("top-0"), CLASSES, "Expected `of` to name a class, but got 'top-0'"),
    ],
)
def test_ranks_that_an_output_cannot_have_are_refused(question, task, message):
    with pytest.raises(ConfigurationError, match=message):
        check_questions([question], task, labelled=True)
    check_questions([Why("top-4")], SingleLabel(), labelled=False)
