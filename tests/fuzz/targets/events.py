"""A stream's events are the same from stencils as written anew, one line of JSON each, and their sum is the answer."""

# ruff: noqa: E501  # many words stand on few lines

import json
from typing import Any, cast

import msgspec

from tests.fuzz.source import Source
from tests.parsers.test_hostile import PIECES
from trioserve.core.delta import OutputDelta, TokenLogprob, TopToken, Usage, merge
from trioserve.core.sequence import FinishReason
from trioserve.http.chat import ChatWriter
from trioserve.http.exchange import Exchange
from trioserve.http.generation import Heading
from trioserve.http.reading import Reading
from trioserve.http.services import ServedModel
from trioserve.http.telling import Teller
from trioserve.parsers.registry import Registry
from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.common import parse
from trioserve.settings import Settings

_REGISTRY, _SETTINGS = Registry.load(), Settings()
_HERMES, _QWEN3 = _REGISTRY.tool_dialect("hermes"), _REGISTRY.reasoning_dialect("qwen3")
_WORDS = (
    *("data: [DONE]\n\n", "\n\n", "\r\n", "\u2028", "\u0085", "event: x\n", ": x\n", '"', "\\", "\0", "é", "🌍", "</script>"),
    *("<think>", "</think>", "\n", "<tool_call>\n", "\n</tool_call>", '{"name": "get_weather", "arguments": {"city": "x"}}'),
    *PIECES,
)  # fmt: skip
_BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
SEEDS = tuple(
    bytes([options, 1, 8, 130, 140, 97, 150, 4, 97, 98, 0, 131, 6, 129, 128]) for options in range(0, 64, 5)
)


def check(data: bytes) -> None:
    """Tell the same deltas by two writers, and merged by a third."""
    source = Source(data)
    make = _maker(source.byte(), num_choices=1 + source.byte() % 2)
    deltas = _deltas(source, num_choices=len(make().prompts))
    usual, anew, merging = make(), make(), make()
    anew._is_uniform = False
    for other in (anew, merging):
        other._call_ids = usual._call_ids
        other._tellers = [Teller(other._reading, ids) for ids in usual._call_ids]
    told = [usual.feed(*delta) for delta in deltas]
    assert told == [anew.feed(*delta) for delta in deltas]
    chunks = _chunks(usual.opening() + b"".join(told) + usual.closing())
    by_choice = [[delta for of, delta in deltas if of == index] for index in range(len(usual.prompts))]
    together = b"".join(merging.feed(index, merge(each)) for index, each in enumerate(by_choice))
    merged = _chunks(merging.opening() + together + merging.closing())
    whole = json.loads(json.dumps(_whole(usual, by_choice)))
    for index, choice in enumerate(whole["choices"]):
        assert _sum(chunks, index) == _sum(merged, index) == _text_of(choice["message"])


def _maker(options: int, *, num_choices: int) -> Any:
    names = ("logprobs", "usage", "thinks", "calls", "hides", "ids")
    on = {name: bool(options >> place & 1) for place, name in enumerate(names)}
    body = _BODY | {"n": num_choices, "return_token_ids": on["ids"]}
    body |= {"logprobs": True, "top_logprobs": 1} if on["logprobs"] else {}
    body |= {"stream_options": {"include_usage": True}} if on["usage"] else {}
    body |= {"tools": [_TOOL]} if on["calls"] else {}
    asked = parse(ChatCompletionRequest, json.dumps(body).encode()).resolved()
    reading = Reading(
        reasoning=_QWEN3 if on["thinks"] else None,
        tools=_HERMES if on["calls"] else None,
        offer=asked.tool_offer(),
        prompt="unsaid",
        tells_reasoning=True,
        streams_reasoning=not on["hides"],
        thinking=None,
        budget=None,
    )
    exchange = Exchange(asked, cast("ServedModel", None), _SETTINGS, 0.0)
    heading = Heading("chatcmpl-x", "model", "fp", created=1)
    return lambda: ChatWriter(exchange, heading, [[1]], reading)


def _deltas(source: Source, *, num_choices: int) -> list[tuple[int, OutputDelta]]:
    """Of each choice some, the last with an end."""
    deltas = []
    for count in range(source.byte() % 12):
        index = source.byte() % num_choices
        deltas.append((index, _delta(source, count)))
    for index in range(num_choices):
        finish = FinishReason.LENGTH if source.flag() else FinishReason.STOP
        deltas.append((index, _delta(source, 12, finish)))
    return deltas


def _delta(source: Source, count: int, finish: FinishReason | None = None) -> OutputDelta:
    top = (TopToken(1, b"\xff", -0.5),)
    logprobs = (TokenLogprob(count, b"a", -1.5, top),) if source.byte() & 3 == 3 else ()
    return OutputDelta(source.text(_WORDS[:128], 6), (count,), logprobs, Usage(1, 0, count), finish)


def _chunks(stream: bytes) -> list[Any]:
    """The events as a client reads them: lines end with CR LF, LF or CR."""
    events = stream.split(b"\n\n")
    assert events.pop() == b"" and events[-1] == b"data: [DONE]"
    for event in events:
        assert event.startswith(b"data: ") and not {b"\n"[0], b"\r"[0]} & set(event)
    return [json.loads(event[6:]) for event in events[:-1]] + ["[DONE]"]


def _whole(writer: ChatWriter, by_choice: list[list[OutputDelta]]) -> Any:
    return msgspec.to_builtins(writer.whole([merge(each) for each in by_choice]))


def _sum(chunks: list[Any], index: int) -> tuple[str, str, list[tuple[str, str]]]:
    """What the chunks of a choice add up to."""
    content = reasoning = ""
    calls: dict[int, list[str]] = {}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                delta = choice["delta"]
                content += delta.get("content") or ""
                reasoning += delta.get("reasoning_content") or ""
                for call in delta.get("tool_calls") or []:
                    told = calls.setdefault(call["index"], ["", ""])
                    told[0] += call["function"].get("name") or ""
                    told[1] += call["function"]["arguments"]
    return content, reasoning, [(name, arguments) for name, arguments in calls.values()]


def _text_of(message: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []
    ]
    return message.get("content") or "", message.get("reasoning_content") or "", calls
