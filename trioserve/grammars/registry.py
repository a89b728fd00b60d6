"""The libraries behind structured output, by name."""

from pathlib import Path

from trioserve.errors import SettingsError
from trioserve.grammars.backend import Enforcer


def open_backend(
    name: str, *, tokenizer_path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> Enforcer:
    """The backend ``name`` for the tokenizer in the folder ``tokenizer_path``. Blocks; takes a second or more.

    Args:
        vocab_size: Bits in a mask: ids that the model has logits of.
    Raises:
        SettingsError: The library is not installed, or cannot use the tokenizer.
    """
    if name == "guidance":
        from trioserve.grammars.guidance import (
            GuidanceEngine,
            load_tokenizer,
        )  # not where another one is used

        return GuidanceEngine(load_tokenizer(tokenizer_path, vocab_size, eos_token_ids))
    raise SettingsError(f"there is no grammar backend {name}")
