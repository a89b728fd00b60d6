import pytest
import trio
import trio.testing

from benchmarks.load.wire import Client, Hub, ProtocolError, Response

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0a;x=y\r\n0123456789\r\n0\r\nt: u\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 13\r\nConnection: close\r\n\r\nabc0123456789"
UNSIZED = b"HTTP/1.1 200 OK\r\n\r\nabc0123456789"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED
EMPTY = b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"


def read(pieces: list[bytes]) -> tuple[Response, bytes]:
    body = bytearray()
    response = Response(lambda data, _: body.extend(data))
    for piece in pieces:
        response.feed(piece, 0.0)
    return response, bytes(body)


@pytest.mark.parametrize("wire", [CHUNKED, SIZED, UNSIZED, INTERIM, EMPTY])
def test_a_response_reads_the_same_however_it_was_cut(wire: bytes) -> None:
    cuts = [[wire[:at], wire[at:]] for at in range(1, len(wire))]
    for pieces in [[wire], [bytes([byte]) for byte in wire], *cuts]:
        response, body = read(pieces)
        assert body == (b"" if wire is EMPTY else b"abc0123456789")
        assert response.status == int(wire.rpartition(b"HTTP/1.1 ")[2][:3])
        assert response.ended == (wire is not UNSIZED)
        assert response.keep_alive == (wire is not SIZED)
        response.close()
        assert response.ended
        assert not response.keep_alive


@pytest.mark.parametrize("wire", [CHUNKED, SIZED])
def test_a_response_that_is_cut_short_has_not_ended(wire: bytes) -> None:
    for length in range(len(wire)):
        response, _ = read([wire[:length]])
        response.close()
        assert not response.ended


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not a content-length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", "2 bytes after the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "not the size of a chunk"),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000, "longer than"),
    ],
)
def test_what_is_not_http_is_refused(wire: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        read([wire])


async def test_a_connection_is_used_again_until_the_peer_closes_it(hub: Hub) -> None:
    served: list[int] = []

    async def answer_twice(stream: trio.SocketStream) -> None:
        async with stream:
            for _ in range(2):
                await stream.receive_some()
                served.append(stream.socket.getpeername()[1])
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    client = Client(hub, f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer_twice, [listener])
        for _ in range(4):
            assert await client.get("/") == (200, b"ok")
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert served[0] == served[1] != served[2] == served[3]


async def test_a_cancelled_exchange_closes_its_connection(hub: Hub) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    client = Client(hub, f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.get, "/")
        stream = await listener.accept()
        assert (await stream.receive_some()).startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:")
        nursery.cancel_scope.cancel()
    assert await stream.receive_some() == b""
    await stream.aclose()
    await listener.aclose()
