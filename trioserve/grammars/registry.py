"""The libraries behind structured output, by name."""

from pathlib import Path
from typing import Final

from trioserve.errors import SettingsError
from trioserve.grammars.backend import Backend

_DEFAULT: Final = "guidance"


def backend_named(setting: str) -> str:
    """The backend that ``guided_decoding_backend`` comes to; empty for none."""
    return {"auto": _DEFAULT, "off": ""}.get(setting, setting)


def open_backend(
    name: str,
    *,
    tokenizer_path: Path,
    vocab_size: int,
    eos_token_ids: tuple[int, ...],
    disable_any_whitespace: bool = False,
    max_depth: int = 64,
) -> Backend:
    """The backend ``name`` for the tokenizer in the folder ``tokenizer_path``. Blocks; takes a second or more.

    Args:
        vocab_size: Bits in a mask: ids that the model has logits of.
        disable_any_whitespace: As the setting ``guided_decoding_disable_any_whitespace``.
        max_depth: Levels that a schema or a regular expression may have.
    Raises:
        SettingsError: The library is not installed, or cannot use the tokenizer.
    """
    if name == "guidance":
        from trioserve.grammars.guidance import load_tokenizer  # none of this where another one is used
        from trioserve.grammars.guidance_backend import GuidanceBackend

        return GuidanceBackend(
            load_tokenizer(tokenizer_path, vocab_size, eos_token_ids),
            disable_any_whitespace=disable_any_whitespace,
            max_depth=max_depth,
        )
    try:
        from trioserve.grammars.xgrammar import Xgrammar
    except ImportError as exc:
        raise SettingsError(
            "guided_decoding_backend = 'xgrammar' needs the package xgrammar: pip install 'trioserve[xgrammar]'."
        ) from exc
    return Xgrammar(
        tokenizer_path=tokenizer_path,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids,
        disable_any_whitespace=disable_any_whitespace,
        max_depth=max_depth,
    )
