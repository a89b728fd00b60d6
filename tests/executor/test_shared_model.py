"""Two real ranks that share a model: whatever happens to one of them is the end of both, soon."""

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
import trio

from tests.executor.test_ranks import CONFIG, admission, is_alive, pids, plan, started
from trioserve.core.step import SlotWork, WorkerConfig
from trioserve.errors import ModelError, WorkerDied
from trioserve.executor.executor import ProcessExecutor, run_ranks
from trioserve.executor.rank import launch_ranks
from trioserve.worker.machine import usable_cores

pytestmark = pytest.mark.skipif(usable_cores().count < 2, reason="two ranks need a core each")


@pytest.fixture
def shared(tmp_path: Path) -> WorkerConfig:
    """Of native layers, which meet in shared memory."""
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(CONFIG))
    return WorkerConfig(
        model_path=str(tmp_path),
        device="cpu",
        dtype="bfloat16",
        tp_rank=0,
        tp_size=2,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=64,
        num_blocks=8,
        kv_cache_bytes=0,
        num_threads=1,
        load_format="dummy",
    )


async def tokens(executor: ProcessExecutor) -> list[int]:
    """Six greedy ones, the plans ahead of the results."""
    await executor.submit(plan(0, SlotWork(0, 3, []), admitted=[admission(temperature=0.0)]))
    for step_id in range(1, 6):
        await executor.submit(plan(step_id, SlotWork(0, 1, [])))
    results = [await executor.result() for _ in range(6)]
    return [sample.token_id for result in results for sample in result.sampled]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_two_ranks_give_the_tokens_of_one_where_nobody_else_can_come(
    shared: WorkerConfig, dtype: str
) -> None:
    """What they know of each other lies in memory without a name; over Gloo they listen, on loopback."""
    shared = msgspec.structs.replace(shared, dtype=dtype)
    async with started(msgspec.structs.replace(shared, tp_size=1)) as executor:
        expected, alone = await tokens(executor), executor.ready
    async with started(shared) as executor:
        assert await tokens(executor) == expected
        assert "each of 2 ranks" in executor.ready.decoder
        assert executor.ready.num_blocks == alone.num_blocks == 8
        assert alone.weights_bytes <= executor.ready.weights_bytes < 1.5 * alone.weights_bytes
        found = pids(executor)
        for pid in found:
            files = open_files(pid)
            assert any(name.startswith("/memfd:trioserve-ranks (deleted)") for name in files)
            assert listening(pid, files) == ({"0100007F"} if dtype == "float32" else set())
    assert not any(map(is_alive, found))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("struck", [0, 1])
async def test_a_killed_rank_is_the_end_of_the_one_that_waits_for_it(
    shared: WorkerConfig, struck: int, dtype: str
) -> None:
    shared = msgspec.structs.replace(shared, dtype=dtype)
    with pytest.RaisesGroup(
        pytest.RaisesExc(WorkerDied, match=f"rank {struck} was killed by SIGKILL"), flatten_subgroups=True
    ):
        async with started(shared) as executor:
            found = pids(executor)
            os.kill(found[struck], signal.SIGSTOP)
            await executor.submit(plan(0, SlotWork(0, 3, []), admitted=[admission()]))
            await trio.sleep(0.2)  # the other one has come to the first meeting
            struck_at = time.monotonic()
            os.kill(found[struck], signal.SIGKILL)
            await executor.result()
    assert not any(map(is_alive, found))
    assert time.monotonic() - struck_at < 1.0


async def test_a_rank_that_dies_while_loading_ends_the_start(shared: WorkerConfig) -> None:
    ranks = launch_ranks(shared)
    os.kill(ranks[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="rank 1 was killed by SIGKILL"), trio.fail_after(10):
        async with run_ranks(ranks, start_timeout_s=60, on_progress=lambda progress: None):
            pass
    assert not any(is_alive(rank.pid) for rank in ranks)


async def test_what_all_ranks_refuse_is_one_sentence(shared: WorkerConfig) -> None:
    folder = Path(shared.model_path)
    (folder / "config.json").write_bytes(msgspec.json.encode({**CONFIG, "intermediate_size": 63}))
    with pytest.raises(
        ModelError, match="tensor_parallel_size 2 does not fit the model: intermediate_size 63"
    ):
        async with started(shared):
            pass


def open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def listening(pid: int, files: list[str]) -> set[str]:
    """The addresses, as the system writes them, on which a process accepts connections."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in files}
