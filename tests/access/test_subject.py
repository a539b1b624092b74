import pytest
import torch
from torch import nn

from xai_callbacks.access import Subject, trace_model, undisturbed
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.tasks import Regression


def cnn(classes=4, *end):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes), *end
    )


IMAGES = torch.rand(5, 3, 8, 8)


class Lit(nn.Module):
    """A module whose forward is a loss, as in many LightningModules."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"classifier": cnn()})

    def forward(self, batch):
        raise RuntimeError("not a classifier")

    def classify(self, images):
        return self.net["classifier"](images)


@pytest.mark.parametrize("select", ["net.classifier", lambda lit: lit.net["classifier"], lambda lit: lit.classify])
def test_the_classifier_inside_is_found_by_name_module_or_method(select):
    lit = Lit()
    assert torch.equal(Subject(lit, select=select)(IMAGES), lit.classify(IMAGES))


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_looked_through(wrap):
    model = cnn()
    subject = Subject(wrap(model))
    assert subject.module is model
    assert torch.equal(subject(IMAGES), model(IMAGES))


def test_images_come_to_the_type_of_the_model():
    subject = Subject(cnn().to(torch.bfloat16))
    assert subject.images(IMAGES).dtype == torch.bfloat16
    assert subject(subject.images(IMAGES)).dtype == torch.float32
    assert Subject(nn.Flatten()).device == torch.device("cpu")


def learnt(model):
    subject = Subject(model)
    with undisturbed(model):
        trace = trace_model(subject, IMAGES)
        subject.learn_outputs(trace.outputs, trace.ending())
    return subject


def test_probabilities_are_read_as_their_logarithm():
    subject = learnt(cnn(4, nn.Softmax(dim=1)))
    assert subject.probabilities
    torch.testing.assert_close(subject(IMAGES).softmax(dim=1), cnn()(IMAGES).softmax(dim=1))
    assert not learnt(cnn()).probabilities


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_output_is_a_sigmoid_logit_of_two_classes(sigmoid):
    subject = learnt(cnn(1, nn.Sigmoid()) if sigmoid else cnn(1))
    assert subject.probabilities == sigmoid
    assert subject.task.width == 2
    torch.testing.assert_close(subject(IMAGES).softmax(dim=1)[:, 1:], cnn(1)(IMAGES).sigmoid())


def test_a_regression_has_as_many_values_as_the_model_gives():
    assert Subject(cnn(1), Regression())(IMAGES).shape == (5, 1)
    assert Subject(cnn(), Regression())(IMAGES).shape == (5, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subject("resnet"), "a torch.nn.Module, or a function from images to outputs, but got str"),
        (lambda: Subject(Lit(), select="net.clasifier"), "but got 'net.clasifier'. Did you mean 'net.classifier'"),
        (lambda: Subject(Lit(), select=lambda _: 3), "Expected `model` to lead to a module or a callable, but got int"),
        (lambda: find_module(cnn(), "", "target_layer"), "Expected `target_layer` to name a submodule"),
    ],
)
def test_what_leads_nowhere_is_refused_with_advice(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


def test_a_model_that_cannot_run_on_the_probes_says_so_with_the_cause():
    model = cnn()
    with (
        undisturbed(model),
        pytest.raises(ConfigurationError, match=r"run on probe images of shape \(1, 8, 8\)") as caught,
    ):
        trace_model(Subject(model), torch.rand(2, 1, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_trace_knows_the_linear_head_and_leaves_no_hooks():
    model = cnn()
    with undisturbed(model):
        head = trace_model(Subject(model), IMAGES).head()
        convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        none = trace_model(Subject(convolutional), IMAGES).head()
    assert head.name == "4"
    assert head.given.shape == (5, 6)
    assert none is None
    assert not any(module._forward_hooks for module in model.modules())


class Ending(nn.Module):
    """A body with two heads of equal size, ended in some way."""

    def __init__(self, end, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.first, self.second, self.sigmoid = nn.Linear(6, classes), nn.Linear(6, classes), nn.Sigmoid()
        self.end = end

    def forward(self, images):
        features = self.body(images)
        return self.end(self.first(features), self.second(features), self.sigmoid)


@pytest.mark.parametrize(
    ("end", "ending", "head"),
    [
        (lambda a, b, s: a, None, "first"),
        (lambda a, b, s: b, None, "second"),
        (lambda a, b, s: s(a), "sigmoid", "first"),
        (lambda a, b, s: torch.sigmoid(a).squeeze(1), "sigmoid", "first"),
        (lambda a, b, s: a.softmax(dim=1), "softmax", "first"),
        (lambda a, b, s: a.log_softmax(dim=1), None, "first"),
        (lambda a, b, s: (s(a) + s(b)) / 2, "sigmoid", None),
        (lambda a, b, s: s(a).clamp(0.1, 0.9), "sigmoid", None),
        (lambda a, b, s: torch.stack([s(a)[:, 0], s(b)[:, 0]], dim=1), "sigmoid", None),
        (lambda a, b, s: a * s(b), None, None),
        (lambda a, b, s: {"logits": a, "loss": b.mean()}, None, "first"),
        (lambda a, b, s: (a + b) / 2, None, None),
    ],
)
def test_head_and_ending_are_those_the_outputs_come_from(end, ending, head):
    model = Ending(end)
    with undisturbed(model):
        trace = trace_model(Subject(model), IMAGES)
        found = trace.head()
        assert trace.ending() == ending
    assert (found.name if found else None) == head


def test_a_distributed_wrapper_is_looked_through():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = cnn()
        subject = Subject(nn.parallel.DistributedDataParallel(model))
        assert subject.module is model
        assert torch.equal(subject(IMAGES), model(IMAGES))
    finally:
        torch.distributed.destroy_process_group()


def test_probabilities_of_a_half_precision_net_are_recognised():
    subject = learnt(cnn(4, nn.Softmax(dim=1)).to(torch.bfloat16))
    assert subject.probabilities
    probabilities = subject.call(subject.images(IMAGES)).float()
    torch.testing.assert_close(subject(subject.images(IMAGES)).exp(), probabilities)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_logit_may_come_with_or_without_an_axis(shape):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn(1)

        def forward(self, images):
            return self.net(images).reshape(shape)

    outputs = Subject(One())(IMAGES)
    assert outputs.shape == (5, 2)
    torch.testing.assert_close(outputs[:, 1] - outputs[:, 0], cnn(1)(IMAGES)[:, 0])
    assert Subject(One(), Regression())(IMAGES).shape == (5, 1)


def test_a_compiled_part_is_recorded_once_under_its_own_name():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())})
    model["body"] = torch.compile(model["body"], backend="eager")
    subject = Subject(model, select=lambda model: lambda images: model["body"](images).mean(dim=(2, 3)))
    with undisturbed(model):
        values = trace_model(subject, IMAGES).values
    modules = [str(address) for value in values for address in value.addresses if address.function is None]
    assert sorted(modules) == ["body#0", "body.0#0", "body.1#0"]


def test_a_net_that_switches_gradients_off_is_traced_through():
    class Frozen(nn.Module):
        def __init__(self, stands_gradients=True):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Linear(6, 4)
            self.stands_gradients = stands_gradients

        def forward(self, images):
            with torch.no_grad():
                features = self.body(images)
                if features.requires_grad and not self.stands_gradients:
                    raise RuntimeError("not in here")
            recording.append(torch.is_grad_enabled())
            return self.head(features.mean(dim=(2, 3)))

    recording = []
    for stands, seen in ((True, True), (False, False)):
        model = Frozen(stands)
        with undisturbed(model):
            trace = trace_model(Subject(model), IMAGES)
        assert trace.differentiable == seen
        assert any(each.module == "body" for value in trace.values for each in value.addresses) == seen
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(recording)
