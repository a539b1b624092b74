"""What trials cost: the images that pass through the model in one audit."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_net
from tests.trials.exact import CLASSES, CUE, scenes
from tests.trials.own import Own
from xai_callbacks import Auditor, History, ProbeSet, ShortcutMonitor
from xai_callbacks.interventions.cues import PasteCue, PatchCue, WatermarkCue
from xai_callbacks.trials import CueTrial, Views


def rows_of(net, auditor, past=None):
    """Images that pass through the model in one audit, after `prepare`."""
    auditor.prepare(net)
    rows = []
    with net.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0]))):
        auditor.audit(net, past=past)
    return sum(rows)


MUTED = ((0.9, 0.2, 0.1), (0.1, 0.9, 0.2), (0.2, 0.1, 0.9))
"""Colours that no scene shows already."""


@pytest.mark.parametrize(("at", "most"), [("corner", 8), ("spurious", 9)])
def test_the_monitor_of_one_cue_stays_within_twelve_forward_passes_a_probe(at, most):
    """One of the audit; with the cue of another class and of the own, without the object; two for each of two controls.

    At a region there is one more, without any cue. Models with random weights are asked at the first audit only.
    """
    auditor, net, past = ShortcutMonitor(scenes(64), PatchCue(MUTED, CLASSES, at=at)).auditor, tiny_net(), History()
    past.append(auditor.audit(net))
    assert 6 * 64 < rows_of(net, auditor, past) <= most * 64 <= 12 * 64


def test_a_cue_of_one_variant_spares_the_passes_of_the_probes_as_they_are():
    def cost(cue, probes):
        return rows_of(tiny_net(), Auditor(probes, trials=[CueTrial(cue, controls=())])) / len(probes)

    probes = scenes(64)
    assert cost(PatchCue(MUTED[0], "red"), probes) == 1 + 2
    assert cost(PatchCue(MUTED[0], 0), ProbeSet.from_tensors(probes.images, probes.labels)) == 1 + 1
    assert cost(PatchCue(MUTED, CLASSES), probes) == 1 + 3
    assert cost(WatermarkCue("ab", 0), probes) == 1 + 2
    assert cost(PasteCue("red"), probes) == 1 + 2


def test_a_pasted_cue_costs_one_pass_for_each_pair_as_the_other_image_is_the_probe_itself():
    marks = CUE.expand(64, -1, -1).clone()
    marks[1::2] = False
    images = torch.rand(64, 3, *CUE.shape, generator=torch.Generator().manual_seed(1))
    probes = scenes(64, images=images, masks={"spurious": marks})
    assert rows_of(tiny_net(), Auditor(probes, trials=[CueTrial(PasteCue("red"), controls=())])) == (1 + 1) * 64


def test_an_image_that_is_as_it_was_shown_or_as_in_an_earlier_view_is_not_run_again_and_answers_alike():
    class Copies(Own):
        """Three views: every other probe darker; the same once more; and all darker."""

        def views(self, shown):
            darker = shown.images * 0.5
            first = torch.where((shown.rows % 2 == 0)[:, None, None, None], darker, shown.images)
            return Views({"first": first, "again": first.clone(), "darker": darker})

        def judge(self, probes, answers):
            own = answers.given[1::2]
            assert torch.equal(answers.views["first"], answers.views["again"])
            assert torch.equal(answers.views["first"][1::2], own)
            assert torch.equal(answers.views["first"][::2], answers.views["darker"][::2])
            assert not torch.equal(answers.views["darker"][1::2], own)
            return {}

    auditor = Auditor(scenes(), trials=[Copies()], chunk_size=5)
    assert rows_of(tiny_net(), auditor) == 12 + 6 + 6
    assert auditor.audit(tiny_net()).failed == ()


def test_no_trials_cost_nothing():
    assert rows_of(tiny_net(), Auditor(scenes(64))) == 64
