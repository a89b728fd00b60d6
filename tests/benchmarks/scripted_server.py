"""An OpenAI-compatible server that answers as each request says: late, in steps, cut short, or not at all."""

import json
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

TOKENS_PER_WORD, TEMPLATE_TOKENS = 2, 7
"""How this server counts a prompt."""

seen: list[int] = []
"""``max_tokens`` of every request there was."""


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Fields of the request beyond OpenAI's: ``first_s``, ``gap_s``, ``per_event``, ``usage``, ``faults``.

    ``faults`` is a list walked by the requests in order of arrival: ok, 429, 500, truncated, no_done, error, json.
    """
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "http":
        body = await _body(receive)
        if scope["path"] in ("/v1/chat/completions", "/v1/completions"):
            await _Answer(send, json.loads(body), is_chat="chat" in scope["path"]).write()
        else:
            pages: dict[str, Any] = {
                "/v1/models": {"data": [{"id": "scripted"}]},
                "/version": {"version": "1.2.3"},
                "/ready": {},
            }
            await _write_json(send, 200 if scope["path"] in pages else 404, pages.get(scope["path"], {}))


async def _lifespan(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _body(receive: ASGIReceiveCallable) -> bytes:
    body = b""
    while True:
        event: Any = await receive()
        body += bytes(event.get("body", b""))
        if not event.get("more_body"):
            return body


async def _write_json(send: ASGISendCallable, status: int, value: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode(), "more_body": False})


class _Answer:
    def __init__(self, send: ASGISendCallable, request: dict[str, Any], *, is_chat: bool) -> None:
        self.send, self.request, self.is_chat = send, request, is_chat
        prompt = request["messages"][0]["content"] if is_chat else request["prompt"]
        self.prompt_tokens = TEMPLATE_TOKENS + TOKENS_PER_WORD * len(prompt.split())

    async def write(self) -> None:
        faults = self.request.get("faults", ["ok"])
        # the two requests by which the client learns how words are counted ask for one token
        fault = "ok" if self.request["max_tokens"] == 1 else faults[len(seen) % len(faults)]
        seen.append(self.request["max_tokens"])
        if fault in ("429", "500"):
            await _write_json(self.send, int(fault), {"error": {"message": f"scripted {fault}"}})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.is_chat:
            await self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await trio.sleep(self.request.get("first_s", 0))
        await self._tokens(fault)

    async def _tokens(self, fault: str) -> None:
        asked, per_event = self.request["max_tokens"], self.request.get("per_event", 1)
        for num_sent in range(0, asked, per_event):
            if num_sent:
                await trio.sleep(self.request.get("gap_s", 0))
            if fault == "truncated" and num_sent:
                raise ConnectionError("scripted")  # hypercorn closes the connection inside the body
            if fault == "error" and num_sent:
                await self._event({"error": {"message": "scripted failure", "code": 500}})
                break
            if fault == "json" and num_sent:
                await self._write(b"data: {oops\n\n")
            await self._event({"choices": [self._choice(" word" * min(per_event, asked - num_sent))]})
        else:
            await self._event({"choices": [self._choice("") | {"finish_reason": "length"}]})
            if self.request.get("usage", True):
                usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": asked}
                await self._event({"choices": [], "usage": usage})
        await self._write(b": a comment\n\n" if fault == "no_done" else b"data: [DONE]\n\n")
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _choice(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}

    async def _event(self, value: object) -> None:
        await self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def _write(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})


async def serve_scripted(task_status: trio.TaskStatus[list[str]]) -> None:
    """Serve on a free port; the URL is the status."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = config.accesslog = None
    await serve(app, config, task_status=task_status)
