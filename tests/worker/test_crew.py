"""Who computes a rank's steps: native threads or torch's layers, how many, and where."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import Front, worker_config
from trioserve._speedups.decoder import available_isas
from trioserve.errors import ModelError
from trioserve.worker.load import _crew, load_runner
from trioserve.worker.machine import Cores, usable_cores

HERE = Path()


@pytest.mark.parametrize(
    ("num_threads", "expected"),
    [(0, (3, [1, 4, 5])), (1, (1, ())), (2, (2, ())), (3, (3, [1, 4, 5])), (64, (3, [1, 4, 5]))],
)
def test_threads_keep_to_their_cores_only_where_they_have_all_of_them(
    num_threads: int, expected: tuple[int, list[int]]
) -> None:
    """Never more than cores, whatever was asked for: those that wait for each other would wait for a time slice."""
    crew = _crew(worker_config(HERE, num_threads=num_threads), Cores([1, 4, 5], quota=3))
    assert (crew.num_threads, crew.cpus) == expected


@pytest.mark.parametrize(
    ("quota", "num_threads", "pin_threads", "expected"),
    [
        (2, 0, None, (2, ())),
        (2, 8, None, (2, ())),
        (2, 0, True, (2, [1, 4])),
        (9, 0, None, (3, [1, 4, 5])),
        (9, 0, False, (3, ())),
    ],
)
def test_a_quota_bounds_the_threads_and_leaves_them_to_the_system(
    quota: int, num_threads: int, pin_threads: bool | None, expected: tuple[int, list[int]]
) -> None:
    """Two containers with a quota of two cores each would otherwise sit on the same two of sixty-four."""
    config = worker_config(HERE, num_threads=num_threads, pin_threads=pin_threads)
    crew = _crew(config, Cores([1, 4, 5], quota=quota))
    assert (crew.num_threads, crew.cpus) == expected


def test_a_rank_says_what_computes_its_steps(checkpoints: Checkpoints) -> None:
    def said(name: str, dtype: str, quantization: str = "none") -> str:
        config = worker_config(checkpoints.folder(name), dtype=dtype, quantization=quantization)
        _, ready = load_runner(config, lambda progress: None, 0.0)
        return ready.decoder

    assert said("llama", "bfloat16") == f"native {available_isas()[-1]}, 1 thread"
    assert said("llama", "bfloat16", "int4") == f"native {available_isas()[-1]} int4, 1 thread"
    assert said("llama", "float32") == "torch layers: weights are float32, not bfloat16"
    assert said("llama", "float16") == "torch layers: weights are float16, not bfloat16"
    assert said("llama-odd-width", "bfloat16") == "torch layers: head_dim 20 is no multiple of 16"


def test_a_rank_refuses_what_it_would_have_to_ignore(checkpoints: Checkpoints) -> None:
    """Before it reads the weights."""
    for changes, why in (
        ({"dtype": "float32", "quantization": "int8"}, "weights are float32, not bfloat16"),
        (
            {"dtype": "bfloat16", "quantization": "fp8"},
            "quantization fp8 is not supported, only auto, none, int8, int4",
        ),
    ):
        progress: list[object] = []
        with pytest.raises(ModelError, match=why):
            load_runner(worker_config(checkpoints.folder("llama"), **changes), progress.append, 0.0)
        assert not progress


def test_a_checkpoint_of_float16_is_run_natively_where_bfloat16_is_asked_for(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Not by itself: float16 holds what bfloat16 rounds."""
    shutil.copytree(checkpoints.folder("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("torch_dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    found = {}
    for dtype in ("auto", "bfloat16"):
        config = worker_config(tmp_path, dtype=dtype)
        _, ready = load_runner(config, lambda progress: None, 0.0)
        found[dtype] = (ready.dtype, ready.decoder.split()[0])
    assert found == {"auto": ("float16", "torch"), "bfloat16": ("bfloat16", "native")}


def test_more_threads_than_cores_are_not_started_for_torch_either(checkpoints: Checkpoints) -> None:
    config = worker_config(checkpoints.folder("llama"), num_threads=1000)
    load_runner(config, lambda progress: None, 0.0)
    try:
        assert torch.get_num_threads() == usable_cores().count
    finally:
        torch.set_num_threads(1)


def test_a_native_rank_on_all_cores_finds_what_one_on_a_single_core_finds(checkpoints: Checkpoints) -> None:
    prompts = [prompt_of(length, seed=length) for length in (1, 30, 77)]
    outputs = []
    for num_threads in (0, 1):
        front = Front.of(checkpoints.folder("qwen2"), dtype="bfloat16", num_threads=num_threads)
        for slot, prompt in enumerate(prompts):
            front.admit(slot, prompt)
        front.step(s0=1, s1=30, s2=77)
        for _ in range(8):
            front.step(s0=1, s1=1, s2=1)
        outputs.append(front.outputs)
    assert outputs[0] == outputs[1]
    assert torch.get_num_threads() == 1
