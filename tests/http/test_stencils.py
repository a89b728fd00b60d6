"""Events that are filled in rather than encoded: the bytes are the same, whatever the text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.house import open_house
from trioserve.http import sse
from trioserve.protocol.chat import ChatChunkChoice, ChatCompletionChunk, ChatDelta

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def chunk(text: str) -> bytes:
    delta = ChatDelta(reasoning_content=text, reasoning=text)
    choices = [ChatChunkChoice(0, delta)]
    return sse.event(
        ChatCompletionChunk(id="a", created=1, model='m"\\', choices=choices, system_fingerprint="f")
    )


STENCIL = sse.Stencil(chunk)


@given(TEXTS)
def test_a_filled_event_has_the_bytes_of_an_encoded_one(text: str) -> None:
    assert STENCIL.event(text) == chunk(text)


@pytest.mark.parametrize(
    "text", ["", "\x00\x1f\x7f", "\u2028\u2029", '"\\/', "\ud7ff\ue000\U0010ffff", "data: \n\n"]
)
def test_no_character_ends_the_event_or_leaves_its_string(text: str) -> None:
    event = STENCIL.event(text)
    assert event.startswith(b"data: ")
    assert event.index(b"\n") == len(event) - 2
    assert json.loads(event[6:])["choices"][0]["delta"] == {"reasoning_content": text, "reasoning": text}


def test_half_a_surrogate_pair_is_refused_as_the_encoder_refuses_it() -> None:
    for make in (chunk, STENCIL.event):
        with pytest.raises(UnicodeEncodeError):
            make("\ud800")


async def streamed(path: str, **fields: Any) -> list[Any]:
    async with open_house() as house:
        asked = {"stream": True, "max_tokens": 24, "n": 2, "seed": 1, **fields}
        if path == "/v1/chat/completions":
            asked["messages"] = [{"role": "user", "content": "Hi"}]
        else:
            asked["prompt"] = "Hi"
        events: list[Any] = (await house.post(path, asked)).events
        return [event for event in events if event != "[DONE]" and event["choices"]]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_events_with_and_without_a_stencil_differ_in_what_was_asked_for_only(path: str) -> None:
    plain = await streamed(path)
    padded = await streamed(path, stream_options={"include_obfuscation": True})
    assert all(event.pop("obfuscation") is not None for event in padded)
    for event in plain + padded:
        del event["id"], event["created"]
    assert plain == padded
