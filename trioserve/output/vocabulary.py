"""Reads from a tokenizer what each token stands for in text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.models import BPE

from trioserve._speedups.detokenizer import Vocabulary
from trioserve.errors import UnsupportedTokenizer

_Decoder = Mapping[str, Any]
"""One decoder as ``tokenizer.json`` writes it."""

_BYTE_LEVEL_CHAIN: Final = re.compile(r"ByteLevel( Fuse)?")
_TEXT_CHAIN: Final = re.compile(r"((Replace|Metaspace) )*(ByteFallback )?(Fuse (Strip )?)?")
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return the vocabulary with which a Detokenizer decodes as ``tokenizer.decode`` does.

    Two decoders are understood: ByteLevel, and chains of Replace or Metaspace, ByteFallback, Fuse and Strip (of one
    leading space) in this order, of which parts may be missing.

    Raises:
        UnsupportedTokenizer: The tokenizer has another decoder, or none; the message names it.
    """
    tokens = _tokens(tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    special_tokens = {token.content for token in added if token.special}
    special = [token in special_tokens for token in tokens]
    decoders = _decoders(tokenizer)
    kinds = [decoder["type"] for decoder in decoders]
    if _BYTE_LEVEL_CHAIN.fullmatch(" ".join(kinds)):
        pieces = [_from_byte_level(token) for token in tokens]
        return Vocabulary(pieces, special, byte_tokens=None, strip_leading_space=False)
    if not decoders or not _TEXT_CHAIN.fullmatch("".join(f"{kind} " for kind in kinds)):
        raise _unsupported(decoders)
    texts = _replaced(tokens, decoders, is_first=False)
    byte_tokens = [_BYTE_TOKEN.fullmatch(text) if "ByteFallback" in kinds else None for text in texts]
    pieces = [
        bytes.fromhex(byte[1]) if byte else text.encode()
        for text, byte in zip(texts, byte_tokens, strict=True)
    ]
    first_pieces = None
    if "Metaspace" in kinds:
        first_pieces = [text.encode() for text in _replaced(tokens, decoders, is_first=True)]
    return Vocabulary(
        pieces,
        special,
        byte_tokens=[byte is not None for byte in byte_tokens],
        strip_leading_space="Strip" in kinds,
        first_pieces=first_pieces,
    )


def _tokens(tokenizer: Tokenizer) -> list[str]:
    """The tokens by id, with an empty one for each id between that has none."""
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items()}
    tokens |= {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    return [tokens.get(token_id, "") for token_id in range(max(tokens, default=0) + 1)]


def _decoders(tokenizer: Tokenizer) -> list[_Decoder]:
    """The chain of decoders, without the sequences that it may be wrapped in."""
    probe = Tokenizer(BPE())  # the JSON of the tokenizer itself may have ten megabytes
    if tokenizer.decoder is not None:
        probe.decoder = tokenizer.decoder
    return _flat(json.loads(probe.to_str())["decoder"])


def _flat(decoder: _Decoder | None) -> list[_Decoder]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flat(inner)]
    return [decoder]


def _unsupported(decoders: Sequence[_Decoder]) -> UnsupportedTokenizer:
    found = json.dumps(decoders, ensure_ascii=False) if decoders else "none"
    return UnsupportedTokenizer(
        "the tokenizer's decoder must be ByteLevel, or of Replace, Metaspace, ByteFallback, Fuse and "
        f"Strip (one leading space) in this order; it is {found}"
    )


# ---- text, with byte tokens for what has no piece --------------------------------------------------------------------


def _replaced(tokens: Sequence[str], decoders: Sequence[_Decoder], *, is_first: bool) -> Sequence[str]:
    """What the decoders make of each token by itself; the first of a text may lose its marks of a space."""
    for decoder in decoders:
        match decoder:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                tokens = [token.replace(old, new) for token in tokens]
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
                space = "" if is_first and scheme != "never" else " "
                tokens = [token.replace(mark, space) for token in tokens]
            case {"type": "ByteFallback" | "Fuse"} | {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                pass
            case _:
                raise _unsupported(decoders)
    return tokens


# ---- byte-level ------------------------------------------------------------------------------------------------------


def _byte_level_alphabet() -> dict[int, int]:
    """The byte for each character of a byte-level token, and a character that is no byte for the others below 256."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return dict.fromkeys(hidden, 0xFFFD) | {256 + i: byte for i, byte in enumerate(hidden)}


_BYTE_LEVEL: Final = _byte_level_alphabet()


def _from_byte_level(token: str) -> bytes:
    """Spell out a token; one with a character outside the alphabet, such as an added token, stands for itself."""
    try:
        return token.translate(_BYTE_LEVEL).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()
