"""Every error is OpenAI-shaped JSON with the right status, headers and nothing internal."""

import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.http.house import Answer, open_house
from trioserve.engine.lifecycle import Lifecycle
from trioserve.engine.mailbox import Mailbox
from trioserve.errors import WorkerDied
from trioserve.http.app import ROUTES, create_app
from trioserve.http.services import Services
from trioserve.settings import Settings

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("GET", "/nowhere", None, {}, 404, "not_found"),
        ("GET", "/nothing", None, {}, 404, "not_found"),
        ("GET", "/v1/models/other", None, {}, 404, "model_not_found"),
        ("GET", "/v1/completions", None, {}, 405, "method_not_allowed"),
        ("POST", "/v1/models", b"{}", {}, 405, "method_not_allowed"),
        ("BREW", CHAT, b"{}", {}, 405, "method_not_allowed"),
        ("POST", CHAT, b"", {}, 400, "invalid_json"),
        ("POST", CHAT, b"{bad", {}, 400, "invalid_json"),
        ("POST", CHAT, b'{"messages": "\xff"}', {}, 400, "invalid_json"),
        ("POST", CHAT, b'{"a":' * 30_000, {}, 400, "invalid_json"),
        ("POST", CHAT, b'{"a":' * 50_000, {}, 400, "invalid_value"),
        ("POST", CHAT, b"[]", {}, 400, "invalid_value"),
        ("POST", CHAT, b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (
            "POST",
            CHAT,
            b"a=1",
            {"content-type": "application/x-www-form-urlencoded"},
            415,
            "unsupported_media_type",
        ),
        (
            "POST",
            CHAT,
            b"{}",
            {"content-type": "application/json; charset=latin-1"},
            415,
            "unsupported_media_type",
        ),
        ("POST", CHAT, b"{" + b" " * 5000, {}, 413, "body_too_large"),
        ("POST", CHAT, b"{}", {"content-length": "5000"}, 413, "body_too_large"),
    ],
)
async def test_what_is_wrong_is_told_in_openais_form(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    async with open_house(max_body_bytes=4096 if status == 413 else 16 << 20) as house:
        answer = await house.ask(method, path, body, headers=headers)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=UTF-8", "application/problem+json", ""]
)
async def test_json_by_any_of_its_names_is_read(content_type: str) -> None:
    async with open_house() as house:
        answer = await house.post(CHAT, HI, **{"content-type": content_type})
    assert answer.status == 200


async def test_a_route_says_what_it_takes() -> None:
    async with open_house() as house:
        assert (await house.ask("GET", "/v1/completions")).headers["allow"] == "POST"
        assert (await house.ask("DELETE", "/v1/models")).headers["allow"] == "GET, HEAD"


async def test_the_limit_on_bodies_counts_pieces_too() -> None:
    async with open_house(max_body_bytes=100) as house:
        answer = await house.ask("POST", CHAT, [b"x" * 60, b"x" * 60])
    assert answer.status == 413
    assert "more than 100 bytes" in answer.error["message"]


async def test_a_body_that_does_not_come_is_not_waited_for_longer_than_allowed(
    autojump_clock: MockClock,
) -> None:
    async with open_house(body_timeout_s=5) as house:
        began = trio.current_time()
        answer = await house.ask("POST", CHAT, [b'{"messages'])
        assert trio.current_time() - began == pytest.approx(5)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        408,
        "timeout_error",
        "request_timeout",
    )
    assert "within 5 s" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_before_the_model_is_loaded_requests_are_told_to_come_back() -> None:
    services = Services(Settings(), Lifecycle())
    async with open_house() as house:
        house.app = create_app(services)
        for method, path, body in (
            ("POST", CHAT, HI),
            ("POST", "/v1/completions", {"prompt": "a"}),
            ("GET", "/v1/models", None),
        ):
            answer = await house.ask(method, path, body)
            assert (answer.status, answer.error["code"]) == (503, "not_ready")
            assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("2", "true")
        assert (await house.post(CHAT, b"{bad")).status == 400
        services.lifecycle.fail("broken", exit_code=70)
        answer = await house.post(CHAT, HI)
        assert (answer.status, answer.error["message"]) == (503, "the engine has failed")


async def test_a_full_queue_is_429_with_retry_after(autojump_clock: MockClock) -> None:
    answers: list[Answer] = []
    async with open_house(max_num_seqs=1, max_num_queued_reqs=2) as house:

        async def ask() -> None:
            answers.append(await house.post(CHAT, HI))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask)
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert {answer.status for answer in answers} == {200, 429}
    for answer in refused:
        assert (answer.error["type"], answer.error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"


async def test_a_server_that_ends_serves_the_lame_duck_time_and_then_no_more() -> None:
    async with open_house() as house:
        assert "connection" not in (await house.post(CHAT, HI)).headers
        house.services.lifecycle.begin_drain()
        answer = await house.post(CHAT, HI)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        house.services.lifecycle.begin_closing()
        answer = await house.post(CHAT, HI)
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")


async def test_an_engine_that_loses_its_ranks_says_so_and_never_says_done(autojump_clock: MockClock) -> None:
    answers: dict[bool, Answer] = {}
    async with open_house(step_s=1.0) as house:

        async def ask(stream: bool) -> None:
            answers[stream] = await house.post(CHAT, {**HI, "stream": stream})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, True)
            nursery.start_soon(ask, False)
            await trio.sleep(3.5)
            house.executor.failure = WorkerDied("killed /secret/path")
            await trio.sleep(1)
            house.executor.failure = None
    whole, streamed = answers[False], answers[True]
    assert (whole.status, whole.error["code"], whole.headers["retry-after"]) == (503, "engine_error", "1")
    assert streamed.status == 200
    *chunks, last = streamed.events
    assert len(chunks) > 1
    assert set(last) == {"error"}
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["code"] == "engine_error"
    assert b"[DONE]" not in streamed.body
    assert b"secret" not in streamed.body + whole.body


async def test_a_request_has_a_deadline(autojump_clock: MockClock) -> None:
    async with open_house(step_s=1.0, request_timeout_s=3.5, sse_keep_alive_s=0) as house:
        whole = await house.post(CHAT, HI)
        streamed = await house.post(CHAT, {**HI, "stream": True})
        assert house.engine.statistics().num_streams == 0
    assert (whole.status, whole.error["code"]) == (408, "request_timeout")
    assert whole.headers["x-should-retry"] == "false"
    assert "request_timeout_s = 3.5" in whole.error["message"]
    assert streamed.events[-1]["error"]["code"] == "request_timeout"
    assert b"[DONE]" not in streamed.body


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_a_500_that_tells_the_client_nothing_and_the_log_everything(
    stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(mailbox: Mailbox, take: object = None) -> Any:
        raise KeyError("/secret/" + "prompt " * 1000)

    async with open_house() as house:
        monkeypatch.setattr(Mailbox, "receive", broken)
        with caplog.at_level(logging.ERROR):
            answer = await house.post(CHAT, {**HI, "stream": stream}, **{"x-request-id": "mine"})
    error = answer.events[-1]["error"] if stream else answer.error
    assert answer.status == (200 if stream else 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert b"secret" not in answer.body
    assert b"[DONE]" not in answer.body
    assert "request mine failed" in caplog.text
    assert Path(__file__).name in caplog.text
    assert len(caplog.text) < 10_000


@pytest.mark.parametrize(
    ("given", "is_echoed"),
    [
        ("abc-123", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("a b", False),
        ("a\x7f", False),
        ("ü", False),
        ("", False),
    ],
)
async def test_a_request_id_is_echoed_if_it_is_fit_and_made_if_not(given: str, is_echoed: bool) -> None:
    async with open_house() as house:
        for path in ("/live", "/nowhere"):
            answer = await house.ask("GET", path, headers={"x-request-id": given})
            found = answer.headers["x-request-id"]
            assert found == given if is_echoed else found.startswith("req_")


def test_no_route_is_there_twice() -> None:
    assert len({(method, path) for method, path, _ in ROUTES}) == len(ROUTES)
