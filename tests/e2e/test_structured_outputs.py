"""Answers that are held to a form, through the real server: streamed and whole, in chats and in completions."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import httpx
import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel
from pydantic_core import from_json

from tests.e2e.harness import TRIOSERVE, Server, command_line, descendants, running_server, wait_until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEATHER = [{"role": "user", "content": "What is the weather like in Paris?"}]
BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": WEATHER, "max_tokens": 120, "temperature": 0.8, "seed": 5},
    TEXT: {"prompt": "The weather in Paris:", "max_tokens": 120, "temperature": 0.8, "seed": 5},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome", "Zürich"]},
        "degrees": {"type": "integer", "minimum": -9, "maximum": 40},
        "words": {"type": "array", "items": {"enum": ["warm", "cold"]}, "maxItems": 2},
    },
    "required": ["city", "degrees", "words"],
    "additionalProperties": False,
}
GBNF = 'root ::= ("yes" | "no") "!"'
LARK = 'start: ("yes" | "no") "!"'
NESTED = "(" * 400 + "a" + ")" * 400
TAGS = {
    "structures": [{"begin": "<w>", "schema": SCHEMA, "end": "</w>"}],
    "triggers": ["<w>"],
}


class Weather(BaseModel):
    """As the SDK's helpers take it."""

    city: Literal["Paris", "Rome"]
    is_warm: bool


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def said(path: str, choice: Any) -> str:
    text: str = choice["message"]["content"] if path == CHAT else choice["text"]
    return text


def whole(http: httpx.Client, path: str, **fields: Any) -> tuple[str, str]:
    """Text and finish reason of the answer."""
    answer = http.post(path, json={**BASES[path], **fields})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return said(path, choice), choice["finish_reason"]


def streamed(http: httpx.Client, path: str, **fields: Any) -> tuple[str, str]:
    answer = http.post(path, json={**BASES[path], **fields, "stream": True})
    assert answer.status_code == 200, answer.text
    data = [block[6:] for block in answer.text.split("\n\n") if block.startswith("data: ")]
    assert data[-1] == "[DONE]"
    choices = [json.loads(text)["choices"][0] for text in data[:-1]]
    pieces = [choice["delta"].get("content", "") if path == CHAT else choice["text"] for choice in choices]
    return "".join(pieces), choices[-1]["finish_reason"]


def formed(http: httpx.Client, path: str, **fields: Any) -> str:
    """The whole text of an answer that came to its own end, the same streamed."""
    text, finish_reason = whole(http, path, **fields)
    assert finish_reason == "stop", text
    assert streamed(http, path, **fields) == (text, finish_reason)
    return text


def refused(http: httpx.Client, path: str = TEXT, **fields: Any) -> Any:
    answer = http.post(path, json={**BASES[path], **fields})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def check(text: str, schema: Any = SCHEMA) -> Any:
    value = json.loads(text)
    jsonschema_rs.validate(schema, value)
    return value


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
        {"json_schema": json.dumps(SCHEMA)},
    ],
)
def test_a_schema_is_kept_to(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    check(formed(http, path, **fields))


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_any_seed_keeps_to_the_schema(http: httpx.Client, path: str) -> None:
    asked = {"guided_json": SCHEMA, "guided_whitespace_pattern": "", "temperature": 1.5, "n": 8}
    answer = http.post(path, json={**BASES[path], **asked}).json()
    texts = [said(path, choice) for choice in answer["choices"]]
    assert len(set(texts)) > 1
    for text in texts:
        check(text)


def test_the_sdk_parses_what_it_asked_for(client: openai.OpenAI) -> None:
    messages: Any = WEATHER
    answer = client.chat.completions.parse(model="builtin", messages=messages, response_format=Weather)
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    assert parsed.city in ("Paris", "Rome")
    with client.chat.completions.stream(
        model="builtin", messages=messages, response_format=Weather
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
def test_json_mode_writes_an_object(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    for seed in range(3):
        text, finish_reason = whole(http, path, **fields, seed=seed)
        assert isinstance(from_json(text, allow_partial=finish_reason == "length"), dict)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": r"[A-Z]{2}-\d{3}"}, r"[A-Z]{2}-\d{3}"),
        ({"structured_outputs": {"regex": r"\d{4}-\d{2}"}}, r"\d{4}-\d{2}"),
        ({"regex": "(ab){2,5}"}, "(ab){2,5}"),
        ({"response_format": {"type": "regex_schema", "regex_schema": "x{3}"}}, "x{3}"),
        ({"guided_choice": ["sunny", "sun", "größer"]}, "sunny|sun|größer"),
        ({"structured_outputs": {"choice": ["a b", "c"]}}, "a b|c"),
        ({"guided_grammar": GBNF}, "(yes|no)!"),
        ({"guided_grammar": LARK}, "(yes|no)!"),
        ({"structured_outputs": {"grammar": GBNF}}, "(yes|no)!"),
        ({"ebnf": GBNF}, "(yes|no)!"),
    ],
)
def test_patterns_choices_and_grammars_are_kept_to(
    http: httpx.Client, path: str, fields: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, formed(http, path, **fields))


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {"structural_tag": {**TAGS}},
        {"structural_tag": json.dumps(TAGS)},
        {"response_format": {"type": "structural_tag", **TAGS}},
        {"structured_outputs": {"structural_tag": json.dumps(TAGS)}},
    ],
)
def test_what_stands_between_tags_has_its_form(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    text, _ = whole(http, path, **fields)
    for inner in re.findall(r"<w>(.*?)</w>", text, flags=re.DOTALL):
        check(inner)


def test_a_format_of_one_tag_is_the_whole_answer(http: httpx.Client) -> None:
    content = {"type": "json_schema", "json_schema": SCHEMA}
    tag = {"type": "tag", "begin": "<w>", "content": content, "end": "</w>"}
    asked = {"type": "structural_tag", "format": tag}
    text = formed(http, CHAT, response_format=asked, guided_whitespace_pattern="")
    assert text.startswith("<w>")
    assert text.endswith("</w>")
    check(text[3:-4])


def test_white_space_is_as_asked_for(http: httpx.Client) -> None:
    for fields in (
        {"guided_json": SCHEMA, "guided_whitespace_pattern": ""},
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": ""}},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    ):
        text = formed(http, TEXT, **fields)
        assert text == json.dumps(check(text), separators=(",", ":"), ensure_ascii=False)


def test_no_other_properties_come_where_they_are_disabled(http: httpx.Client) -> None:
    open_schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    asked = {"json": open_schema, "disable_additional_properties": True, "disable_fallback": True}
    for seed in range(5):
        assert set(json.loads(formed(http, TEXT, structured_outputs=asked, seed=seed))) == {"a"}


def test_names_and_descriptions_of_a_schema_change_no_answer(http: httpx.Client) -> None:
    def asked(**more: Any) -> Any:
        form = {"name": "w", "schema": SCHEMA, **more}
        return {"response_format": {"type": "json_schema", "json_schema": form}}

    plain = formed(http, CHAT, **asked())
    assert formed(http, CHAT, **asked(description="d", strict=True)) == plain
    assert formed(http, CHAT, **asked(strict=False), guided_decoding_backend="auto") == plain


def test_too_few_tokens_end_an_answer_with_length(http: httpx.Client) -> None:
    full = formed(http, TEXT, guided_json=SCHEMA)
    text, finish_reason = whole(http, TEXT, guided_json=SCHEMA, max_tokens=4)
    assert finish_reason == "length"
    assert full.startswith(text)
    assert isinstance(from_json(text, allow_partial=True), dict)


def test_logprobs_come_with_every_token_of_a_form(http: httpx.Client) -> None:
    ask = {**BASES[CHAT], "guided_json": SCHEMA, "logprobs": True, "top_logprobs": 2}
    choice = http.post(CHAT, json=ask).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    pieces = b"".join(bytes(token["bytes"]) for token in tokens)
    assert pieces.startswith(choice["message"]["content"].encode())
    assert all(token["logprob"] <= 0 for token in tokens)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a("}, "guided_regex"),
        ({"guided_regex": NESTED}, "guided_regex"),
        ({"guided_grammar": "nothing that is a grammar"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"guided_json": {"$ref": "#/$defs/none"}}, "guided_json"),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"guided_json": {"enum": ["x" * 100] * 3000}}, "guided_json"),
        ({"guided_json": SCHEMA, "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": 5}}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    http: httpx.Client, server: Server, fields: dict[str, Any], param: str
) -> None:
    for path in (CHAT, TEXT):
        error = refused(http, path, **fields)
        assert error["param"] == param
        assert param in error["message"]
        assert len(error["message"]) < 1000
    server.wait_idle()


def examining_pids(server: Server) -> list[int]:
    return [pid for pid in descendants(server.process.pid) if b"trioserve.examiner" in command_line(pid)]


def test_every_http_process_examines_and_leaves_none_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    log_path = tmp_path_factory.mktemp("workers") / "log"
    with running_server(log_path, command=(*TRIOSERVE, "--workers", "2")) as server:
        wait_until(lambda: len(examining_pids(server)) == 2, 30, lambda: server.log)
        for _ in range(6):
            with httpx.Client(
                base_url=server.url, timeout=60
            ) as http:  # each connection is another process's turn
                assert formed(http, TEXT, guided_choice=["a", "b"]) in ("a", "b")
        pids = examining_pids(server)
    assert not [pid for pid in pids if b"trioserve.examiner" in command_line(pid)]


def test_a_server_may_take_no_forms(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"guided_decoding_backend": "off"}
    with running_server(tmp_path_factory.mktemp("off") / "log", settings=settings) as server:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            error = refused(http, CHAT, response_format={"type": "json_object"})
            assert (error["code"], error["param"]) == ("unsupported_parameter", "response_format")
            assert "guided_decoding_backend" in error["message"]
            assert whole(http, CHAT, response_format={"type": "text"})[0]
        assert not examining_pids(server)


@pytest.mark.skipif(find_spec("xgrammar") is not None, reason="xgrammar is installed")
def test_a_backend_that_is_not_installed_stops_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"guided_decoding_backend": "xgrammar"}
    log_path = tmp_path_factory.mktemp("missing") / "log"
    with running_server(log_path, command=TRIOSERVE, settings=settings, wait_ready=False) as server:
        assert server.wait() == 78
        assert "guided_decoding_backend" in server.log
        assert "Traceback" not in server.log


@contextmanager
def streaming(server: Server) -> Iterator[list[float]]:
    """When each token of a stream came that goes on while the block is open."""
    arrivals: list[float] = []
    is_over = threading.Event()

    def read() -> None:
        ask = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", server.url + TEXT, json=ask, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    arrivals.append(time.monotonic())
                if is_over.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: len(arrivals) > 10, 20, lambda: "nothing comes")
        yield arrivals
    finally:
        is_over.set()
        reader.join()


BOMBS: list[dict[str, Any]] = [
    {"guided_json": {"enum": ["x" * 10 for _ in range(800_000)]}},
    {"guided_regex": "(" * 3000 + "a" + "+)+" * 3000},
    {"guided_regex": "((a{1,999}){1,999}){1,999}"},
    {"guided_json": '{"properties":{"a":' * 400 + "1" + "}}" * 400},
    {"guided_json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(6000)}}},
]


def test_streams_of_others_go_on_while_hostile_forms_are_refused(server: Server, http: httpx.Client) -> None:
    with streaming(server) as arrivals:
        began = time.monotonic()
        for bomb in BOMBS:
            sent = time.monotonic()
            answer = http.post(TEXT, json={**BASES[TEXT], "max_tokens": 1, **bomb})
            assert answer.status_code in (200, 400), answer.text
            assert time.monotonic() - sent < 8, "grammar_timeout_s, and what a busy machine adds"
        assert formed(http, TEXT, guided_choice=["a"]) == "a"
        times = [at for at in arrivals if at > began]
    assert len(times) > 50
    assert max(after - before for before, after in pairwise(times)) < 1
    server.wait_idle()
