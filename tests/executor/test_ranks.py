"""Real rank processes with a tiny model of random weights."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, LoadProgress, SlotWork, StepPlan, WorkerConfig
from trioserve.errors import EngineError, ModelError, SettingsError, WorkerDied
from trioserve.executor.executor import ProcessExecutor, run_ranks
from trioserve.executor.rank import LocalRank, launch_ranks
from trioserve.settings.gpus import Gpus

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def worker_config(tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    folder = tmp_path_factory.mktemp("dummy")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return WorkerConfig(
        model_path=str(folder),
        device="cpu",
        dtype="float32",
        tp_rank=0,
        tp_size=1,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=64,
        num_blocks=8,
        kv_cache_bytes=0,
        num_threads=1,
        load_format="dummy",
    )


@asynccontextmanager
async def started(config: WorkerConfig) -> AsyncIterator[ProcessExecutor]:
    async with run_ranks(launch_ranks(config), start_timeout_s=60, on_progress=_ignore) as executor:
        yield executor


def pids(executor: ProcessExecutor) -> list[int]:
    """The processes of ranks that are all here."""
    return [rank.pid for rank in executor._ranks if isinstance(rank, LocalRank)]


def _ignore(progress: LoadProgress) -> None:
    assert progress.loaded_bytes <= progress.total_bytes


def plan(step_id: int, *work: SlotWork, admitted: list[Admission] | None = None) -> StepPlan:
    return StepPlan(step_id, [], admitted or [], list(work))


def admission(**params: object) -> Admission:
    return Admission(0, 1, [1, 2, 3], 3, 0, [0], SamplingParams(max_tokens=9, **params))  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_plans_lie_ahead_of_results_and_tokens_feed_the_next_step(worker_config: WorkerConfig) -> None:
    async with started(worker_config) as executor:
        assert executor.ready.num_blocks == 8
        await executor.submit(plan(0, SlotWork(0, 3, []), admitted=[admission(temperature=0.0)]))
        for step_id in range(1, 5):
            await executor.submit(plan(step_id, SlotWork(0, 1, [])))
        results = [await executor.result() for _ in range(5)]
        (pid,) = pids(executor)
    assert [result.step_id for result in results] == [0, 1, 2, 3, 4]
    assert all(len(result.sampled) == 1 for result in results)
    assert not is_alive(pid)


async def test_a_killed_rank_is_noticed_within_a_second(worker_config: WorkerConfig) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(WorkerDied, match="rank 0 was killed by SIGKILL"), flatten_subgroups=True
    ):
        async with started(worker_config) as executor:
            os.kill(pids(executor)[0], signal.SIGKILL)
            with trio.fail_after(1.0):
                await executor.result()


async def test_a_stopped_rank_is_ended_all_the_same(worker_config: WorkerConfig) -> None:
    async with started(worker_config) as executor:
        (pid,) = pids(executor)
        os.kill(pid, signal.SIGSTOP)
        with trio.move_on_after(0.2) as scope:
            await executor.result()
        assert scope.cancelled_caught
    assert not is_alive(pid)


async def test_the_terminals_signals_do_not_end_a_rank(worker_config: WorkerConfig) -> None:
    async with started(worker_config) as executor:
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(pids(executor)[0], signum)
        await executor.submit(plan(0, SlotWork(0, 3, []), admitted=[admission()]))
        assert (await executor.result()).step_id == 0


async def test_a_plan_that_makes_no_sense_ends_the_rank_with_its_reason(worker_config: WorkerConfig) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(EngineError, match="AssertionError"), flatten_subgroups=True):
        async with started(worker_config) as executor:
            await executor.submit(plan(0, SlotWork(2, 1, [])))
            await executor.result()


async def test_a_folder_that_cannot_be_served_is_the_operators_error(
    worker_config: WorkerConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "architectures": ["NoSuchModel"]}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="NoSuchModel"):
        async with started(msgspec.structs.replace(worker_config, model_path=str(tmp_path))):
            pass


def test_ranks_that_are_more_than_gpus_are_not_started(
    worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trioserve.executor.rank.find_gpus", lambda: Gpus(1))
    config = msgspec.structs.replace(worker_config, device="cuda", tp_size=2)
    with pytest.raises(SettingsError, match="= 2: each rank needs a GPU, and there is 1 GPU; lower it"):
        launch_ranks(config)


async def test_a_decoder_whose_numbers_depend_on_the_batch_refuses_to_be_invariant(
    worker_config: WorkerConfig,
) -> None:
    with pytest.raises(ModelError, match="batch_invariant cannot be obeyed: weights are float32"):
        async with started(msgspec.structs.replace(worker_config, batch_invariant=True)):
            pass
