"""Clients that ask without a pause, and compare every answer with the one that an undisturbed server gave."""

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import trio

from benchmarks.load.wire import Client, ProtocolError, Response

PATH = "/v1/chat/completions"
NUM_KEYS = 24
"""Different conversations; each has a `prompt_cache_key` of its own."""
_TIMEOUT_S = 60.0
_PAUSE_AFTER_FAILURE_S = 0.05


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"  # another status than 200, or no answer
    TRUNCATED = "truncated"  # a 200 that said it was broken, or broke off, before its end
    WRONG = "wrong"  # a whole answer with another text


@dataclass(frozen=True)
class Failure:
    request_id: str
    outcome: Outcome
    what: str


@dataclass
class Tally:
    """What the requests of one trial came to."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    num_begun: int = 0
    is_over: bool = False

    def take(self, request_id: str, outcome: Outcome, what: str) -> None:
        self.outcomes[outcome] += 1
        if outcome is not Outcome.OK:
            self.failures.append(Failure(request_id, outcome, what))


class Reader:
    """An answer, whole or in events; `text` is what it says so far."""

    def __init__(self, *, is_stream: bool) -> None:
        self.response = Response(self._on_body)
        self._is_stream = is_stream
        self._body = bytearray()

    def _on_body(self, data: bytes, _: float) -> None:
        self._body += data

    def result(self, expected: str) -> tuple[Outcome, str]:
        """What came of it, beside what an undisturbed server says."""
        if self.response.status != 200:
            status = self.response.status
            return Outcome.FAILED, f"status {status}" if status else "the connection ended without an answer"
        try:
            text = self.text()
        except ValueError as exc:
            return Outcome.TRUNCATED, str(exc)
        return (Outcome.OK, "") if text == expected else (Outcome.WRONG, f"{text!r} instead of {expected!r}")

    def text(self) -> str:
        """
        Raises:
            ValueError: It is no whole answer.
        """
        if self.response.status != 200:
            raise ValueError(f"status {self.response.status}: {bytes(self._body[:500])!r}")
        return self._streamed() if self._is_stream else self._whole()

    def _whole(self) -> str:
        if not self.response.ended:
            raise ValueError("the body broke off")
        content: str = json.loads(self._body)["choices"][0]["message"]["content"]
        return content

    def _streamed(self) -> str:
        text, is_finished, is_done = "", False, False
        for line in bytes(self._body).split(b"\n"):
            data = line.removeprefix(b"data: ")
            if data == line:
                continue
            if is_done:
                raise ValueError("an event after [DONE]")
            if data == b"[DONE]":
                is_done = True
                continue
            chunk: dict[str, Any] = json.loads(data)
            if "error" in chunk:
                raise ValueError(f"an error event: {chunk['error']['message']}")
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                is_finished |= choice["finish_reason"] is not None
        if not (is_finished and is_done and self.response.ended):
            raise ValueError("the stream broke off")
        return text


class Asker:
    """Asks the same few questions again and again."""

    def __init__(self, client: Client, num_words: int) -> None:
        """
        Args:
            num_words: About how long an answer is.
        """
        self._client = client
        self._num_words = num_words
        self.expected: dict[int, str] = {}

    async def learn(self) -> None:
        """Remember what an undisturbed server answers, each question asked as a stream and whole.

        Raises:
            ValueError: The two differ, or are no answers.
        """
        for key in range(NUM_KEYS):
            streamed = await self._ask(key, f"quiet-s{key}", is_stream=True)
            whole = await self._ask(key, f"quiet-w{key}", is_stream=False)
            if streamed.text() != whole.text():
                raise ValueError(f"streamed {streamed.text()!r}, whole {whole.text()!r}")
            self.expected[key] = whole.text()

    async def keep_asking(self, number: int, tally: Tally, *, is_stream: bool) -> None:
        """One client: a question after the other until ``tally`` is over."""
        while not tally.is_over:
            key = tally.num_begun % NUM_KEYS
            tally.num_begun += 1
            request_id = f"c{number}-{tally.num_begun}"
            try:
                with trio.fail_after(_TIMEOUT_S):
                    reader = await self._ask(key, request_id, is_stream=is_stream)
                outcome, what = reader.result(self.expected[key])
            except (OSError, ProtocolError, trio.TooSlowError) as exc:
                outcome, what = Outcome.FAILED, repr(exc)
            tally.take(request_id, outcome, what)
            if outcome is not Outcome.OK:
                await trio.sleep(_PAUSE_AFTER_FAILURE_S)

    async def _ask(self, key: int, request_id: str, *, is_stream: bool) -> Reader:
        first = 3 + key
        question = f"Count from {first} to {first + self._num_words}."
        body = {
            "messages": [{"role": "user", "content": question}],
            "prompt_cache_key": f"conversation-{key}",
            "max_tokens": 12 * self._num_words,
            "temperature": 0,
            "stream": is_stream,
        }
        reader = Reader(is_stream=is_stream)
        request = self._client.encode_post(PATH, json.dumps(body).encode(), X_Request_Id=request_id)
        try:
            await self._client.exchange(request, reader.response)
        except OSError:
            if reader.response.status == 0:
                raise
        return reader
