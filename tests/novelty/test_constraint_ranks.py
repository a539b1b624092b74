"""The gradient constraint on two processes: one reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]

DDP = """
import sys
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tests.novelty.constrained import Module, adam, batches

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Module()

    def forward(self, batch):
        loss = F.mse_loss(self.module.net(batch), batch)
        return loss + self.module.constraint(loss)

def main():
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    step = DistributedDataParallel(Step())
    optimizer = adam(step.module.module.net)
    for batch in batches(4, seed=rank).float():
        step(batch).backward()
        step.module.module.constraint.update()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(step.module.module.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()

main()
"""


def test_two_ranks_follow_one_reference(tmp_path):
    """Different images on each rank; buffers are compared after the last update, so DDP has not broadcast them."""
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["constraint.count"].item() == 4
    assert first["constraint.mean_0__weight"].any()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)
