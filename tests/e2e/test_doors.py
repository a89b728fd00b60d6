"""Keys, browsers, prefixes and TLS, through the real server from outside."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import openai
import pytest

from tests.certificates import Certificate, make_certificate
from tests.e2e.harness import HYPERCORN, HYPERCORN_TRIO, TRIOSERVE, Server, running_server, wait_until
from trioserve.http.app import ROUTES
from trioserve.http.door import OPEN_ROUTES

KEYS = ("sk-first-4711", "sk-schlüssel-4712", "sk-filed-4713")
PAGE = "https://chat.example"
HI: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of Italy?"}],
    "temperature": 0,
}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# of the batch jobs\n{KEYS[2]}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def guarded(key_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Under hypercorn's default, a master and a worker, with its own --root-path."""
    settings = {
        "api_key": f"{KEYS[0]},{KEYS[1]}",
        "api_key_file": key_file,
        "allowed_origins": PAGE,
        "forwarded_allow_ips": "127.0.0.1",
    }
    log_path = tmp_path_factory.mktemp("guarded") / "log"
    with running_server(log_path, command=(*HYPERCORN, "--root-path", "/llm"), settings=settings) as server:
        yield server


def client_of(server: Server, key: str, prefix: str = "") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}{prefix}/v1", api_key=key, max_retries=0)


def raw(server: Server, *lines: str, body: bytes = b"", then: bytes = b"") -> bytes:
    """Send a request as it stands; returns all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body + then)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@pytest.mark.parametrize("key", [KEYS[0], KEYS[2]], ids=["variable", "file"])
@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_the_sdk_comes_in_with_any_of_the_keys_and_under_any_prefix(
    guarded: Server, key: str, prefix: str
) -> None:
    with client_of(guarded, key, prefix) as client:
        answer = client.chat.completions.create(model="builtin", **HI)
        assert "Rome" in (answer.choices[0].message.content or "")
        chunks = client.chat.completions.create(model="builtin", stream=True, **HI)
        assert "Rome" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_the_sdk_is_told_what_is_wrong_with_its_key(guarded: Server) -> None:
    with client_of(guarded, "sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        assert caught.value.request_id
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="builtin", stream=True, **HI)


def test_a_key_beyond_ascii_comes_in_as_utf_8(guarded: Server) -> None:
    for headers in {b"authorization": f"Bearer {KEYS[1]}".encode()}, {b"x-api-key": KEYS[1].encode()}:
        assert httpx.get(guarded.url + "/v1/models", headers=headers).status_code == 200
    latin = {b"x-api-key": KEYS[1].encode("latin-1")}
    assert httpx.get(guarded.url + "/v1/models", headers=latin).status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models",
        "//v1/models",
        "///v1/models",
        "/v1/models/",
        "/v1/models?x=/live",
        "/v1/models#/live",
        "/v1%2Fmodels",
        "/%76%31/models",
        "/v1/models/%2Flive",
        "/live/..%2fv1/models",
        "/live/../v1/models",
        "/live%00",
        "/live;/v1/models",
        "/live%3f",
        "/llm/v1/models",
        "/llm//v1/models",
        "/llm/live/../v1/models",
        "/llmlive",
        "/health",
        "/version",
        "/nowhere",
        "/",
        "http://127.0.0.1/v1/models",
        "http://live/v1/models",
        "HTTP://127.0.0.1:1//v1/models",
    ],
)
@pytest.mark.parametrize("host", ["x", "live", "/live", "x/live", "x?/live", "x#", "a b", "@", "[", ""])
def test_no_way_of_writing_a_request_gets_past_the_door(guarded: Server, target: str, host: str) -> None:
    answer = raw(
        guarded, f"GET {target} HTTP/1.1", f"Host: {host}", "X-Original-URL: /live", "Connection: close"
    )
    assert statuses(answer) == [401], answer
    assert b"www-authenticate: Bearer" in answer


SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: path + "/",
    lambda path: "/" + path,
    lambda path: "/." + path,
    lambda path: "/%2e%2e" + path,
    lambda path: path.replace("/v1", "/v1/../v1"),
    lambda path: path.replace("o", "%6f"),
    lambda path: "/" + path[1:].replace("/", "%2F"),
    lambda path: path + "?/live",
    lambda path: path + "%00/live",
    lambda path: "/llm" + path,
    lambda path: "http://live" + path,
)
DISGUISES = (
    "Host: x",
    "Host: live",
    "Host: x\r\nX-Forwarded-Host: /live\r\nX-Forwarded-For: 127.0.0.1",
    "Host: x\r\nX-Original-URL: /live\r\nX-Rewrite-URL: /live",
    "Host: x\r\nOrigin: https://chat.example",
    "Host: x\r\nX-HTTP-Method-Override: OPTIONS\r\nAccess-Control-Request-Method: POST",
    "Host: x\r\nAuthorization: Bearer\r\nX-Api-Key:",
    "Host: x\r\nAuthorization: Basic c2stZmlyc3QtNDcxMQ==",
)


def test_every_route_is_closed_however_it_is_asked_for(guarded: Server) -> None:
    """Over one connection, which each refusal leaves open; a websocket's handshake ends it."""
    asked = [
        (method, spell(re.sub(r"<[^>]*>", "x", path)))
        for method, path, _ in ROUTES
        for spell in SPELLINGS
        if path not in OPEN_ROUTES
    ]
    with (
        socket.create_connection(("127.0.0.1", guarded.port), timeout=20) as sock,
        sock.makefile("rb") as answers,
    ):
        for number, (method, target) in enumerate(asked):
            disguise = DISGUISES[number % len(DISGUISES)]
            sock.sendall(
                f"{method} {target} HTTP/1.1\r\n{disguise}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            assert read_answer(answers) == 401, (method, target, disguise)
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + "A" * 22 + "==",
    )
    for path in sorted({target for _, target in asked if target.startswith("/") and "x" not in target}):
        assert statuses(raw(guarded, f"GET {path} HTTP/1.1", "Host: x", *upgrade)) == [403]


def read_answer(answers: BinaryIO) -> int:
    """The status of the next answer, whose body is passed over."""
    status = int(answers.readline().split()[1])
    length = 0
    while line := answers.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    answers.read(length)
    return status


@pytest.mark.parametrize("target", ["/live", "/ready", "/%6cive", "/llm/live", "http://x/ready", "/live?a=b"])
def test_probes_need_no_key(guarded: Server, target: str) -> None:
    assert statuses(raw(guarded, f"GET {target} HTTP/1.1", "Host: x", "Connection: close")) == [200]


@pytest.mark.parametrize("method", ["OPTIONS", "POST", "PUT", "DELETE", "TRACE", "BREW"])
def test_other_methods_need_a_key_even_there(guarded: Server, method: str) -> None:
    for path in "/live", "/v1/models", "/v1/chat/completions":
        assert statuses(raw(guarded, f"{method} {path} HTTP/1.1", "Host: x", "Connection: close")) == [401]


@pytest.mark.parametrize("key", [None, KEYS[0]], ids=["no key", "key"])
def test_a_websocket_gets_nowhere(guarded: Server, key: str | None) -> None:
    headers = [
        "Host: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *([] if key is None else [f"Authorization: Bearer {key}"]),
    ]
    assert statuses(raw(guarded, "GET /v1/models HTTP/1.1", *headers)) == [403]


def test_a_refusal_leaves_the_connection_usable(guarded: Server) -> None:
    good = (
        f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\nConnection: close\r\n\r\n"
    )
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Length: 9000")
    answers = raw(guarded, *head, body=b"x" * 9000, then=good.encode())
    assert statuses(answers) == [401, 200]
    chunked = ("POST /nowhere HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Connection: close")
    assert statuses(raw(guarded, *chunked, body=b"5\r\nhello\r\n0\r\n\r\n")) == [401]


def test_a_refusal_reaches_whoever_sends_a_long_body(guarded: Server) -> None:
    answer = httpx.post(guarded.url + "/v1/chat/completions", content=b"x" * (12 << 20), timeout=60)
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_key_added_to_the_file_works_soon_and_one_taken_out_no_longer(
    guarded: Server, key_file: Path
) -> None:
    def status(key: str) -> int:
        return httpx.get(guarded.url + "/v1/models", headers={"x-api-key": key}, timeout=30).status_code

    before = key_file.read_text(encoding="utf-8")
    assert (status(KEYS[2]), status("sk-new-4714")) == (200, 401)
    key_file.write_text("sk-new-4714\n", encoding="utf-8")
    wait_until(lambda: status("sk-new-4714") == 200, 10, lambda: "the new key is not known")
    assert (status(KEYS[2]), status(KEYS[0])) == (401, 200)
    key_file.write_text(before, encoding="utf-8")
    wait_until(lambda: status(KEYS[2]) == 200, 10, lambda: "the old key is not back")


def test_browsers_are_told_what_their_page_may_do(guarded: Server) -> None:
    asked = "authorization,content-type,x-stainless-lang,x-stainless-os"
    answer = httpx.options(
        guarded.url + "/v1/chat/completions",
        headers={
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": asked,
        },
    )
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, PAGE)
    assert answer.headers["access-control-allow-headers"] == asked
    assert "POST" in answer.headers["access-control-allow-methods"]
    headers = {"origin": PAGE, "authorization": f"Bearer {KEYS[0]}"}
    stream = httpx.post(guarded.url + "/v1/chat/completions", json={**HI, "stream": True}, headers=headers)
    refused = httpx.get(guarded.url + "/v1/models", headers={"origin": PAGE})
    assert (stream.status_code, refused.status_code) == (200, 401)
    for told in stream, refused:
        assert told.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in told.headers["access-control-expose-headers"]
        assert told.headers["vary"].lower() == "origin"


def test_the_access_log_names_the_client_behind_the_proxy_and_no_key_is_anywhere(guarded: Server) -> None:
    headers = {"x-forwarded-for": "1.2.3.4, 203.0.113.9", "x-api-key": KEYS[0]}
    httpx.get(guarded.url + f"/v1/models/{time.time_ns()}?key={KEYS[0]}", headers=headers)
    wait_until(lambda: "203.0.113.9 GET /v1/models/" in guarded.log, 5, lambda: guarded.log[-2000:])
    assert "1.2.3.4" not in guarded.log
    assert re.search(r"sk-\w+-47", guarded.log) is None
    for pid in guarded.rank_pids():
        for name in "environ", "cmdline":
            assert b"-47" not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert b"TRIOSERVE_NUM_THREADS=1" in Path(f"/proc/{pid}/environ").read_bytes()


def test_nobody_is_let_in_by_an_empty_key(tmp_path: Path) -> None:
    for settings in {"api_key": ""}, {"api_key_file": "/no/such/file"}:
        with running_server(
            tmp_path / "log", command=TRIOSERVE, settings=settings, wait_ready=False
        ) as server:
            assert server.wait(60) == 78
    assert "api_key = *** (TRIOSERVE_API_KEY): it is given and holds nothing" in server.log
    assert "api_key_file = '/no/such/file' cannot be read: No such file or directory." in server.log
    assert "Traceback" not in server.log


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hypercorn": (HYPERCORN, ("--certfile", "--keyfile")),
    "hypercorn -k trio": (HYPERCORN_TRIO, ()),
    "trioserve serve": (TRIOSERVE, ("--ssl-certfile", "--ssl-keyfile")),
}
"""Each with its flags; without any the variables tell the files."""


@pytest.mark.parametrize(("command", "flags"), WAYS.values(), ids=WAYS)
def test_every_way_in_serves_tls_and_drains(
    tmp_path: Path, certificate: Certificate, command: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    files = (str(certificate.cert), str(certificate.key))
    settings = {"api_key": KEYS[0]}
    for flag, file in zip(flags, files, strict=False):
        command += (flag, file)
    if not flags:
        settings |= {"ssl_certfile": files[0], "ssl_keyfile": files[1]}
    headers = {"x-api-key": KEYS[0]}
    with running_server(
        tmp_path / "log", command=command, settings=settings, certificate=certificate
    ) as server:
        for http2 in False, True:
            with server.client(http2=http2, headers=headers) as client:
                answer = client.post("/v1/chat/completions", json=HI)
                assert "Rome" in answer.json()["choices"][0]["message"]["content"]
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/live")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(server.url + "/live")
        streams: list[list[str]] = [[], []]
        threads = [
            threading.Thread(target=read_stream, args=(server, headers, http2, streams[http2]))
            for http2 in (False, True)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(len(lines) > 2 for lines in streams), 20, lambda: "the streams do not start")
        server.terminate()
        for thread in threads:
            thread.join(60)
        assert [lines[-1] for lines in streams] == ["data: [DONE]"] * 2
        assert server.wait() == 0
    assert "Traceback" not in server.log


def read_stream(server: Server, headers: dict[str, str], http2: bool, lines: list[str]) -> None:
    body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with (
        server.client(http2=http2, headers=headers) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        for line in filter(None, answer.iter_lines()):
            assert "error" not in json.dumps(line)
            lines.append(line)
