"""What happens to a server: coroutines that return when it is over, and the settings that go with them."""

import os
import random
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import httpx
import trio

from tests.chaos import clients
from tests.chaos.sockets import socket_of
from tests.e2e.harness import Server, command_line

_RECOVERS_WITHIN_S = 10.0
"""To the first token after a rank's death."""


@dataclass(frozen=True)
class Fault:
    """Something that happens."""

    name: str
    happen: Callable[[Server, float], Awaitable[str]]
    """Takes the size of it: 1 for the long form. Returns what there is to tell of it."""
    settings: Mapping[str, object] = field(default_factory=dict)
    ends_works: bool = False
    """Whether the works are others after it; answers that were under way are lost then, each with an error."""


async def _all_at_once(count: int, act: Callable[[int], Awaitable[None]], at_a_time: int = 200) -> None:
    limiter = trio.CapacityLimiter(at_a_time)

    async def limited(number: int) -> None:
        async with limiter:
            await act(number)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(limited, number)


async def storm(server: Server, size: float) -> str:
    """2,000 clients that leave at random points."""
    seeds = random.Random(5)

    async def leave(number: int) -> None:
        await clients.leave_somewhere(server.port, random.Random(seeds.random()))

    await _all_at_once(int(2000 * size), leave)
    return f"{int(2000 * size)} clients have left"


async def stalled(server: Server, size: float) -> str:
    """Readers that stop, senders that dribble, connections that say nothing; longer than they may."""
    acts = (clients.never_read, clients.send_slowly, clients.send_body_slowly, clients.say_nothing)

    async def hang(number: int) -> None:
        await acts[number % len(acts)](server.port, 3.0)

    await _all_at_once(int(300 * size), hang)
    return f"{int(300 * size)} clients have waited in vain"


async def half_open(server: Server, size: float) -> str:
    """Clients whose end of the connection is gone, without the server having been told."""

    async def vanish(number: int) -> None:
        await clients.vanish(server.port, number * 0.007)  # some in the head, some in the body

    await _all_at_once(int(400 * size), vanish)
    return f"{int(400 * size)} clients have vanished"


async def strike(signum: signal.Signals, server: Server, size: float) -> str:
    """A rank is killed, or stands still, in the middle of a step; the next token comes soon."""
    took_s = []
    for _ in range(max(1, int(4 * size))):
        await trio.sleep(0.5)
        os.kill(server.rank_pids()[0], signum)
        took_s.append(await _wait_served(server))
    return f"first token again after {min(took_s):.1f} to {max(took_s):.1f} s"


async def starve(server: Server, size: float) -> str:
    """A rank gets no memory any more, while it is asked for long prompts: a step of it raises."""
    (pid,) = server.rank_pids()
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        with trio.move_on_after(20):
            while pid in server.rank_pids():
                prompts = [[5 + i] * 900 for i in range(16)]
                answer = await client.post(
                    clients.COMPLETIONS, json={"prompt": prompts, "max_tokens": 8, "logprobs": 5}
                )
                assert answer.status_code in (200, 503), answer.text
    assert pid not in server.rank_pids(), "it goes on without memory"
    took_s = await _wait_served(server)
    assert "MemoryError" in server.log or "bad_alloc" in server.log, server.log[-2000:]
    return f"first token again after {took_s:.1f} s"


async def garble(server: Server, size: float) -> str:
    """A rank says what makes no sense."""
    took_s = []
    for number in range(max(1, int(4 * size))):
        await trio.sleep(0.5)
        (pid,) = server.rank_pids()
        noise = random.Random(number).randbytes(4096)
        with socket_of(pid, _worker_fd(pid)) as to_front:
            to_front.send(noise, socket.MSG_DONTWAIT)
        with trio.fail_after(_RECOVERS_WITHIN_S):
            while pid in server.rank_pids():  # noqa: ASYNC110  # processes of others tell nobody
                await trio.sleep(0.02)
        took_s.append(await _wait_served(server))
    assert "the works failed and are started anew" in server.log
    return f"first token again after {min(took_s):.1f} to {max(took_s):.1f} s"


def _worker_fd(pid: int) -> int:
    """The number of the rank's socket, its last word on the command line."""
    return int(command_line(pid).rstrip(b"\0").rpartition(b"\0")[2])


async def crowd(server: Server, size: float) -> str:
    """10,000 requests that wait: all are answered, alike where they are alike."""
    answers: set[str] = set()
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:

        async def ask(number: int) -> None:
            body = {"prompt": ["Hello there"] * 100, "max_tokens": 2, "temperature": 0}
            answer = await client.post(clients.COMPLETIONS, json=body)
            assert answer.status_code == 200, answer.text
            choices = answer.json()["choices"]
            assert [choice["index"] for choice in choices] == list(range(100))
            answers.update(choice["text"] for choice in choices)

        await _all_at_once(int(100 * size), ask)
    assert len(answers) == 1
    return f"{int(100 * size) * 100} sequences are answered"


async def squeeze(server: Server, size: float) -> str:
    """Prompts that fill the KV cache, so that sequences are preempted all the time; their texts stay the same."""
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:

        async def text(number: int) -> str:
            prompt = [10 + number] * (100 + 20 * number)
            body = {"prompt": prompt, "max_tokens": 150, "temperature": 0, "ignore_eos": True}
            answer = await client.post(clients.COMPLETIONS, json=body)
            assert answer.status_code == 200, answer.text
            found: str = answer.json()["choices"][0]["text"]
            return found

        alone = [await text(number) for number in range(8)]
        before = _num_preemptions(await client.get("/metrics"))

        async def ask(number: int) -> None:
            assert await text(number % 8) == alone[number % 8]

        await _all_at_once(int(80 * size), ask)
        count = _num_preemptions(await client.get("/metrics")) - before
        assert count > 0, "nothing was preempted"
    return f"{count:.0f} sequences were preempted"


async def full_disk(server: Server, size: float) -> str:
    """Nothing more can be written: answers come all the same, reads of what is not there fail in good order."""
    pid = server.serving_pid()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "store": True}
    count = max(3, int(100 * size))
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for _ in range(count):
                answer = await client.post(clients.CHAT, json=body)
                assert answer.status_code == 200, answer.text
                found = await client.get(f"{clients.CHAT}/{answer.json()['id']}")
                assert found.status_code in (404, 503), found.text
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        answer = await client.post(clients.CHAT, json=body)
        found = await client.get(f"{clients.CHAT}/{answer.json()['id']}")
        assert found.status_code == 200, found.text
    return f"{count} answers could not be stored"


def _num_preemptions(metrics: httpx.Response) -> float:
    line = next(line for line in metrics.text.splitlines() if line.startswith("vllm:num_preemptions_total{"))
    return float(line.rpartition(" ")[2])


async def _wait_served(server: Server) -> float:
    """Until a token comes again; returns the seconds that took."""
    began = trio.current_time()
    with trio.move_on_after(_RECOVERS_WITHIN_S):
        async with httpx.AsyncClient(base_url=server.url, timeout=_RECOVERS_WITHIN_S) as client:
            while True:
                answer = await client.post(clients.COMPLETIONS, json={"prompt": "Hi", "max_tokens": 1})
                if answer.status_code == 200:
                    return trio.current_time() - began
                await trio.sleep(0.05)
    raise AssertionError(f"no token came within {_RECOVERS_WITHIN_S:g} s")


FAULTS = (
    Fault("storm", storm),
    Fault("stalled", stalled, {"send_timeout_s": 1, "body_timeout_s": 1}),
    Fault("half open", half_open, {"keep_alive_timeout_s": 1, "body_timeout_s": 1}),
    Fault("killed", partial(strike, signal.SIGKILL), ends_works=True),
    Fault("stopped", partial(strike, signal.SIGSTOP), {"step_timeout_s": 1}, ends_works=True),
    Fault("starved", starve, ends_works=True),
    Fault("garbled", garble, ends_works=True),
    Fault("crowd", crowd, {"max_num_queued_reqs": 20_000, "max_num_queued_tokens": 1 << 20}),
    Fault("squeeze", squeeze, {"num_kv_blocks": 60, "max_model_len": 600}),
    Fault("full disk", full_disk, {"store_path": "answers.sqlite"}),
)
