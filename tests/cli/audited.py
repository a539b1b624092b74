"""Runs on disk of a model that leans on a cue and of one that does not, and what a hostile user may call them."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.callbacks.leaning import LeaningNet, leaning_probes, patch
from xai_callbacks import AlarmRule, Auditor, CueTrial, History
from xai_callbacks.rules import as_rules, conclude

HOSTILE = "<script>[bold red]x[/]\x1b[31m&amp;"
RULES = as_rules([AlarmRule(audits=1), {"name": "uses no patch", "expect": "cue/patch/effect < 0.3"}])
LITERAL = r"<script>[bold red]x[/]\x1b[31m&amp;"


def write_run(folder, gain=0.0, *, audits=2, count=40, names=None):
    """A run as `AuditCallback` leaves it: a history of some audits, and the probes beside it."""
    probes = leaning_probes(count) if names is None else leaning_probes(count, names=names)
    auditor = Auditor(probes, trials=[CueTrial(patch())])
    history, net = History(folder / "audit" / "history"), LeaningNet()
    for audit in range(audits):
        with torch.no_grad():
            net.gain.fill_(gain if audit else 0.0)
        record = auditor.audit(net, step=audit, epoch=audit, past=history)
        history.append(conclude(RULES, history, record).record)
    probes.save(folder / "audit" / "probes.safetensors")
    return folder


def from_the_future(folder, number=9):
    """Add the audit of a later version of this package."""
    newest = max(folder.rglob("audit_*.safetensors"))
    with safe_open(newest, framework="pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    content = json.loads(header["xai_callbacks.record"])
    header["xai_callbacks.record"] = json.dumps({**content, "schema": 99})
    save_file(tensors, newest.with_name(f"audit_{number:06d}.safetensors"), header)
    return folder
