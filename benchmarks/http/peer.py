"""The application of ``bare.py`` for uvicorn + starlette; any environment that has them runs it.

python benchmarks/http/peer.py --port 8100 --hz 20
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

HEAD = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1795000000,'
    b'"model":"trioserve-tiny","choices":[{"index":0,"delta":{"content":'
)
TAIL = b'},"logprobs":null,"finish_reason":null}],"system_fingerprint":"fp_0123456789ab"}\n\n'
TEXT = " streamed"
"""What a token says."""

streams: set["asyncio.Queue[str]"] = set()


async def tick(hz: float) -> None:
    """A step of a model, so many times a second: a token for each stream."""
    loop = asyncio.get_running_loop()
    next_at = loop.time()
    while True:
        next_at += 1 / hz
        await asyncio.sleep(next_at - loop.time())
        for queue in streams:
            queue.put_nowait(TEXT)


async def events(request: Request) -> StreamingResponse:
    async def tell() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        streams.add(queue)
        try:
            while True:
                text = await queue.get()
                yield b"%b%b%b" % (HEAD, json.dumps(text).encode(), TAIL)
        finally:
            streams.discard(queue)

    await request.json()
    return StreamingResponse(tell(), media_type="text/event-stream")


async def echo(request: Request) -> JSONResponse:
    asked = await request.json()
    return JSONResponse({"count": len(asked["prompt"]), "tokens": [1, 2, 3], "max_model_len": 8192})


async def ready(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hz", type=float, required=True)
    options = parser.parse_args()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        ticking = asyncio.create_task(tick(options.hz))
        yield
        ticking.cancel()

    routes = [
        Route("/v1/chat/completions", events, methods=["POST"]),
        Route("/tokenize", echo, methods=["POST"]),
        Route("/ready", ready),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    uvicorn.run(app, port=options.port, log_level="error", access_log=False, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
