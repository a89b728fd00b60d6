"""How many KV blocks a GPU gets: arithmetic on a device that is made of numbers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from torch import Tensor

from trioserve.core.step import WorkerConfig
from trioserve.errors import ModelError
from trioserve.kernels.device import Event, Graph, MemoryInfo
from trioserve.kernels.gpu import Gpu
from trioserve.worker.device_memory import plan_device_blocks

GB = 10**9
BLOCK = 2_000_000


class Numbers:
    """A ``Device`` of which only the memory is there."""

    gpu: Gpu
    torch_device = torch.device("cpu")
    name = "Sum 80"

    def __init__(
        self, *, free_bytes: int = 60 * GB, total_bytes: int = 80 * GB, step_bytes: int = 3 * GB
    ) -> None:
        self.free_bytes = free_bytes
        self.total_bytes = total_bytes
        self.step_bytes = step_bytes
        self.num_steps = 0

    def memory(self) -> MemoryInfo:
        return MemoryInfo(self.free_bytes, self.total_bytes)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        if self.step_bytes > self.free_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.step_bytes

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def record(self, *, timed: bool = False) -> Event:
        raise NotImplementedError

    def capture(self, work: Callable[[], object]) -> Graph:
        raise NotImplementedError

    def step(self) -> None:
        self.num_steps += 1


CONFIG = WorkerConfig(
    model_path="",
    device="cuda",
    dtype="bfloat16",
    tp_rank=0,
    tp_size=1,
    block_size=16,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
    max_model_len=32768,
    num_blocks=None,
    kv_cache_bytes=0,
    num_threads=1,
)


def plan(device: Numbers, **fields: object) -> int:
    return plan_device_blocks(device, structs.replace(CONFIG, **fields), BLOCK, device.step)


def test_the_cache_gets_what_weights_and_the_largest_step_leave_of_the_share() -> None:
    device = Numbers()
    assert plan(device) == (72 - 20 - 3) * GB // BLOCK
    assert plan(device, gpu_memory_utilization=0.5) == (40 - 20 - 3) * GB // BLOCK
    assert device.num_steps == 2


def test_blocks_that_were_lent_for_the_step_are_there_for_the_cache() -> None:
    device = Numbers(free_bytes=58 * GB)
    assert plan_device_blocks(device, CONFIG, BLOCK, device.step, lent_blocks=1000) == plan(Numbers())


def test_what_others_take_of_a_gpu_is_not_there() -> None:
    """A half of it may be used, and less than that is free."""
    assert plan(Numbers(free_bytes=10 * GB, step_bytes=GB), gpu_memory_utilization=1.0) == 9 * GB // BLOCK


@pytest.mark.parametrize(
    ("fields", "num_blocks"),
    [
        ({"num_blocks": 5000}, 5000),
        ({"kv_cache_bytes": 20 * GB}, 10_000),
        ({"kv_cache_bytes": 40 * GB, "tp_size": 2}, 10_000),
        ({"kv_cache_share": 0.5}, 15_000),
        ({"kv_cache_share": 0.99}, 57 * GB // BLOCK),
    ],
)
def test_other_ways_to_size_the_cache_are_obeyed(fields: dict[str, object], num_blocks: int) -> None:
    assert plan(Numbers(), **fields) == num_blocks


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"num_blocks": 29_000},
            r"^num_kv_blocks = 29000 is 58\.00 GB of KV cache, and 57\.00 GB are free beside 20\.00 GB in use",
        ),
        (
            {"kv_cache_bytes": 59 * GB},
            r"^kv_cache_bytes = 59000000000 is 59\.00 GB of KV cache, and 57\.00 GB",
        ),
        (
            {"num_blocks": 100},
            r"^num_kv_blocks = 100 makes 0\.20 GB .* needs 4\.10 GB: lower max_model_len to 1600, raise .* to 2048",
        ),
        (
            {"kv_cache_bytes": GB, "tp_size": 2},
            r"kv_cache_bytes = 1000000000 leaves .* raise kv_cache_bytes to 819",
        ),
        (
            {"kv_cache_share": 0.01},
            r"cache_max_entry_count = 0\.01 of 60\.00 GB that are free leaves 0\.60 GB",
        ),
    ],
)
def test_sizes_that_cannot_be_are_told_with_their_numbers(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        plan(Numbers(), **fields)


def test_too_little_for_one_sequence_is_told_with_what_to_change() -> None:
    with pytest.raises(ModelError) as told:
        plan(Numbers(free_bytes=13 * GB, step_bytes=2 * GB))
    assert str(told.value) == (
        "gpu_memory_utilization = 0.9 of 80.00 GB leaves 3.00 GB for the KV cache beside 67.00 GB in use and 2.00 GB "
        "of the largest step; one sequence of max_model_len 32768 needs 4.10 GB: lower max_model_len to 24000, raise "
        "gpu_memory_utilization to 0.92, set kv_cache_dtype to fp8, set quantization, share the model among more GPUs "
        "by tensor_parallel_size, now 1"
    )


def test_nothing_is_advised_that_is_done_already_or_would_not_help() -> None:
    with pytest.raises(ModelError) as told:
        plan(Numbers(free_bytes=GB, step_bytes=GB), quantization="int4", kv_cache_dtype="fp8")
    assert "leaves -8.00 GB" in str(told.value)
    assert str(told.value).endswith(
        "needs 4.10 GB: share the model among more GPUs by tensor_parallel_size, now 1"
    )


def test_a_step_that_does_not_fit_is_told_without_a_trace() -> None:
    with pytest.raises(ModelError) as told:
        plan(Numbers(free_bytes=2 * GB))
    assert str(told.value) == (
        "a step of max_num_batched_tokens = 2048 tokens does not fit beside 78.00 GB in use of the 80.00 GB of Sum 80: "
        "lower max_num_batched_tokens or max_num_seqs, set quantization, share the model among more GPUs by "
        "tensor_parallel_size, now 1"
    )


def test_a_cache_of_little_more_than_one_sequence_is_taken_and_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = Numbers(free_bytes=14 * GB, step_bytes=GB)
    assert plan(device) == 2500
    assert capsys.readouterr().err == (
        "the KV cache has 2500 blocks, 1.2 times what one sequence of max_model_len 32768 needs, and max_num_seqs 256 "
        "may run: long ones will wait for each other\n"
    )
    plan(device, tp_rank=1, tp_size=2)  # each says the same, so one speaks
    plan(device, max_num_seqs=1)
    plan(Numbers())
    assert capsys.readouterr().err == ""


@given(
    free_bytes=st.integers(0, 80 * GB),
    step_bytes=st.integers(0, 80 * GB),
    share=st.floats(0.01, 1),
    max_model_len=st.integers(1, 1 << 20),
)
def test_blocks_never_take_more_than_the_share_or_than_is_free(
    free_bytes: int, step_bytes: int, share: float, max_model_len: int
) -> None:
    device = Numbers(free_bytes=free_bytes, step_bytes=step_bytes)
    try:
        num_blocks = plan(device, gpu_memory_utilization=share, max_model_len=max_model_len, max_num_seqs=1)
    except ModelError:
        return
    assert num_blocks * 16 >= max_model_len
    assert num_blocks * BLOCK + step_bytes <= free_bytes
    assert num_blocks * BLOCK + step_bytes + (80 * GB - free_bytes) <= share * 80 * GB
