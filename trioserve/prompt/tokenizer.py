"""Text to token ids, equal to transformers' tokenizer of the same folder, without transformers."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any, Final

import tokenizers

from trioserve.errors import ModelError, UnsupportedTokenizer
from trioserve.prompt.files import read_json

SPECIAL_TOKEN_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Tokenizer:
    """The tokenizer of one model. Encoding lets other threads run."""

    def __init__(self, backend: tokenizers.Tokenizer, *, special_tokens: Mapping[str, str]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        """By name, such as ``bos_token``; chat templates see them."""
        self.vocab_size = _vocab_size(backend)
        """Every id is below it."""

    @property
    def leading_tokens(self) -> list[int]:
        """What the model wants before a plain text: its first token, or nothing."""
        around = self.encode("", add_special_tokens=True)
        bos = self.special_tokens.get("bos_token")
        return around[:1] if around and bos is not None and self.backend.id_to_token(around[0]) == bos else []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of ``text``; with ``add_special_tokens`` what the model wants around a plain text is added."""
        # encode_batch is the call that gives up the interpreter lock.
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def decode(self, token_ids: SequenceOf[int]) -> str:
        """The text of ``token_ids``, special tokens included."""
        return self.backend.decode(token_ids, skip_special_tokens=False)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the model folder ``path``. Blocks.

    Raises:
        ModelError: The folder has none, or a damaged one.
    """
    config = {**read_json(path / "special_tokens_map.json"), **read_json(path / "tokenizer_config.json")}
    special_tokens = {
        name: text for name in SPECIAL_TOKEN_NAMES if (text := _token_text(config.get(name))) is not None
    }
    file = path / "tokenizer.json"
    if not file.is_file():
        return _load_with_transformers(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as exc:  # the library raises nothing narrower
        raise ModelError(f"{file} cannot be read: {exc}") from exc
    # Which special tokens surround a text, tokenizer.json alone says: transformers passes over add_bos_token too.
    return Tokenizer(backend, special_tokens=special_tokens)


def _load_with_transformers(path: Path) -> Tokenizer:
    """For folders without a tokenizer.json: transformers converts what they have instead."""
    from transformers import AutoTokenizer  # takes seconds and much memory; other folders do without

    try:
        slow = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, LookupError, TypeError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ModelError(f"{path} has no tokenizer.json and no other tokenizer that loads: {reason}") from exc
    backend = getattr(slow, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise UnsupportedTokenizer(
            f"{path} has a tokenizer of the kind {type(slow).__name__}, which has no tokenizer.json form"
        )
    return Tokenizer(backend, special_tokens=slow.special_tokens_map)


def _token_text(token: Any) -> str | None:
    """Tokenizer configurations write a token as its text or as an object with its ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _vocab_size(backend: tokenizers.Tokenizer) -> int:
    """One more than the highest id; ids may have gaps."""
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
