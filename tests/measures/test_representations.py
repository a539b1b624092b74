import copy

import pytest
import torch

from tests.measures.records import audit, context
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, History, ProbeSet, Representations
from xai_callbacks.audit.results import MOST_FEATURES
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import Occlusion
from xai_callbacks.metrics.representations import centred_gram, linear_cka


def audited(net, probes=None, **given):
    return Auditor(tiny_probes() if probes is None else probes, measures=[Representations()], **given).audit(net)


def test_gram_matrices_are_those_of_the_features_of_each_stage():
    net, probes = tiny_net(), tiny_probes()
    record = audited(net, probes, chunk_size=4)
    assert list(record.grams) == ["0", "1", "6"]
    net.eval()
    with torch.no_grad():
        pooled = net[0](probes.images).reshape(6, 4, 4, 2, 4, 2).mean(dim=(3, 5)).flatten(1)
        assert torch.allclose(record.grams["0"], centred_gram(pooled), atol=1e-6)
        assert torch.allclose(record.grams["6"], centred_gram(net(probes.images)), atol=1e-6)


def test_nothing_is_kept_unless_it_is_asked_for():
    assert Auditor(tiny_probes()).audit(tiny_net()).grams == {}


def test_one_pass_is_enough():
    calls = []
    net = tiny_net()
    auditor = Auditor(tiny_probes(), measures=[Representations()])
    auditor.prepare(net)
    handle = net[0].register_forward_hook(lambda *given: calls.append(len(given[2])))
    auditor.audit(net)
    handle.remove()
    assert calls == [6]


def test_features_are_of_the_probes_whatever_explainers_show_the_model():
    plain, hidden = (audited(tiny_net(), explainers=each) for each in ([], [Occlusion(window=4)]))
    assert all(torch.equal(plain.grams[name], hidden.grams[name]) for name in plain.grams)


def test_of_many_probes_evenly_spaced_ones_are_compared():
    images = pictures(300)
    record = audited(tiny_net(), ProbeSet.from_tensors(images), chunk_size=32)
    rows = torch.linspace(0, 299, MOST_FEATURES).round().long()
    alone = audited(tiny_net(), ProbeSet.from_tensors(images[rows]), chunk_size=32)
    assert record.grams["6"].shape == (MOST_FEATURES, MOST_FEATURES)
    assert torch.allclose(record.grams["6"], alone.grams["6"], atol=1e-6)


def test_change_since_the_previous_audit():
    net, history = tiny_net(), History()
    auditor = Auditor(tiny_probes(), measures=[Representations()])
    history.append(auditor.audit(net))
    assert not any(key.startswith("representation/") for key in history[0].metrics)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[6].weight.mul_(-2).add_(torch.randn_like(other[6].weight))
    second = auditor.audit(other, past=history)
    assert second.metrics["representation/0/cka"].value == 1.0
    expected = linear_cka(history[0].grams["6"], second.grams["6"])
    assert second.metrics["representation/6/cka"].value == expected < 0.99


def test_records_keep_the_matrices_on_disk(tmp_path):
    record = audited(tiny_net())
    record.save(tmp_path / "record.safetensors")
    back = type(record).load(tmp_path / "record.safetensors")
    assert all(torch.equal(back.grams[name], gram) for name, gram in record.grams.items())
    assert record.thin().grams == {}


def test_a_record_alone_is_refused():
    with pytest.raises(ConfigurationError, match="a model to look at"):
        Representations().measure(audit(), History(), context())
