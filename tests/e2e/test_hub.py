"""A model by its repository's name: fetched from a hub, which here runs in this process, and served from the cache."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import TRIOSERVE, running_server
from trioserve.builtin import MODEL_DIR

REPOSITORY = "tiny/chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FRANCE = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


class HubHandler(BaseHTTPRequestHandler):
    """The four answers of a Hugging Face hub that a download needs, for the built-in model's files."""

    protocol_version = "HTTP/1.1"
    fetched: list[str]

    def do_GET(self) -> None:
        status, headers, body = self._answer()
        if "/resolve/" in self.path and status == 200:
            self.fetched.append(self.path)
        self._send(status, headers, body)
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._send(*self._answer())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base names it so
        """Requests are not worth a line."""

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        path = self.path.partition("?")[0]
        files = sorted(MODEL_DIR.iterdir())
        if path == f"/api/models/{REPOSITORY}/revision/main":
            found = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            return 200, {"content-type": "application/json"}, json.dumps(found).encode()
        if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f"{i:040x}"}
                for i, f in enumerate(files)
            ]
            return 200, {"content-type": "application/json"}, json.dumps(tree).encode()
        if path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            file = MODEL_DIR / path.rsplit("/", 1)[1]
            return 200, {"etag": f'"{file.name}"', "x-repo-commit": COMMIT}, file.read_bytes()
        return 404, {"x-error-code": "RepoNotFound"}, b""

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub's address, and the paths of the files that were fetched from it."""
    fetched: list[str] = []
    handler = type("Handler", (HubHandler,), {"fetched": fetched})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", fetched
        finally:
            server.shutdown()
            thread.join()


def test_a_repository_is_fetched_once_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    settings = {"model": REPOSITORY, "download_dir": tmp_path / "cache"}
    with hub() as (url, fetched):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings) as server:
            answer = httpx.post(server.url + "/v1/chat/completions", json=FRANCE).json()
            assert answer["model"] == REPOSITORY
            assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
        names = {path.rsplit("/", 1)[1] for path in fetched}
        assert {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"} <= names
        fetched.clear()
    # The hub is gone: what the cache holds is enough.
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings) as server:
        assert httpx.get(server.url + f"/v1/models/{REPOSITORY}").json()["id"] == REPOSITORY
    assert not fetched
