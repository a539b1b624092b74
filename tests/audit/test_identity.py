"""What a record is identified by: the weights it is of, and how it was made."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

import xai_callbacks
from tests.tiny import CLASSES, tiny_net, tiny_probes
from xai_callbacks import (
    Auditor,
    Baselines,
    CueTrial,
    Energy,
    Every,
    GradCAM,
    HalfTrial,
    HiResCAM,
    KNearest,
    Localization,
    Occlusion,
    PatchCue,
    Why,
    WhyRatherThan,
)
from xai_callbacks.audit.observer import structure_of
from xai_callbacks.audit.results import weights_hash


class Partial(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.part = tiny_net(), nn.Linear(2, 2)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.empty = nn.Parameter(torch.zeros(0, 3))


# ---- weights


@pytest.mark.parametrize("name", [name for name, _ in [*Partial().named_parameters(), *Partial().named_buffers()]])
def test_the_hash_changes_with_one_number(name):
    net = Partial()
    before = weights_hash(net)
    values = net.get_parameter(name) if name in dict(net.named_parameters()) else net.get_buffer(name)
    with torch.no_grad():
        values.view(-1)[-1:] += 1
    after = weights_hash(net)

    assert (after == before) is (values.numel() == 0)
    assert len(after) == 64
    assert int(after, 16) >= 0


def test_the_hash_changes_with_a_name_a_type_and_a_shape():
    def of(name, values):
        net = nn.Module()
        net.register_buffer(name, values)
        return weights_hash(net)

    zeros = torch.zeros(4)
    found = {of("a", zeros), of("b", zeros), of("a", zeros.double()), of("a", zeros.int()), of("a", zeros.view(2, 2))}
    assert len(found) == 5
    assert of("a", zeros) == of("a", torch.zeros(4, 2)[:, 0])


def test_the_hash_does_not_change_otherwise():
    net = Partial()
    before = weights_hash(net)
    assert weights_hash(copy.deepcopy(net)) == before
    assert weights_hash(net.train(False).requires_grad_(False)) == before
    net.part.weight.grad = torch.ones(2, 2)
    net.register_forward_hook(lambda *_: None)
    assert weights_hash(net) == before
    assert weights_hash(net.to(memory_format=torch.channels_last)) == before
    loaded = Partial()
    with torch.no_grad():
        loaded.part.weight.fill_(9)
    loaded.load_state_dict(net.state_dict())
    assert weights_hash(loaded) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_precision_have_a_hash(dtype):
    net = tiny_net().to(dtype)
    before = weights_hash(net)
    with torch.no_grad():
        net[6].bias[0] += 1
    assert "" != before != weights_hash(net)


def test_weights_that_cannot_be_read_have_none():
    assert weights_hash(nn.Sequential(nn.LazyLinear(3))) == ""
    sparse = nn.Module()
    sparse.register_buffer("sparse", torch.eye(3).to_sparse())
    assert weights_hash(sparse) == ""


def test_records_tell_weights_apart_and_nothing_else():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    first = auditor.audit(net.train()).weights
    assert first == weights_hash(net)
    assert auditor.audit(net.eval(), step=3, epoch=1).weights == first
    assert Auditor(tiny_probes(seed=8), [Why(0)]).audit(net).weights == first
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1e-6
    assert auditor.audit(net).weights != first


def test_of_a_function_no_weights_are_known():
    net = tiny_net().eval()
    assert Auditor(tiny_probes(), novelty=[]).audit(lambda images: net(images).detach()).weights == ""


# ---- structure


def test_models_of_one_structure_differ_in_weights_alone():
    assert structure_of(tiny_net(seed=0)) == structure_of(tiny_net(seed=1))
    others = [tiny_net(channels=5), tiny_net(classes=2), nn.Sequential(*tiny_net()), nn.Sequential(tiny_net())]
    assert len({structure_of(net) for net in (tiny_net(), *others)}) == 5
    assert isinstance(structure_of(nn.Sequential(nn.LazyLinear(3))), int)


# ---- how a record was made


def test_an_auditor_knows_before_any_audit_how_its_records_are_made():
    probes = tiny_probes(groups=torch.tensor([0, 1, 0, 1, -1, 0]), group_names=("land", "water"))
    auditor = Auditor(
        probes,
        [Why(), WhyRatherThan(foil=1)],
        explainers=[GradCAM("2"), Every(2, Occlusion(4))],
        novelty=[Energy()],
        trials=[CueTrial(PatchCue([1.0, 0.0, 0.0], points_to=0, at="spurious"))],
        measures=[Localization(), Baselines()],
        output=None,
        chunk_size=4,
    )
    identity = auditor.identity

    assert identity.fingerprint == probes.fingerprint
    assert identity.names == tuple(probes.names)
    assert identity.class_names == CLASSES
    assert identity.groups == ("land", "water", "land", "water", "", "land")
    assert identity.asked == (repr(Why()), repr(WhyRatherThan(foil=1)))
    assert identity.explainers == {each.name: repr(each) for each in auditor.explainers}
    assert list(identity.explainers) == ["gradcam", "occlusion"]
    assert identity.versions["xai_callbacks"] == xai_callbacks.__version__
    assert identity.versions["torch"] == torch.__version__
    assert identity.settings == {
        "novelty": ["Energy()"],
        "inliers": None,
        "trials": [repr(auditor.trials[0])],
        "measures": ["Answers()", "Drift()", "Scores()", repr(Localization()), "Baselines()"],
        "model": None,
        "output": None,
        "chunk_size": 4,
    }
    assert torch.equal(identity.truth, probes.labels)
    assert identity.cue_regions == {"patch": "spurious"}
    assert (identity.weights, identity.metrics, identity.outputs) == ("", {}, None)


def test_a_record_has_the_identity_of_its_auditor_also_from_a_file(tmp_path):
    auditor = Auditor(tiny_probes(), [Why()], explainers=[GradCAM(), Every(2, Occlusion(4))], model=None, output=None)
    begin = time.time()
    record = auditor.audit(tiny_net(), step=7, epoch=2, untrained=True)
    end = time.time()
    record.save(tmp_path / "record")
    read = type(record).load(tmp_path / "record")

    assert begin <= record.time <= end
    assert set(record.seconds) == {"explain", "try", "judge"}
    assert sum(record.seconds.values()) <= end - begin
    for found in (record, read):
        assert (found.step, found.epoch, found.untrained, found.run) == (7, 2, True, "")
        for name in ("fingerprint", "names", "class_names", "groups", "explainers", "asked", "versions"):
            assert getattr(found, name) == getattr(auditor.identity, name), name
        assert found.settings.keys() == auditor.identity.settings.keys()
        assert found.weights == record.weights != ""


def test_identity_tells_settings_apart():
    cue = PatchCue([1.0, 0.0, 0.0], points_to=0)
    familiar = [tiny_probes(24, labels=torch.arange(24) % classes) for classes in (2, 3)]
    kinds = [
        *(Auditor(tiny_probes(), novelty=[KNearest(k)], inliers=familiar[0]) for k in (2, 3)),
        Auditor(tiny_probes(), novelty=[KNearest(2)], inliers=familiar[1]),
        *(Auditor(tiny_probes(), trials=[CueTrial(cue, seed=seed)]) for seed in (0, 1)),
        Auditor(tiny_probes(), trials=[CueTrial(cue, nearby=["weaker"])]),
        *(
            Auditor(tiny_probes(), trials=[HalfTrial("top", fills)])
            for fills in (("white", "black"), ("white", "blur"))
        ),
        Auditor(tiny_probes(), explainers=[GradCAM("2")]),
        Auditor(tiny_probes(), explainers=[GradCAM("0")]),
        Auditor(tiny_probes(), explainers=[HiResCAM("2", name="gradcam")]),
        Auditor(tiny_probes(), explainers=[GradCAM("2")], model="net"),
        Auditor(tiny_probes(), explainers=[GradCAM("2")], output=0),
        Auditor(tiny_probes(), explainers=[GradCAM("2")], chunk_size=2),
    ]
    assert len({(str(each.identity.explainers), str(each.identity.settings)) for each in kinds}) == len(kinds)
