"""How a rank of another machine and the front make sure of each other, before either reads a frame of the other's.

Both hold a key that never crosses. What crosses first has a fixed size and is compared, not parsed:

    front -> rank   greeting   16 bytes that name the protocol, 32 random ones
    rank -> front   claim      32 random bytes, 32 that only the key makes of these and the greeting
    front -> rank   answer     32 bytes that only the key makes of greeting and claim; others where the claim is wrong

Then frames: a ``JoinRequest``, a ``JoinAnswer``, and what every rank is told. Nothing is encrypted or signed after
that: a network whose other users may read or change what passes needs a tunnel.
"""

import hashlib
import hmac
import secrets
import socket
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from trioserve.errors import ModelError

_PROTOCOL: Final = b"trioserve ranks1"
_NONCE_BYTES: Final = 32
_PROOF_BYTES: Final = 32
GREETING_BYTES: Final = len(_PROTOCOL) + _NONCE_BYTES
CLAIM_BYTES: Final = _NONCE_BYTES + _PROOF_BYTES
ANSWER_BYTES: Final = _PROOF_BYTES
NO_ANSWER: Final = bytes(ANSWER_BYTES)
"""To a claim that is wrong."""
MAX_JOIN_FRAME_BYTES: Final = 4096
"""Of a JoinRequest or a JoinAnswer."""
HANDSHAKE_S: Final = 5.0
"""Time for all of it, from the connection to the JoinAnswer."""


class JoinRequest(Struct, frozen=True, array_like=True, tag="join"):
    """What a rank says of itself."""

    version: str
    """Of trioserve; plans of another one may mean something else."""
    model_digest: str
    """Of its folder, as ``model_digest`` says."""
    local_rank: int
    num_local_ranks: int
    """Which of the ranks that its machine lends it is, and how many these are."""


class JoinAnswer(Struct, frozen=True, array_like=True, tag="join_answer"):
    """Whether the rank may stay, and be told of a model to load when there are enough."""

    refusal: str = ""
    """Why it may not, a sentence; empty: it may."""
    is_final: bool = False
    """Whether asking again is of no use until an operator has changed something."""


def make_greeting() -> bytes:
    """The front's first bytes, of one connection."""
    return _PROTOCOL + secrets.token_bytes(_NONCE_BYTES)


def is_greeting(greeting: bytes) -> bool:
    """Whether it is one of this protocol."""
    return len(greeting) == GREETING_BYTES and greeting.startswith(_PROTOCOL)


def make_claim(key: bytes, greeting: bytes) -> bytes:
    """What shows the front that a rank has the key."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _proof(key, b"rank", greeting + nonce)


def is_claim(key: bytes, greeting: bytes, claim: bytes) -> bool:
    """Whether who made the claim has the key and saw the greeting."""
    nonce, proof = claim[:_NONCE_BYTES], claim[_NONCE_BYTES:]
    return hmac.compare_digest(proof, _proof(key, b"rank", greeting + nonce))


def make_answer(key: bytes, greeting: bytes, claim: bytes) -> bytes:
    """What shows the rank that the front has the key."""
    return _proof(key, b"front", greeting + claim)


def is_answer(key: bytes, greeting: bytes, claim: bytes, answer: bytes) -> bool:
    """Whether who answered has the key and saw the claim."""
    return hmac.compare_digest(answer, make_answer(key, greeting, claim))


def _proof(key: bytes, who: bytes, seen: bytes) -> bytes:
    return hmac.digest(key, who + b":" + seen, "sha256")


def model_digest(folder: Path) -> str:
    """What tells models apart: a digest of config.json, of the weights' index, and of their files' names and sizes.

    Raises:
        ModelError: The folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted((*folder.glob("config.json"), *folder.glob("*.safetensors.index.json"))):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    except OSError as exc:
        raise ModelError(f"{folder} cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()


class _HasOptions(Protocol):
    """A socket, of whichever library."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


def watch_link(sock: _HasOptions, silence_s: float) -> None:
    """Have the system give a TCP connection up when the other machine has been silent for ``silence_s`` seconds, even
    while there is nothing to send, and send frames at once."""
    probe_s = max(1, int(silence_s / 3))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))
