"""Settings of ranks on other machines."""

from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from trioserve.errors import SettingsError
from trioserve.settings.values import SettingsGroup

RANK_SECRETS: Final = frozenset({"rank_key"})
"""As ``access.SECRETS``."""
_MIN_KEY_CHARACTERS: Final = 16


class RankSettings(SettingsGroup):
    """Ranks on other machines"""

    rank_listen: str | None = None
    """HOST:PORT at which ranks of other machines come in by trioserve join, so that together there are
    tensor_parallel_size. Only for a private network: what passes is not encrypted. By default all ranks are here."""
    local_ranks: int | None = Field(default=None, ge=1, le=64)
    """Ranks on this machine, where others join; 1 by default."""
    rank_key: SecretStr | None = None
    """What ranks that join must know, at least 16 characters; processes see flags, not variables."""
    rank_key_file: Path | None = None
    """A file that holds it instead."""
    rank_silence_timeout_s: float = Field(default=10.0, ge=3, le=3600)
    """Time after which a machine that says nothing at all, as with its cable pulled, counts as lost."""

    @field_validator("rank_listen")
    @classmethod
    def _check_rank_listen(cls, value: str | None) -> str | None:
        if value is not None:
            split_rank_address(value)
        return value

    @field_validator("rank_key", mode="before")
    @classmethod
    def _check_rank_key(cls, value: Any) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str):
            _check_key(text)
        return value

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if self.rank_key is not None and self.rank_key_file is not None:
            raise ValueError("rank_key and rank_key_file are two places of one key: leave one of them out")
        if self.local_ranks is not None and self.rank_listen is None:
            raise ValueError(
                f"local_ranks = {self.local_ranks} needs rank_listen, where the others join; to have all ranks here "
                "leave it out"
            )
        if self.rank_listen is not None and self.rank_key is None and self.rank_key_file is None:
            raise ValueError(
                f"rank_listen = '{self.rank_listen}' needs a key that ranks must know: give rank_key or rank_key_file"
            )
        return self

    def read_rank_key(self) -> bytes:
        """The key, from wherever it is.

        Raises:
            SettingsError: There is none, its file cannot be read, or it is too short.
        """
        if self.rank_key is not None:
            return self.rank_key.get_secret_value().encode()
        if self.rank_key_file is None:
            raise SettingsError("ranks join by a key: give rank_key (TRIOSERVE_RANK_KEY) or rank_key_file.")
        try:
            text = self.rank_key_file.read_text("utf-8").strip()
            _check_key(text)
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise SettingsError(f"rank_key_file = '{self.rank_key_file}': {reason}.") from exc
        return text.encode()


def split_rank_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; an IPv6 address is in brackets.

    Raises:
        ValueError: It is not of that form.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("it should be HOST:PORT, such as 0.0.0.0:7000")
    return host, int(port)


def _check_key(text: str) -> None:
    if len(text) < _MIN_KEY_CHARACTERS:
        raise ValueError(f"a key has at least {_MIN_KEY_CHARACTERS} characters, this one has {len(text)}")
