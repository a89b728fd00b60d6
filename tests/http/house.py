"""A server without a network and without a model: the real engine over a rank that recites a text."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import trio
from quart_trio import QuartTrio
from tokenizers import decoders, models, pre_tokenizers

from tests.fakes import FakeExecutor, FakeRank, NextToken, works_of
from trioserve.engine.checkpoint import ModelFolder
from trioserve.engine.engine import Engine
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.engine.supervisor import supervise
from trioserve.examiner.client import Examiner
from trioserve.http.app import create_app
from trioserve.http.services import Services
from trioserve.output.vocabulary import load_vocabulary
from trioserve.parsers.dialects import Dialects
from trioserve.prompt.renderer import Renderer
from trioserve.prompt.template import ChatTemplates
from trioserve.prompt.tokenizer import Tokenizer
from trioserve.settings import Settings

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")
_START_ID = 256
EOS_ID = 257
VOCAB_SIZE = 258
RECITED = "Grüße, 世界! One, two, three. "
"""What the rank says, from a place that the prompt's length decides."""

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def make_tokenizer() -> Tokenizer:
    """One token a byte."""
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(_ALPHABET)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return Tokenizer(backend, special_tokens={"eos_token": "<|im_end|>"})


_TOKENIZER = make_tokenizer()
_RECITED_IDS = _TOKENIZER.encode(RECITED, add_special_tokens=False)


def reciting(token_ids: list[int]) -> int:
    return _RECITED_IDS[len(token_ids) % len(_RECITED_IDS)]


def saying(text: str, *, opening: str = "assistant\n", eos_id: int | None = None) -> NextToken:
    """A rank that answers every prompt with ``text`` and the end.

    Args:
        opening: How prompts end, from their last ``<|im_start|>`` on.
    """
    said = [*_TOKENIZER.encode(text, add_special_tokens=False), EOS_ID if eos_id is None else eos_id]
    num_opening = len(_TOKENIZER.encode(opening, add_special_tokens=False))

    def next_token(token_ids: list[int]) -> int:
        num_behind = token_ids[::-1].index(_START_ID)
        return said[min(num_behind - num_opening, len(said) - 1)]

    return next_token


def recited(num_prompt_tokens: int, num_tokens: int) -> str:
    """What the rank answers to a prompt of that length."""
    text = RECITED.encode()
    answer = bytes(text[(num_prompt_tokens + i) % len(text)] for i in range(num_tokens))
    return answer.decode(errors="replace")


@dataclass
class Answer:
    """What came back, perhaps not all of it yet."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """Each with the time at which it came."""
    is_whole: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of each event of a stream, ``[DONE]`` included; comments left out."""
        blocks = [block for block in self.body.decode().split("\n\n") if block and not block.startswith(":")]
        assert all(block.startswith("data: ") for block in blocks)
        return [text if text == "[DONE]" else json.loads(text) for text in (block[6:] for block in blocks)]


Body = bytes | list[bytes] | dict[str, Any] | None
Send = Callable[[Answer], Awaitable[None]]


async def _no_wait(answer: Answer) -> None: ...


@dataclass
class House:
    """The server, and ways to ask it."""

    app: QuartTrio
    engine: Engine
    executor: FakeExecutor
    services: Services

    async def ask(
        self,
        method: str,
        path: str,
        body: Body = None,
        *,
        headers: dict[str, str] | None = None,
        leaves: trio.Event | None = None,
        on_send: Send = _no_wait,
        root_path: str = "",
    ) -> Answer:
        """One request at the ASGI seam; the client is gone when ``leaves`` is set; a list of pieces never ends."""
        answer = Answer()
        pieces = body if isinstance(body, list) else [_as_bytes(body)]
        incoming: list[Any] = [
            {
                "type": "http.request",
                "body": piece,
                "more_body": isinstance(body, list) or i + 1 < len(pieces),
            }
            for i, piece in enumerate(pieces)
        ]

        async def receive() -> Any:
            await trio.lowlevel.checkpoint()
            if incoming:
                return incoming.pop(0)
            await (trio.Event() if leaves is None else leaves).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.pieces.append((trio.current_time(), message["body"]))
                answer.is_whole = not message["more_body"]
            await on_send(answer)

        given = {"content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {},
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": root_path,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "extensions": {},
        }
        await self.app(scope, receive, send)  # type: ignore[arg-type]
        return answer

    async def post(self, path: str, body: Body, **headers: str) -> Answer:
        return await self.ask("POST", path, body, headers=headers)

    async def json(self, path: str, body: Body) -> Any:
        answer = await self.post(path, body)
        assert answer.status == 200, answer.body
        return answer.json

    async def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        answer = await self.post(path, {**body, "stream": True})
        assert answer.status == 200, answer.body
        return answer.events


def _as_bytes(body: bytes | dict[str, Any] | None) -> bytes:
    return json.dumps(body).encode() if isinstance(body, dict) else body or b""


@asynccontextmanager
async def open_house(
    *,
    template: str | None = TEMPLATE,
    names: tuple[str, ...] = ("reciter",),
    step_s: float = 0.01,
    eos_token_ids: tuple[int, ...] = (EOS_ID,),
    tokenizer_path: Path = Path("reciter"),
    max_model_len: int = 256,
    num_blocks: int = 64,
    num_host_blocks: int = 0,
    next_token: NextToken = reciting,
    dialects: Dialects = Dialects(),  # noqa: B008  # it is frozen
    **settings: Any,
) -> AsyncIterator[House]:
    """A house whose requests may ask for no form, unless ``guided_decoding_backend`` says otherwise.

    Args:
        tokenizer_path: A folder that has the tokenizer of ``make_tokenizer``; needed for forms only.
    """
    settings.setdefault("guided_decoding_backend", "off")
    model = ModelFolder(
        name=names[0],
        names=names,
        path=Path("reciter"),
        tokenizer_path=tokenizer_path,
        max_model_len=max_model_len,
        vocab_size=258,
        eos_token_ids=eos_token_ids,
        generation_config={},
        created=1_700_000_000,
    )
    lifecycle = Lifecycle()
    services = Services(Settings(**settings), lifecycle)
    engine = Engine(services.settings, model, load_vocabulary(_TOKENIZER.backend), lifecycle)
    executor = FakeExecutor(
        FakeRank(16, next_token), num_blocks=num_blocks, num_host_blocks=num_host_blocks, step_s=step_s
    )
    templates = ChatTemplates({} if template is None else {"default": template})
    app = create_app(services)
    async with trio.open_nursery() as nursery:
        run = partial(supervise, engine, works_of(executor, executor), lifecycle, max_restarts=1)
        nursery.start_soon(run)
        while lifecycle.state is ServerState.STARTING:
            await lifecycle.wait_changed()
        nursery.start_soon(services.completions.run)
        examiner = Examiner(services.settings, model)
        nursery.start_soon(examiner.run)
        services.serve(engine, Renderer(_TOKENIZER, templates), grammars=examiner, dialects=dialects)
        yield House(app, engine, executor, services)
        nursery.cancel_scope.cancel()
