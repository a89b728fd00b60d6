"""How many blocks, and what the machine has."""

from pathlib import Path

import pytest
import torch

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import Front, worker_config
from trioserve.errors import ModelError
from trioserve.model.batch import CacheLayout
from trioserve.model.config import read_config
from trioserve.worker import machine
from trioserve.worker.kv_cache import (
    MEMORY_SHARE,
    allocate_kv_cache,
    block_bytes,
    cache_layout,
    plan_num_blocks,
)
from trioserve.worker.load import load_runner

HERE = Path()


def test_a_block_is_keys_and_values_of_all_layers(checkpoints: Checkpoints) -> None:
    model = read_config(checkpoints.folder("llama"))
    layout = CacheLayout("bfloat16", 16)
    assert block_bytes(model, 16, layout) == 2 * 2 * 2 * 16 * 16 * 2
    cache = allocate_kv_cache(model, worker_config(HERE, num_blocks=10), layout)
    assert sum(layer.k.nbytes + layer.v.nbytes for layer in cache.layers) == cache.num_bytes
    assert cache.layers[1].v.shape == (10, 2, 16, 16)


def test_the_number_of_blocks_is_what_was_told() -> None:
    assert plan_num_blocks(worker_config(HERE, num_blocks=8), 1000) == 8
    assert plan_num_blocks(worker_config(HERE, num_blocks=None, kv_cache_bytes=20_999), 1000) == 20


def test_by_default_there_are_as_many_blocks_as_are_of_use() -> None:
    assert plan_num_blocks(worker_config(HERE, num_blocks=None, max_num_seqs=3), 1000) == 3 * 8 + 1


def test_by_default_the_blocks_take_a_share_of_the_free_memory() -> None:
    config = worker_config(HERE, num_blocks=None, max_num_seqs=1000)
    free = machine.available_memory_bytes()
    per_block = free // 100
    assert plan_num_blocks(config, per_block) == pytest.approx(100 * MEMORY_SHARE, abs=4)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_that_was_told_is_taken_whole(share: float) -> None:
    """Also where fewer blocks would do for the sequences that run: the rest holds prefixes."""
    config = worker_config(HERE, num_blocks=None, max_num_seqs=1, kv_cache_share=share)
    per_block = machine.available_memory_bytes() // 1000
    assert plan_num_blocks(config, per_block) == pytest.approx(1000 * share, abs=30)


@pytest.mark.parametrize(
    "changes", [{"num_blocks": 7}, {"num_blocks": None, "kv_cache_bytes": 7999}, {"num_blocks": None}]
)
def test_too_little_for_one_sequence_says_the_numbers(changes: dict[str, int | None]) -> None:
    per_block = 1000 if "kv_cache_bytes" in changes else 1 << 40
    with pytest.raises(ModelError, match=r"max_model_len 128 needs 8 \(\d+ bytes\): lower max_model_len"):
        plan_num_blocks(worker_config(HERE, **changes), per_block)


def test_memory_that_is_not_there_is_a_sentence(checkpoints: Checkpoints) -> None:
    model = read_config(checkpoints.folder("llama"))
    with pytest.raises(ModelError, match="cannot be allocated"):
        allocate_kv_cache(model, worker_config(HERE, num_blocks=1 << 40), CacheLayout("float32", 16))


# ---- what it holds ---------------------------------------------------------------------------------------------------


def test_auto_is_the_type_of_the_weights(checkpoints: Checkpoints) -> None:
    model = read_config(checkpoints.folder("llama"))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        layout = cache_layout("auto", model, dtype)
        assert (layout.dtype, layout.width) == (dtype, model.head_dim)
    assert cache_layout("bfloat16", model, torch.bfloat16) == cache_layout("auto", model, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "checkpoint", "dtype", "sentence"),
    [
        (
            "int8",
            "llama",
            torch.float32,
            r"\(weights are float32, not bfloat16\): leave .*, or set dtype to bfloat16$",
        ),
        (
            "fp8",
            "llama-odd-width",
            torch.bfloat16,
            r"\(head_dim 20 is no multiple of 16\): leave it at auto$",
        ),
        ("bfloat16", "llama", torch.float32, "bfloat16 weights, these are float32: leave it at auto$"),
    ],
)
def test_what_torchs_layers_cannot_read_stops_the_start(
    checkpoints: Checkpoints, name: str, checkpoint: str, dtype: torch.dtype, sentence: str
) -> None:
    with pytest.raises(ModelError, match=f"^kv_cache_dtype {name} needs .*{sentence}"):
        cache_layout(name, read_config(checkpoints.folder(checkpoint)), dtype)
    config = worker_config(
        checkpoints.folder(checkpoint), dtype=str(dtype).removeprefix("torch."), kv_cache_dtype=name
    )
    with pytest.raises(ModelError, match=sentence):
        load_runner(config, lambda progress: None, 0.0)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_same_memory_holds_nearly_twice_as_many_blocks_of_codes(
    checkpoints: Checkpoints, name: str
) -> None:
    folder = checkpoints.folder("qwen3")
    counts = []
    for kept in ("auto", name):
        config = worker_config(
            folder, dtype="bfloat16", num_blocks=None, kv_cache_bytes=1 << 20, kv_cache_dtype=kept
        )
        _, ready = load_runner(config, lambda progress: None, 0.0)
        assert ready.kv_cache_dtype == ("bfloat16" if kept == "auto" else name)
        assert ready.kv_cache_bytes <= 1 << 20
        counts.append(ready.num_blocks)
    head_dim = read_config(folder).head_dim
    assert counts[1] / counts[0] == pytest.approx(2 * head_dim / (head_dim + 4), rel=0.02)


def test_a_rank_with_codes_answers_the_same_in_chunks_and_at_once(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(60, seed=1)
    outputs = []
    for chunks in ((60,), (7, 30, 23)):
        front = Front.of(checkpoints.folder("qwen2"), dtype="bfloat16", kv_cache_dtype="int8")
        front.admit(0, prompt)
        for count in chunks:
            front.step(s0=count)
        for _ in range(6):
            front.step(s0=1)
        outputs.append(front.outputs)
    assert outputs[0] == outputs[1]
