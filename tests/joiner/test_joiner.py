"""Who lends ranks, against servers that are none: it tries again, or says what an operator has to change."""

import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from trioserve.core.frames import encode_frame
from trioserve.core.join import CLAIM_BYTES, JoinAnswer, make_answer, make_greeting
from trioserve.errors import SettingsError
from trioserve.joiner import Joiner, main
from trioserve.settings import load_settings

KEY = "a key of both sides"
Server = Callable[[trio.SocketStream], Awaitable[None]]


def joiner(port: int, folder: Path) -> Joiner:
    (folder / "config.json").write_text('{"vocab_size": 8, "max_position_embeddings": 64}', "utf-8")
    return Joiner(f"127.0.0.1:{port}", 1, load_settings(model=str(folder), rank_key=KEY))


async def joined(folder: Path, serve: Server, *, num_visits: int = 0) -> int:
    """The exit code of who joins ``serve``, ended by SIGTERM after so many connections."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    visits = 0

    async def receive(stream: trio.SocketStream) -> None:
        nonlocal visits
        visits += 1
        try:
            await serve(stream)
        finally:
            if visits == num_visits:
                os.kill(os.getpid(), signal.SIGTERM)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, receive, [listener])
            code = await joiner(listener.socket.getsockname()[1], folder).run()
            nursery.cancel_scope.cancel()
    assert visits >= num_visits
    return code


def refused(sentence: str) -> pytest.RaisesGroup[SettingsError]:
    return pytest.RaisesGroup(pytest.RaisesExc(SettingsError, match=sentence))


async def greet(stream: trio.SocketStream, key: bytes = KEY.encode()) -> None:
    """As a front with the key."""
    greeting, claim = make_greeting(), b""
    await stream.send_all(greeting)
    while len(claim) < CLAIM_BYTES:
        claim += await stream.receive_some(CLAIM_BYTES - len(claim))
    await stream.send_all(make_answer(key, greeting, claim))


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3, make_greeting()[:20]],
    ids=["nothing", "HTTP", "half"],
)
async def test_what_is_no_server_is_tried_again(tmp_path: Path, said: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(said)

    assert await joined(tmp_path, serve, num_visits=3) == 0


async def test_a_frame_that_is_none_is_tried_again(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.send_all(b"\xff" * 64)

    assert await joined(tmp_path, serve, num_visits=2) == 0


async def test_a_refusal_for_now_is_tried_again(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.send_all(encode_frame(JoinAnswer("1 wait already, no more are needed")))

    assert await joined(tmp_path, serve, num_visits=2) == 0


async def test_a_front_without_the_key_is_not_believed(tmp_path: Path) -> None:
    with refused("has another key: give both sides the same rank_key or rank_key_file"):
        await joined(tmp_path, lambda stream: greet(stream, b"a key of somebody's"))


async def test_a_refusal_for_good_is_the_operators_error(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.send_all(encode_frame(JoinAnswer("its model is another one", is_final=True)))

    with refused("refuses this rank: its model is another one"):
        await joined(tmp_path, serve)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: ADDRESS: see trioserve join --help."),
        (["leader:7000", "--port", "3"], "unrecognized arguments: --port 3: see trioserve join --help."),
        (["leader:7000", "--ranks", "0"], "argument --ranks: should be a number from 1 to 64: see"),
        (["nowhere"], "ADDRESS = 'nowhere': it should be HOST:PORT, such as 0.0.0.0:7000."),
        (["127.0.0.1:70000"], "ADDRESS = '127.0.0.1:70000': it should be HOST:PORT"),
        (["127.0.0.1:7000"], r"ranks join by a key: give rank_key \(TRIOSERVE_RANK_KEY\) or rank_key_file."),
        (
            ["127.0.0.1:7000", "--rank-key-file", "/nowhere"],
            "rank_key_file = '/nowhere': No such file or directory.",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("TRIOSERVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("trioserve.joiner.set_up_logs", lambda settings: None)  # they are those of all tests
    assert main(words) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("trioserve: " + sentence, line)
