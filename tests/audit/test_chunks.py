"""One pass over the probes, in chunks, answers all questions."""

from __future__ import annotations

import pytest

from tests.audit.alike import same_records
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import (
    Auditor,
    GradCAM,
    HiResCAM,
    LayerCAM,
    Why,
    WhyNotCertain,
    WhyRatherThan,
)


@pytest.mark.parametrize("chunk_size", [1, 7])
def test_chunks_do_not_change_the_record(chunk_size):
    probes, net = tiny_probes(18), tiny_net()
    whole = Auditor(probes, chunk_size=32).audit(net)
    same_records(Auditor(probes, chunk_size=chunk_size).audit(net), whole)


@pytest.mark.parametrize("explainers", [None, [GradCAM("0"), HiResCAM(), LayerCAM("2")]], ids=["one", "three"])
@pytest.mark.parametrize(("chunk_size", "passes"), [(32, 1), (7, 3), (1, 18)])
def test_one_forward_pass_a_chunk_answers_all_questions(chunk_size, passes, explainers):
    net = tiny_net()
    auditor = Auditor(
        tiny_probes(18),
        [Why(), Why("label"), WhyRatherThan(), WhyNotCertain(), Why(0), Why(1), Why(2)],
        explainers=explainers,
        chunk_size=chunk_size,
    )
    auditor.prepare(net)
    calls = []
    net[0].register_forward_hook(lambda _module, given, _output: calls.append(len(given[0])))
    auditor.audit(net)

    assert len(calls) == passes
    assert sum(calls) == 18


def test_progress_is_told_after_each_chunk():
    done = []
    Auditor(tiny_probes(18), chunk_size=7).audit(tiny_net(), on_progress=done.append)
    assert done == [7, 14, 18]
