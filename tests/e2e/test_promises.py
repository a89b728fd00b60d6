"""Logs and errors tell little: a word that is sent in every place that there is comes out in no line."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import TRIOSERVE, Server, running_server

WORD = "canary4711"
KEY = "sk-kept-4712"
CHAT, COMPLETIONS, SESSION = "/v1/chat/completions", "/v1/completions", "/v1/chat/interactive"
MESSAGES = [{"role": "system", "content": WORD}, {"role": "user", "content": f"{WORD}\n\x1b[31m{WORD}"}]
SCHEMA = {"type": "object", "properties": {WORD: {"enum": [WORD]}}, "required": [WORD]}
TOOL = {"type": "function", "function": {"name": WORD, "description": WORD, "parameters": SCHEMA}}
INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|/(?:usr|home|root|tmp|work|var|proc)/|\b0x[0-9a-f]{6,}|errno",
    re.I,
)
"""What would tell of this machine."""
GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": MESSAGES, "user": WORD, "metadata": {WORD: WORD}, "store": True}),
    "stream": (CHAT, {"messages": MESSAGES, "stream": True, "stop": [WORD], "prompt_cache_key": WORD}),
    "tools": (CHAT, {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}),
    "schema": (CHAT, {"messages": MESSAGES, "guided_json": SCHEMA}),
    "template": (CHAT, {"messages": MESSAGES, "chat_template": f"{WORD}{{{{ messages[0].content }}}}"}),
    "text": (COMPLETIONS, {"prompt": [WORD, WORD], "echo": True, "cache_salt": WORD, "bad_words": [WORD]}),
    "session": (
        SESSION,
        {"prompt": WORD, "session_id": 7, "interactive_mode": True, "request_output_len": 4},
    ),
    "tokens": ("/tokenize", {"prompt": WORD}),
}
WRONG: dict[str, tuple[str, Any]] = {
    "no JSON": (CHAT, f'{{"messages": "{WORD}'.encode()),
    "no text": (CHAT, WORD.encode("utf-16")),
    "a wrong type": (CHAT, {"messages": WORD}),
    "a wrong value": (CHAT, {"messages": MESSAGES, "temperature": WORD}),
    "an unknown role": (CHAT, {"messages": [{"role": WORD, "content": WORD}]}),
    "another model": (COMPLETIONS, {"prompt": WORD, "model": f"{WORD}\r\n{WORD}"}),
    "a wrong schema": (CHAT, {"messages": MESSAGES, "guided_json": {"type": WORD}}),
    "a wrong expression": (CHAT, {"messages": MESSAGES, "guided_regex": f"({WORD}"}),
    "a wrong grammar": (CHAT, {"messages": MESSAGES, "guided_grammar": f"{WORD} ::= ("}),
    "a template that fails": (
        CHAT,
        {"messages": MESSAGES, "chat_template": f"{{{{ raise_exception('{WORD}') }}}}"},
    ),
    "a template that breaks": (
        CHAT,
        {"messages": MESSAGES, "chat_template": f"{{{{ {WORD}.a.b.c }}}}{{% break %}}"},
    ),
    "too long": (COMPLETIONS, {"prompt": WORD * 20_000}),
    "a field of others": (COMPLETIONS, {"prompt": WORD, "best_of": WORD}),
    "no session": (SESSION, {"prompt": WORD, "session_id": WORD}),
    "too deep": (CHAT, b'{"messages":' + b"[" * 100_000 + WORD.encode()),
}


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that says all that it ever says."""
    settings = {
        "log_level": "debug",
        "log_format": "text",
        "api_key": KEY,
        "trust_request_chat_template": True,
        "strict_model": True,
    }
    with running_server(
        tmp_path_factory.mktemp("telling") / "log", command=TRIOSERVE, settings=settings
    ) as server:
        yield server


@pytest.fixture
def client(telling: Server) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=telling.url, headers=headers, timeout=60) as client:
        yield client


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    content = (
        body
        if isinstance(body, bytes)
        else json.dumps({"max_tokens": 4, "model": "builtin", **body}).encode()
    )
    headers = {"content-type": "application/json", "user-agent": WORD, "referer": WORD, "cookie": f"a={WORD}"}
    return client.post(f"{path}?{WORD}={WORD}", content=content, headers=headers)


@pytest.mark.parametrize("name", GOOD)
def test_no_line_has_a_word_of_what_was_asked(telling: Server, client: httpx.Client, name: str) -> None:
    assert post(client, *GOOD[name]).status_code == 200
    assert WORD not in telling.log
    assert KEY not in telling.log


@pytest.mark.parametrize("name", WRONG)
def test_no_line_has_a_word_of_what_was_wrong_and_no_error_tells_of_the_machine(
    telling: Server, client: httpx.Client, name: str
) -> None:
    answer = post(client, *WRONG[name])
    assert 400 <= answer.status_code < 500, answer.text
    assert not INSIDE.search(answer.json()["error"]["message"]), answer.text
    assert len(answer.content) < 5000
    assert WORD not in telling.log


def test_a_wrong_key_is_in_no_line_and_in_no_answer(telling: Server) -> None:
    answer = httpx.get(
        telling.url + "/v1/models", headers={"authorization": f"Bearer {WORD}", "x-api-key": WORD}
    )
    assert answer.status_code == 401
    assert WORD not in answer.text and WORD not in telling.log


def test_a_lost_rank_is_told_to_clients_in_a_few_words(telling: Server, client: httpx.Client) -> None:
    body = {"prompt": WORD, "model": "builtin", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    lines = []
    with client.stream("POST", COMPLETIONS, json=body) as answer:
        for line in filter(None, answer.iter_lines()):
            lines.append(line)
            if len(lines) == 3:
                os.kill(telling.rank_pids()[0], signal.SIGKILL)
    told = json.loads(lines[-1].removeprefix("data: "))["error"]["message"]
    assert not INSIDE.search(told) and not re.search(r"\d|SIG", told), told
    assert WORD not in telling.log


def test_settings_are_shown_without_the_keys(client: httpx.Client, tmp_path: Path) -> None:
    for path in ("/server_info", "/metrics", "/health", "/load", "/openapi.json"):
        assert KEY not in client.get(path).text
