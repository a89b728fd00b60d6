"""What a person at a terminal sees."""

import json
import subprocess

from tests.e2e.harness import Server


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "30", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def chat_body(**fields: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "What is the capital of Italy?"}], **fields})


def test_one_line_of_curl_gets_an_answer(server: Server) -> None:
    answer = json.loads(
        curl(
            server.url + "/v1/chat/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            chat_body(temperature=0),
        )
    )
    assert "Rome" in answer["choices"][0]["message"]["content"]


def test_a_stream_is_events_and_ends_with_done(server: Server) -> None:
    shown = curl(
        "-i",
        "-N",
        server.url + "/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        chat_body(temperature=0, stream=True, stream_options={"include_usage": True}),
    )
    head, _, body = shown.partition("\n\n") if "\r\n\r\n" not in shown else shown.partition("\r\n\r\n")
    assert "text/event-stream" in head and "x-request-id" in head.lower()
    events = body.strip().split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["delta"] == {} and chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "Rome" in "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])


def test_curls_default_content_type_is_told_plainly(server: Server) -> None:
    answer = json.loads(curl(server.url + "/v1/chat/completions", "-d", chat_body()))
    assert "error" not in answer or "application/json" in answer["error"]["message"]


def test_the_probes_answer(server: Server) -> None:
    for path, key in [
        ("/live", "state"),
        ("/ready", "state"),
        ("/health", "status"),
        ("/version", "version"),
    ]:
        assert json.loads(curl(server.url + path))[key]


def test_a_request_id_comes_back(server: Server) -> None:
    assert "x-request-id: mine-1" in curl("-i", server.url + "/version", "-H", "X-Request-Id: mine-1").lower()


def test_an_unknown_path_is_openai_shaped(server: Server) -> None:
    error = json.loads(curl(server.url + "/v1/nothing"))["error"]
    assert set(error) == {"message", "type", "param", "code"}
