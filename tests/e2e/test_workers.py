"""Several HTTP processes, one engine: whoever answers, it is the same server; whoever dies, the others go on."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.certificates import make_certificate
from tests.e2e.harness import (
    TRIOSERVE,
    Server,
    descendants,
    free_port,
    parent_of,
    running_server,
    wait_until,
)

ENDLESS = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
SETTINGS = {
    "workers": 2,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 64,
    "max_num_queued_reqs": 2,
    "drain_delay_s": 1,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("workers") / "log", command=TRIOSERVE, settings=SETTINGS
    ) as server:
        wait_both_ready(server)
        yield server


@contextmanager
def client_of(server: Server, worker: int) -> Iterator[httpx.Client]:
    """A client whose kept connection is to that worker."""
    with ExitStack() as refused:
        for _ in range(500):
            client = refused.enter_context(httpx.Client(base_url=server.url, timeout=60))
            if client.get("/health").json()["worker"] == worker:
                yield client
                return
    raise AssertionError(f"worker {worker} never answered:\n{server.log}")


def wait_both_ready(server: Server) -> None:
    for worker in (0, 1):
        with client_of(server, worker) as client:
            ready = client.get
            wait_until(lambda: ready("/ready").status_code == 200, 60, lambda: f"not ready:\n{server.log}")  # noqa: B023


def pid_of(server: Server, worker: int) -> int:
    """The owner is the parent of the rank, the other one has no children."""
    owner = server.serving_pid()
    workers = [pid for pid in descendants(server.process.pid) if parent_of(pid) == server.process.pid]
    return owner if worker == 0 else next(pid for pid in workers if pid != owner)


@contextmanager
def stream_of(client: httpx.Client, **fields: object) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun; leaving the block closes the connection."""
    with client.stream("POST", "/v1/completions", json={**ENDLESS, **fields}) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith("data: ")
        yield lines


def reading(client: httpx.Client, **fields: object) -> tuple[threading.Thread, list[str]]:
    """A stream that has begun, read to its end by a thread."""
    lines: list[str] = []

    def read() -> None:
        with stream_of(client, **fields) as answer:
            for line in answer:
                lines.append(line)  # noqa: PERF402  # others watch it grow

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: len(lines) > 2, 20, lambda: f"the stream does not begin: {lines}")
    return thread, lines


def test_every_worker_gives_the_same_answer_and_tells_of_the_same_engine(server: Server) -> None:
    answers, models, healths = [], [], []
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    for worker in (0, 1):
        with client_of(server, worker) as client:
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            answers.append({**answer.json(), "id": "", "created": 0})
            models.append(client.get("/v1/models").json())
            counted = client.get("/health").json()
            healths.append((counted["num_blocks"], counted["num_restarts"], counted["state"]))
    assert answers[0]["choices"] == answers[1]["choices"] and answers[0]["choices"][0]["message"]["content"]
    assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]
    assert answers[0]["system_fingerprint"] == answers[1]["system_fingerprint"]
    assert models[0] == models[1] and healths[0] == healths[1]


def test_choices_logprobs_and_errors_cross(server: Server) -> None:
    body = {"prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "logprobs": 2, "temperature": 0}
    with client_of(server, 0) as owner, client_of(server, 1) as attached:
        answers = [client.post("/v1/completions", json=body).json() for client in (owner, attached)]
        assert answers[0]["choices"] == answers[1]["choices"] and len(answers[0]["choices"]) == 4
        assert answers[1]["choices"][0]["logprobs"]["token_logprobs"][0] < 0
        long = attached.post("/v1/completions", json={"prompt": [5] * 9000})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_admission_is_one_count(server: Server) -> None:
    """Two run, two wait, whichever worker they came by; of twelve at once exactly two more are let in."""
    with ExitStack() as stack:
        clients = [stack.enter_context(client_of(server, number % 2)) for number in range(14)]
        for client in clients[:2]:
            stack.enter_context(stream_of(client))
        wait_until(lambda: server.health()["num_running"] == 2, 10, lambda: str(server.health()))

        def ask(client: httpx.Client) -> httpx.Response:
            return client.send(client.build_request("POST", "/v1/completions", json=ENDLESS), stream=True)

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(ask, clients[2:]))
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [200] * 2 + [429] * 10
        for worker in (0, 1):
            wait_until(lambda: server.health()["num_waiting"] == 2, 5, lambda: str(server.health()))
            assert 429 in statuses[worker::2]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        refused.read()
        assert "2 sequences are waiting, the limit is 2" in refused.json()["error"]["message"]
        for answer in answers:
            answer.close()
    server.wait_idle()


CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
CHAT = "/v1/chat/completions"
SESSION = "/v1/chat/interactive"
ENDLESS_TURN = {
    "prompt": "Hi",
    "session_id": 8,
    "interactive_mode": True,
    "ignore_eos": True,
    "stream": True,
    "request_output_len": 4000,
}


def test_a_session_goes_on_at_whichever_worker(server: Server) -> None:
    def turn(client: httpx.Client, prompt: str, **fields: object) -> httpx.Response:
        asked = {"prompt": prompt, "session_id": 7, "interactive_mode": True, "temperature": 0}
        return client.post(SESSION, json={**asked, "request_output_len": 8, **fields})

    with client_of(server, 0) as owner, client_of(server, 1) as attached:
        first = turn(attached, "What is the capital of France?")
        assert first.headers["x-session-id"] == "7" and first.json()["history_tokens"] == 0
        said = first.json()["input_tokens"] + first.json()["tokens"]
        assert turn(owner, "And of Italy?").json()["history_tokens"] == said
        streamed = turn(attached, "And of Spain?", stream=True)
        lines = [json.loads(line) for line in streamed.text.splitlines()]
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert len(lines) > 2 and lines[-1]["finish_reason"] in ("stop", "length")
        assert lines[-1]["history_tokens"] > said
        for client in (owner, attached):
            wrong = turn(client, "x", temperature=-1)
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
        ended = attached.post(SESSION, json={"session_id": 7, "prompt": "", "request_output_len": 0})
        assert ended.json()["finish_reason"] == "stop"
        assert turn(owner, "Hi").json()["history_tokens"] == 0
    server.wait_idle()


@pytest.mark.parametrize("runs_at", [0, 1])
def test_a_session_is_busy_and_cancelled_at_whichever_worker(server: Server, runs_at: int) -> None:
    with (
        client_of(server, runs_at) as runs,
        client_of(server, 1 - runs_at) as other,
        runs.stream("POST", SESSION, json=ENDLESS_TURN) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines))["text"]
        busy = other.post(SESSION, json={"prompt": "Hi", "session_id": 8, "interactive_mode": True})
        assert (busy.status_code, busy.json()["error"]["code"]) == (400, "session_busy")
        assert other.post(SESSION, json={"session_id": 8, "cancel": True, "prompt": ""}).status_code == 200
        assert json.loads(list(lines)[-1])["finish_reason"] == "stop"
    server.wait_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_stored_answer_is_found_at_once_at_whichever_worker(server: Server, stream: bool) -> None:
    body = {"messages": CAPITAL, "temperature": 0, "max_tokens": 8, "store": True, "stream": stream}
    with client_of(server, 0) as owner, client_of(server, 1) as attached:
        for number in range(10):
            asks, finds = (owner, attached) if number % 2 else (attached, owner)
            answer = asks.post(CHAT, json={**body, "metadata": {"n": str(number)}})
            line = answer.text.split("\n")[0].removeprefix("data: ") if stream else answer.text
            id_ = json.loads(line)["id"]
            found = finds.get(f"{CHAT}/{id_}")
            assert (found.status_code, found.json()["metadata"]) == (200, {"n": str(number)})
            page = asks.get(CHAT, params={"metadata[n]": str(number), "limit": 100}).json()
            assert id_ in [item["id"] for item in page["data"]]
            assert finds.post(f"{CHAT}/{id_}", json={"metadata": {"n": "x"}}).json()["metadata"] == {"n": "x"}
            assert asks.get(f"{CHAT}/{id_}/messages").json()["data"][0]["content"] == CAPITAL[0]["content"]
            assert finds.delete(f"{CHAT}/{id_}").json()["deleted"] is True
            assert [client.get(f"{CHAT}/{id_}").status_code for client in (owner, attached)] == [404, 404]


def samples(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_every_worker_shows_the_counts_of_all(server: Server) -> None:
    with client_of(server, 0) as owner, client_of(server, 1) as attached:
        before = samples(owner.get("/metrics").text)
        for client in (owner, attached, attached):
            assert client.post("/tokenize", json={"prompt": "Hi"}).status_code == 200
        assert attached.post("/tokenize", json={}).status_code == 400
        six = {"prompt": "Hi", "max_tokens": 3, "n": 2, "ignore_eos": True}
        assert attached.post("/v1/completions", json=six).status_code == 200
        scrapes = [samples(client.get("/metrics").text) for client in (owner, attached)]
        name = 'trioserve:http_requests_total{method="POST",route="/tokenize",status="%d"}'
        for scrape in scrapes:
            assert scrape[name % 200] - before.get(name % 200, 0) == 3
            assert scrape[name % 400] - before.get(name % 400, 0) == 1
            generated = 'vllm:generation_tokens_total{model_name="builtin"}'
            assert scrape[generated] - before[generated] == 6
        running = "trioserve:http_requests_running"
        for client in (
            owner,
            attached,
        ):  # the scrape itself; what the other one just answered may still be leaving
            wait_until(lambda: samples(client.get("/metrics").text)[running] == 1, 5, lambda: "others run")  # noqa: B023
        changing = ("process_", "trioserve:http_request", "python_")
        one, two = (
            {key: value for key, value in scrape.items() if not key.startswith(changing)}
            for scrape in scrapes
        )
        assert one == two
        infos = [client.get("/server_info").json() for client in (owner, attached)]
        for info in infos:
            assert info.pop("statistics")["num_steps"] > 0
        assert infos[0] == infos[1] and infos[0]["works"] and infos[0]["settings"]["workers"] == 2
        loads = [client.get("/load").json() for client in (owner, attached)]
        assert loads[0] == loads[1] and loads[0]["num_running"] == 0
        assert attached.get("/metrics", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_an_attached_worker_frees_the_blocks(server: Server, stream: bool) -> None:
    with client_of(server, 1) as client:
        gone = httpx.Timeout(10.0, read=None if stream else 0.5)
        if stream:
            with stream_of(client):
                wait_until(lambda: server.health()["num_running"] == 1, 5, lambda: "it does not run")
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json={**ENDLESS, "stream": False}, timeout=gone)
    server.wait_idle()


def test_a_killed_attached_worker_takes_only_its_own_streams_with_it(server: Server) -> None:
    with client_of(server, 0) as owner, client_of(server, 1) as attached, stream_of(attached) as lost:
        thread, lines = reading(owner, max_tokens=600)
        os.kill(pid_of(server, 1), signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            list(lost)
        thread.join(60)
        assert lines[-1] == "data: [DONE]"
    wait_both_ready(server)
    server.wait_idle()
    assert "worker 1 was killed by SIGKILL and is started anew" in server.log


def test_a_killed_attached_worker_leaves_its_session_to_the_others(server: Server) -> None:
    with client_of(server, 0) as owner, client_of(server, 1) as attached:
        with attached.stream("POST", SESSION, json={**ENDLESS_TURN, "session_id": 9}) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["text"]
            os.kill(pid_of(server, 1), signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(lines)
        server_idle_at(owner)
        asked = {"prompt": "Hi", "session_id": 9, "interactive_mode": True, "request_output_len": 4}
        assert owner.post(SESSION, json=asked).json()["history_tokens"] == 0
    wait_both_ready(server)


def server_idle_at(client: httpx.Client) -> None:
    def is_idle() -> bool:
        health = client.get("/health").json()
        return bool(health["num_free_blocks"] == health["num_blocks"] and not health["num_running"])

    wait_until(is_idle, 5, lambda: f"not idle: {client.get('/health').text}")


def test_a_killed_rank_fails_what_ran_at_every_worker_and_restarts(server: Server) -> None:
    with client_of(server, 0) as owner, client_of(server, 1) as attached:
        streams = [reading(client) for client in (owner, attached)]
        os.kill(server.rank_pids()[0], signal.SIGKILL)
        for thread, lines in streams:
            thread.join(10)
            assert '"error"' in lines[-1] and "engine_error" in lines[-1]
        wait_both_ready(server)
        for client in (owner, attached):
            assert client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2}).status_code == 200
            wait_until(partial(has_restarted, client), 5.0, lambda: client.get("/health").text)  # noqa: B023 # at once
    server.wait_idle()


def has_restarted(client: httpx.Client) -> bool:
    """Whether this worker has heard of a restart; those that attach are told the owner's counts now and then."""
    return bool(client.get("/health").json()["num_restarts"] >= 1)


def test_a_killed_owner_fails_what_ran_and_is_replaced(server: Server) -> None:
    with client_of(server, 1) as attached, client_of(server, 1) as other:
        (rank,) = server.rank_pids()
        thread, lines = reading(attached)
        with client_of(server, 1) as talks, talks.stream("POST", SESSION, json=ENDLESS_TURN) as answer:
            said = answer.iter_lines()
            assert json.loads(next(said))["text"]
            os.kill(pid_of(server, 0), signal.SIGKILL)
            last = json.loads(list(said)[-1])
        assert (last["finish_reason"], last["error"]["code"]) == ("error", "engine_error")
        thread.join(5)
        assert '"error"' in lines[-1] and "engine_error" in lines[-1] and "SIGKILL" not in lines[-1]
        assert other.get("/ready").status_code == 503 and other.get("/live").status_code == 200
        assert other.get("/metrics").status_code in (200, 503)
        refused = other.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2})
        assert refused.status_code == 200 or "retry-after" in refused.headers
        wait_both_ready(server)
        answer = other.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2})
        assert answer.status_code == 200
        assert server.rank_pids() != [rank]
    server.wait_idle()


def test_a_model_that_cannot_be_served_ends_every_worker_with_78(tmp_path: Path) -> None:
    settings = {"workers": 2, "model": "/no/such/folder"}
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings, wait_ready=False) as server:
        assert server.wait(20) == 78
    assert "'/no/such/folder' is neither a folder nor" in server.log


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another group: TLS, a key, a bound on requests and a port for metrics."""
    folder = tmp_path_factory.mktemp("locked")
    certificate = make_certificate(folder)
    settings = {
        "workers": 2,
        "max_concurrency": 3,
        "metrics_port": free_port(),
        "api_key": "sesame",
        "ssl_certfile": certificate.cert,
        "ssl_keyfile": certificate.key,
    }
    with running_server(
        folder / "log", command=TRIOSERVE, settings=settings, certificate=certificate
    ) as server:
        yield server


@contextmanager
def locked_client(server: Server, worker: int) -> Iterator[httpx.Client]:
    with ExitStack() as opened:
        for _ in range(500):
            client = opened.enter_context(server.client(headers={"authorization": "Bearer sesame"}))
            if client.get("/health").json()["worker"] == worker and client.get("/ready").status_code == 200:
                yield client
                return
            time.sleep(0.05)
    raise AssertionError(f"worker {worker} never answered:\n{server.log}")


def test_max_concurrency_is_one_count(locked: Server) -> None:
    """Whichever worker has them: three run, the next one gets a 429, and the place of one that ends is another's."""
    body = {"prompt": "Hi", "max_tokens": 1}
    with locked_client(locked, 0) as owner, locked_client(locked, 1) as attached:
        for number_of_owner in range(4):
            with ExitStack() as running:
                for number in range(3):
                    with_owner = number < number_of_owner
                    client = running.enter_context(locked_client(locked, 0 if with_owner else 1))
                    running.enter_context(stream_of(client))
                for client in (owner, attached):
                    refused = client.post("/v1/completions", json=body)
                    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
                    assert refused.json()["error"]["message"] == "3 requests are served, the limit is 3"
            for client in (owner, attached):
                wait_until(
                    lambda: client.post("/v1/completions", json=body).status_code == 200,  # noqa: B023
                    5,
                    lambda: "the places do not come back",
                )


def test_what_is_handed_over_is_one_request_of_its_client(locked: Server) -> None:
    """It takes one place, not one at each of the two processes, and what is kept is found with its key."""
    body = {"messages": CAPITAL, "max_tokens": 2, "store": True}
    with (
        locked_client(locked, 0) as owner,
        locked_client(locked, 1) as attached,
        stream_of(owner),
        locked_client(locked, 1) as other,
        stream_of(other),
    ):
        turn = {"prompt": "Hi", "session_id": 1, "interactive_mode": True, "request_output_len": 4}
        for client in (attached, owner):
            assert client.post(SESSION, json=turn).status_code == 200
            wait_until(lambda: client.post(CHAT, json=body).status_code == 200, 5, lambda: "no place")  # noqa: B023
        pages = [client.get(CHAT).json() for client in (owner, attached)]
        assert pages[0] == pages[1] and len(pages[0]["data"]) == 2


def test_what_is_handed_over_needs_the_key_too(locked: Server) -> None:
    with locked_client(locked, 1) as attached:
        for path in ("/metrics", "/server_info", CHAT):
            assert attached.get(path).status_code == 200
            assert attached.get(path, headers={"authorization": "Bearer x"}).status_code == 401
        assert attached.get("/server_info").json()["settings"]["api_key"] == "***"


def test_the_port_for_metrics_is_the_owners_and_shows_all(locked: Server) -> None:
    with locked_client(locked, 1) as attached:
        port = attached.get("/server_info").json()["settings"]["metrics_port"]
        assert locked.log.count("metrics on ") == 1
        with httpx.Client(headers={"authorization": "Bearer sesame"}) as plain:
            name = 'trioserve:http_requests_total{method="GET",route="/version",status="200"}'
            before = samples(plain.get(f"http://127.0.0.1:{port}/metrics").text).get(name, 0)
            attached.get("/version")
            after = samples(plain.get(f"http://127.0.0.1:{port}/metrics").text)[name]
            assert after - before == 1


def test_what_cannot_be_used_is_told_once(tmp_path: Path) -> None:
    for wrong, sentence in (
        ({"ssl_certfile": "no.pem"}, "trioserve: The TLS certificate or key cannot be used"),
        ({"api_key_file": "no.keys"}, "trioserve: api_key_file = 'no.keys' cannot be read"),
        ({"seed": 1}, "workers = 2 and seed = 1: each process would draw by itself"),
    ):
        settings = {"workers": 2, **wrong}
        log = tmp_path / next(iter(wrong))
        with running_server(log, command=TRIOSERVE, settings=settings, wait_ready=False) as server:
            assert server.wait(20) == 78
        assert server.log.count(sentence) == 1, server.log


def test_what_runs_at_the_deadline_ends_with_an_error_at_every_worker(tmp_path: Path) -> None:
    settings = {"workers": 2, "drain_timeout_s": 0.2}
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings) as server:
        wait_both_ready(server)
        with client_of(server, 0) as owner, client_of(server, 1) as attached, client_of(server, 1) as talks:
            streams = [reading(client) for client in (owner, attached)]
            with talks.stream("POST", SESSION, json=ENDLESS_TURN) as answer:
                said = answer.iter_lines()
                assert json.loads(next(said))["text"]
                server.terminate()
                last = json.loads(list(said)[-1])
            assert last["finish_reason"] == "error" and "shutting down" in last["error"]["message"]
            for thread, lines in streams:
                thread.join(10)
                assert "the server is shutting down" in lines[-1]
        assert server.wait(20) == 75


def test_a_signal_drains_every_worker_and_their_streams_finish(server: Server) -> None:
    """The last one: it ends the server."""
    family = descendants(server.process.pid)
    with client_of(server, 0) as owner, client_of(server, 1) as attached, client_of(server, 1) as probe:
        streams = [reading(owner, max_tokens=900)]
        with client_of(server, 1) as talks:
            turn = {**ENDLESS_TURN, "request_output_len": 500}
            with talks.stream("POST", SESSION, json=turn) as answer:
                said = answer.iter_lines()
                assert json.loads(next(said))["text"]
                streams.append(reading(attached, max_tokens=900))
                os.killpg(server.process.pid, signal.SIGTERM)
                wait_until(lambda: probe.get("/ready").status_code == 503, 1, lambda: "still ready")
                assert json.loads(list(said)[-1])["finish_reason"] == "length"
        for thread, lines in streams:
            thread.join(60)
            assert lines[-1] == "data: [DONE]"
    assert server.wait(20) == 0
    assert "Traceback" not in server.log
    assert "all workers have ended, exit code 0" in server.log
    assert not any(Path(f"/proc/{pid}").exists() for pid in family)
