"""The application's own way through Quart."""

from typing import Any

import pytest
from quart import Response, g, has_app_context, has_request_context, request
from trio.testing import MockClock

from tests.http.house import open_house
from trioserve.http.app import ROUTES
from trioserve.http.quart_app import HttpApp


async def test_a_plain_route_is_the_one_that_werkzeug_finds(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        app = house.app
        assert isinstance(app, HttpApp)
        plain = {(method, path) for method, path, _ in ROUTES if "<" not in path}
        heads = {("HEAD", path) for method, path in plain if method == "GET"}
        assert app.plain_routes.keys() == plain | heads
        for (method, path), rule in app.plain_routes.items():
            adapter = app.url_map.bind("x", path_info=path, default_method=method)
            assert adapter.match(return_rule=True) == (rule, {})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/live", 200),
        ("HEAD", "/live", 200),
        ("GET", "/live/", 200),
        ("GET", "//live", 200),
        ("GET", "/Live", 404),
        ("GET", "/live/x", 404),
        ("GET", "/liv%65", 404),
        ("GET", "", 200),
        ("POST", "/live", 405),
        ("OPTIONS", "/live", 405),
        ("GET", "/v1/models/a/b", 404),
    ],
)
async def test_a_path_leads_to_its_route_however_it_is_found(
    method: str, path: str, status: int, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        assert (await house.ask(method, path)).status == status


async def test_request_and_g_are_there_in_the_handler_and_nowhere_else() -> None:
    app, seen = HttpApp("x", static_folder=None), list[tuple[str, str, int]]()

    async def handler() -> Response:
        g.number = len(seen)
        seen.append((request.path, request.headers["X-Name"], g.number))
        return Response(b"ok")

    app.add_url_rule("/a", view_func=handler)
    for _ in range(2):
        assert await _ask(app, "/a") == (200, b"ok")
        assert not has_request_context() and not has_app_context()
    assert seen == [("/a", "caf\xe9", 0), ("/a", "caf\xe9", 1)]


async def _ask(app: HttpApp, path: str) -> tuple[int, bytes]:
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"x"), (b"x-name", b"caf\xe9")],
        "client": None,
        "server": None,
        "extensions": {"trioserve.whole_body": True},
    }
    await app(scope, receive, send)
    return told[0]["status"], b"".join(message.get("body", b"") for message in told)
