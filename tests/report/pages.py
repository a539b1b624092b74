"""Made-up runs and their pages, for the tests of the report."""

from __future__ import annotations

import json
import re

import torch

from tests.gallery.records import audit_of, history_of, logits_for, probes_of
from xai_callbacks.record import Estimate, Finding, Key, Onset, summarize
from xai_callbacks.report import write_html

KEYS = (
    Key("accuracy", "classified as labelled", 0.0, 1.0, "1 / K", "share"),
    Key("cue/patch/pull", "how much the cue moves the probability of the label", -1.0, 1.0, "0"),
    Key("confidence", "mean largest probability", 0.0, 1.0),
    Key("cluster/number", "kind of heatmap", unit="label"),
    Key("alarm/cue/*", "use of the cue", 0.0, 2.0, of="nothing"),
)


def audit(probes, number, *, wrong=(), pull=0.0, place=0, **changes):
    """An audit that is wrong about some probes, pulled by a cue, with heat at one place of the grid."""
    count = len(probes)
    said = torch.arange(count) % 3
    said[list(wrong)] = (said[list(wrong)] + 1) % 3
    outputs = logits_for(said)
    pulls = pull + 0.01 * torch.arange(count).double() / count
    per_probe = {"cue/patch/pull": pulls, "cluster/number": torch.zeros(count).double()}
    chances = {"cue/patch/pull": torch.zeros(count).double()}
    alarming = pull > 0.1
    estimate = Estimate(float(pulls.mean()), float(pulls.mean()) - 0.05, float(pulls.mean()) + 0.05, 0.0, count)
    finding = Finding(
        "alarm/cue/patch",
        "alarm" if alarming else "no evidence",
        2.0 if alarming else 0.0,
        "Alarm: the model answers by the patch." if alarming else "No evidence for the patch.",
        about="cue/patch/pull",
        threshold=0.03,
        estimate=estimate,
        onset=Onset(2, 1, 2, 0, True, None) if alarming else None,
    )
    correct = (said == probes.labels).double()
    given = {
        "run": "0123456789abcdef",
        "keys": KEYS,
        "per_probe": per_probe | {"accuracy": correct},
        "chances": chances,
        "groups": ("left", "right") * (count // 2),
        "metrics": {"cue/patch/pull": estimate, "accuracy": summarize(correct, bounds=(0.0, 1.0)),
                    "alarm/cue/patch": Estimate(finding.value)},
        "findings": (finding,),
        "explainers": {"gradcam": "GradCAM()"},
        "scores": {"energy": torch.arange(count).double()},
    }  # fmt: skip
    record = audit_of(probes, outputs, number=number, **(given | changes))
    maps = record.maps["gradcam"].heatmaps
    maps.zero_()
    maps[:, :, place // 7, place % 7] = (4.0 + number) / 49
    maps[1, :, 6, 6] = -0.2
    return record


def set_of(count=36, **fields):
    return probes_of(count, groups=torch.arange(count) % 2, group_names=("left", "right"), **fields)


def runs(probes, audits=3):
    """Two runs: one that learns the cue, and one that does not."""
    leaning = [audit(probes, n, wrong=range(4 * n), pull=0.2 * n, place=n, untrained=n == 0) for n in range(audits)]
    sound = [audit(probes, n, wrong=[0], place=24, untrained=n == 0) for n in range(audits)]
    return {"leaning": history_of(*leaning), "sound": history_of(*sound)}


def page_of(folder, given=None, probes=None, **settings):
    """Path of a page, by default of both runs."""
    probes = set_of() if probes is None else probes
    return write_html(runs(probes) if given is None else given, folder / "page.html", probes, **settings)


def data_of(html):
    """The block of data for the script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])
