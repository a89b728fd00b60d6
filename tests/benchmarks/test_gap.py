"""What is measured between the steps of a GPU runs once on an emulated one."""

import json
from pathlib import Path

import torch

from benchmarks.gpu import gap
from benchmarks.gpu.steps import llama
from tests.emu.works import make_device
from trioserve.worker.device_load import Machine, meet_over_nccl


def test_the_gap_between_steps_is_what_no_step_takes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = llama(1, 128, 2, 1, 64, 128) | {"head_dim": 64, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    device = make_device(tmp_path, "fp16")
    machine = Machine(lambda config: device, meet_over_nccl)
    runner = gap.load(tmp_path, "float16", num_seqs=2, num_steps=5, machine=machine)
    found = gap.measure_gap(runner, 16, num_seqs=2, num_steps=5)
    assert found.period_us > 0
    assert found.alone_us > 0
    assert found.gap_us == found.period_us - found.alone_us
    again = gap.measure_gap(runner, 16, num_seqs=1, num_steps=5, prompt=20)  # all slots are free again
    assert again.period_us > 0
