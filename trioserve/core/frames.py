"""Frames on the socket pair between front and works: four bytes of little-endian length, then msgpack."""

import struct
from typing import Final, Generic, TypeVar

import msgspec

from trioserve.errors import WireError

MAX_FRAME_BYTES: Final = 256 << 20
"""A longer frame is a bug or an attack, never a plan."""
_LENGTH: Final = struct.Struct("<I")

HEAD_BYTES: Final = _LENGTH.size

T = TypeVar("T")
_encoder: Final = msgspec.msgpack.Encoder()


def encode_frame(message: msgspec.Struct, *, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The bytes of one frame.

    Raises:
        WireError: The message is longer than ``max_bytes``.
    """
    body = _encoder.encode(message)
    if len(body) > max_bytes:
        raise WireError(f"a frame of {len(body)} bytes exceeds {max_bytes}")
    return _LENGTH.pack(len(body)) + body


def body_length(head: bytes | bytearray, *, max_bytes: int = MAX_FRAME_BYTES) -> int:
    """The bytes that follow a frame's first ``HEAD_BYTES``.

    Raises:
        WireError: They are more than ``max_bytes``.
    """
    length: int = _LENGTH.unpack(head)[0]
    if length > max_bytes:
        raise WireError(f"a frame of {length} bytes exceeds {max_bytes}")
    return length


class FrameReader(Generic[T]):
    """Cuts a byte stream into messages of type ``T``; does no I/O."""

    def __init__(self, message_type: type[T] | object, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(message_type)
        self._max_bytes = max_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that are complete now.

        Raises:
            WireError: A frame is too long or does not decode.
        """
        self._held += data
        messages, at = [], 0
        while len(self._held) - at >= _LENGTH.size:
            length = body_length(self._held[at : at + _LENGTH.size], max_bytes=self._max_bytes)
            end = at + _LENGTH.size + length
            if len(self._held) < end:
                break
            messages.append(self._decode(bytes(self._held[at + _LENGTH.size : end])))
            at = end
        del self._held[:at]
        return messages

    def flush(self) -> None:
        """Say that the stream has ended.

        Raises:
            WireError: It ended within a frame.
        """
        if self._held:
            raise WireError(f"the stream ended {len(self._held)} bytes into a frame")

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise WireError(f"a frame of {len(body)} bytes does not decode: {exc}") from exc
