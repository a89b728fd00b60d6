"""Clients of a server that things happen to: witnesses who compare every answer, and others who behave badly."""

import json
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_TCP_REPAIR = 19
QUESTIONS = tuple(f"Count from {first} to {first + 6}." for first in range(3, 11))


def request(path: str, body: dict[str, Any]) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data


async def ask(client: httpx.AsyncClient, question: str, *, stream: bool) -> str:
    """The greedy answer to a question.

    Raises:
        Lost: The server says, or it can be seen, that the answer is not whole.
    """
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 40,
        "temperature": 0,
        "stream": stream,
    }
    try:
        answer = await client.post(CHAT, json=body)
    except httpx.TransportError as exc:
        raise Lost(repr(exc)) from exc
    if answer.status_code != 200:
        raise Lost(f"status {answer.status_code}")
    if not stream:
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    if events[-1:] != ["[DONE]"]:
        assert '"error"' in events[-1], f"a stream ended with {events[-1]!r}"
        raise Lost(events[-1])
    chunks = [json.loads(event) for event in events[:-1] if not event.startswith(":")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


class Lost(Exception):
    """An answer that did not come to its end, and did not look as if it had."""


@dataclass
class Witnesses:
    """Clients that go on asking whatever happens."""

    url: str
    answers: dict[str, str] = field(default_factory=dict)
    """What an undisturbed server says."""
    outcomes: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    is_over: bool = False
    note: str = ""
    """What there is to tell of the fault."""

    async def learn(self) -> None:
        """Ask everything once while nothing happens."""
        async with self._client() as client:
            for question in QUESTIONS:
                whole = await ask(client, question, stream=False)
                assert await ask(client, question, stream=True) == whole
                self.answers[question] = whole

    async def keep_asking(self, number: int) -> None:
        """One of them: every answer that comes whole is the right one."""
        async with self._client() as client:
            while not self.is_over:
                question = QUESTIONS[(number + self.outcomes.total()) % len(QUESTIONS)]
                try:
                    answer = await ask(client, question, stream=number % 2 == 0)
                except Lost as exc:
                    self.outcomes["lost"] += 1
                    self.losses.append(str(exc))
                    await trio.sleep(0.05)
                else:
                    assert answer == self.answers[question], (
                        f"{answer!r} instead of {self.answers[question]!r}"
                    )
                    self.outcomes["whole"] += 1

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=60)


# ---- bad behaviour ---------------------------------------------------------------------------------------------------


async def leave_somewhere(port: int, rng: random.Random) -> None:
    """Ask, and leave at any point: in the head, in the body, before, in or after the answer; in any way."""
    body = {
        "prompt": "Once",
        "max_tokens": rng.randrange(1, 200),
        "stream": rng.random() < 0.7,
        "n": rng.choice([1, 1, 3]),
    }
    data = request(COMPLETIONS, body)
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        await stream.send_all(data[: rng.randrange(1, len(data)) if rng.random() < 0.3 else None])
        if rng.random() < 0.5:
            with trio.move_on_after(rng.random() * 0.2):
                await stream.receive_some(rng.randrange(1, 4096))
        match rng.randrange(3):
            case 0:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case 1:
                await stream.send_eof()
    except (trio.BrokenResourceError, OSError):
        pass  # the server has closed first
    finally:
        await trio.aclose_forcefully(stream)


async def never_read(port: int, hold_s: float) -> None:
    """Ask for a long stream through a small window, and read none of it."""
    with trio.socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", port))
        body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True, "logprobs": 5}
        await sock.send(request(COMPLETIONS, body))
        await trio.sleep(hold_s)


async def send_slowly(port: int, hold_s: float) -> None:
    """Send a request a byte at a time, and never all of it."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        with trio.move_on_after(hold_s):
            for byte in request(COMPLETIONS, {"prompt": "x" * 200}):
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.05)
    except trio.BrokenResourceError:
        pass  # it was cut off
    finally:
        await trio.aclose_forcefully(stream)


async def send_body_slowly(port: int, hold_s: float) -> None:
    """Send the head of a request at once, and its body a byte at a time."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    data = request(COMPLETIONS, {"prompt": "x" * 2000})
    at = data.index(b"{")
    try:
        await stream.send_all(data[:at])
        with trio.move_on_after(hold_s):
            for byte in data[at:]:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.05)
    except trio.BrokenResourceError:
        pass  # it was cut off
    finally:
        await trio.aclose_forcefully(stream)


async def vanish(port: int, hold_s: float) -> None:
    """Be gone without a word, as when a machine loses its power: in a head, in a stream, or between two requests."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    data = request(COMPLETIONS, {"prompt": "Once", "max_tokens": 500, "stream": True})
    await stream.send_all(data[: int(hold_s * 1000) % (len(data) + 1)])
    with trio.move_on_after(0.2):
        await stream.receive_some(1)
    stream.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)  # closed now, it says nothing to the other end
    await trio.aclose_forcefully(stream)


async def say_nothing(port: int, hold_s: float) -> None:
    """Connect, and be there."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await trio.sleep(hold_s)
    await trio.aclose_forcefully(stream)
