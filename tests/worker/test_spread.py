"""Ranks as they are on several machines: they meet at a socket and share neither cores nor memory."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.company import company
from tests.worker.driver import Front, worker_config
from trioserve.core.step import Spread
from trioserve.errors import ModelError
from trioserve.worker.kv_cache import plan_num_blocks
from trioserve.worker.load import load_runner


@contextmanager
def meeting() -> Iterator[dict[str, Any]]:
    """What ranks are told that meet at a socket of the first one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        spread = Spread(f"127.0.0.1:{listening.getsockname()[1]}", 0, 1)
        yield {"spread": spread, "meeting_fd": listening.detach()}  # it is the store's from here on


@pytest.mark.parametrize(
    ("tp_size", "dtype", "why"),
    [
        (2, torch.float32, "weights are float32, not bfloat16"),
        (4, torch.bfloat16, "native ones meet in the memory of one machine"),
    ],
)
def test_they_give_the_tokens_of_one_on_torchs_layers(
    checkpoints: Checkpoints, tp_size: int, dtype: torch.dtype, why: str
) -> None:
    prompt, folder = prompt_of(30, seed=20), checkpoints.folder("llama", dtype=dtype)
    with meeting() as place, company(folder, tp_size, **place) as ranks:
        assert ranks.readies[0].decoder == f"torch layers in each of {tp_size} ranks over Gloo: {why}"
        front = Front(ranks.run)
        front.admit(0, prompt)
        front.step(s0=30)
        front.decode(9, 0)
    if dtype == torch.float32:
        assert front.outputs[0] == checkpoints.greedy("llama", prompt, 10)
    assert len(front.outputs[0]) == 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"quantization": "int8"},
            "quantization int8 needs the native decoder, whose ranks share one machine",
        ),
        (
            {"kv_cache_dtype": "fp8"},
            "kv_cache_dtype fp8 needs the native decoder, whose ranks share one machine",
        ),
    ],
)
def test_what_only_the_native_decoder_does_is_refused_before_anyone_waits(
    checkpoints: Checkpoints, changes: dict[str, object], sentence: str
) -> None:
    folder = checkpoints.folder("llama", dtype=torch.bfloat16)
    config = worker_config(folder, tp_size=2, spread=Spread("127.0.0.1:1", 0, 1), **changes)
    with pytest.raises(ModelError, match=sentence):
        load_runner(config, lambda progress: None, 0.0)


def test_a_rank_has_its_machines_memory_with_those_of_its_machine_alone(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trioserve.worker.kv_cache.available_memory_bytes", lambda: 1_000_000)
    folder = checkpoints.folder("llama")

    def num_blocks(spread: Spread | None) -> int:
        config = worker_config(
            folder, tp_size=4, num_blocks=None, max_num_seqs=10_000, kv_cache_share=0.8, spread=spread
        )
        return plan_num_blocks(config, 1000)

    assert num_blocks(None) == 200
    assert num_blocks(Spread("10.0.0.1:1", 0, 1)) == 800
    assert num_blocks(Spread("10.0.0.1:1", 1, 2)) == 400
