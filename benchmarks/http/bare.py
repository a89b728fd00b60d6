"""The application of ``peer.py`` on our serving loop: a model's steps without a model.

python -m benchmarks.http.bare --port 8100 --hz 20
"""

import argparse
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec
import trio
from quart import Response, request

from trioserve.core.delta import OutputDelta, Usage
from trioserve.core.sequence import FinishReason
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.mailbox import Mailbox
from trioserve.http import sse
from trioserve.http.event_writer import PromptPart
from trioserve.http.quart_app import HttpApp
from trioserve.http.shortcut import Shortcut
from trioserve.server.run import run
from trioserve.settings import Settings

TEXT: Final = " streamed"
"""What a token says."""


class Writer:
    """One stream's events, the bytes of ``peer.py``."""

    def __init__(self) -> None:
        self._stencil = sse.Stencil(self._event)

    async def read_prompt(self, index: int, logprobs: PromptPart) -> None:
        """There is none."""

    def opening(self) -> bytes:
        return b""

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        return self._stencil.event(delta.text)

    def closing(self) -> bytes:
        return sse.DONE

    @staticmethod
    def _event(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        chunk = {
            "id": "chatcmpl-0123456789abcdef0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1795000000,
            "model": "trioserve-tiny",
            "choices": [choice],
            "system_fingerprint": "fp_0123456789ab",
        }
        return sse.event(chunk)


class Bare:
    """What ``server.serve`` needs of an application, and no more."""

    side_app = None

    def __init__(self, hz: float) -> None:
        self.lifecycle = Lifecycle()
        self._hz = hz
        self._streams: set[Mailbox] = set()
        self._quart = HttpApp("bare", static_folder=None)
        self._quart.config["RESPONSE_TIMEOUT"] = None
        self._quart.add_url_rule("/v1/chat/completions", view_func=self._events, methods=["POST"])
        self._quart.add_url_rule("/tokenize", view_func=self._echo, methods=["POST"])
        self._quart.add_url_rule("/ready", view_func=self._ready)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._quart(scope, receive, send)
            return
        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            self.lifecycle.works_ready()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    def abort(self, reason: str) -> int:
        """End all streams."""
        ended = OutputDelta("", (), (), Usage(0, 0, 0), finish_reason=FinishReason.ABORT)
        for mailbox in self._streams:
            mailbox.put_nowait(0, ended)
            mailbox.hand_over()
        return len(self._streams)

    async def wait_released(self) -> None:
        """Nobody else uses this."""

    async def _tick(self) -> None:
        """A step of a model, so many times a second: a token for each stream."""
        next_at = trio.current_time()
        while True:
            next_at += 1 / self._hz
            await trio.sleep_until(next_at)
            for mailbox in self._streams:
                mailbox.put_nowait(0, OutputDelta(TEXT, (1,), (), Usage(1, 0, 1)))
                mailbox.hand_over()

    async def _events(self) -> Response:
        await request.get_data()
        writer = Writer()
        return sse.response(self._tell(writer, Shortcut.of(request, writer)))

    async def _tell(self, writer: Writer, shortcut: Shortcut) -> AsyncGenerator[bytes, None]:
        mailbox = Mailbox(1)
        self._streams.add(mailbox)
        try:
            while not mailbox.is_done:
                for index, delta in await mailbox.receive(shortcut.take):
                    yield writer.feed(index, delta)
        finally:
            self._streams.discard(mailbox)

    async def _echo(self) -> Response:
        asked = msgspec.json.decode(await request.get_data())
        answer = {"count": len(asked["prompt"]), "tokens": [1, 2, 3], "max_model_len": 8192}
        return Response(msgspec.json.encode(answer), content_type="application/json")

    async def _ready(self) -> Response:
        return Response("ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hz", type=float, required=True)
    options = parser.parse_args()
    settings = Settings(port=options.port, drain_delay_s=0.0, drain_timeout_s=0.2, log_level="warning")
    run(Bare(options.hz), settings)


if __name__ == "__main__":
    main()
