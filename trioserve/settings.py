"""One tree of settings: defaults < ``trioserve.toml`` < ``TRIOSERVE_*`` < flags; frozen once built.

The classes are the groups of ``trioserve serve --help``; all fields share one flat name space, so that
``max_num_seqs``, ``TRIOSERVE_MAX_NUM_SEQS`` and ``--max-num-seqs`` are the same setting.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from trioserve.errors import SettingsError

ENV_PREFIX = "TRIOSERVE_"
CONFIG_VARIABLE = "TRIOSERVE_CONFIG"
"""Names another file than ``trioserve.toml`` in the working directory."""
URL_VARIABLE = "TRIOSERVE_URL"
"""Of clients, which may share our environment."""
BUILTIN_MODEL = "builtin"
EXIT_SETTINGS = 78
"""The exit code of a process whose settings are wrong."""

_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP)")
"""What Kubernetes puts into the environment of a pod when a Service is called "trioserve"."""

Seconds = Annotated[float, Field(ge=0, le=7 * 24 * 3600)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], NoDecode]


class SettingsGroup(BaseModel):
    """A heading of ``trioserve serve --help``: its docstring is the title, its attributes' docstrings the help."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class ModelSettings(SettingsGroup):
    """Model"""

    model: str = BUILTIN_MODEL
    """A Hugging Face repository, a local folder, or "builtin"."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    tokenizer: str | None = None
    """Where the tokenizer comes from, if not from the model."""
    download_dir: Path | None = None
    """The hub's cache folder, if not the usual one."""
    load_format: Literal["auto", "dummy"] = "auto"
    """auto reads safetensors; dummy makes seeded random weights."""
    served_model_name: Names = ()
    """Names that answers and /v1/models give; by default the model's."""
    chat_template: str | None = None
    """A Jinja template, or the path of one, instead of the model's."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer together; by default the model's."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and KV cache; auto takes the checkpoint's."""
    seed: int = 0
    """Of dummy weights."""

    @field_validator("served_model_name", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value


class EngineSettings(SettingsGroup):
    """Engine"""

    device: Literal["cpu"] = "cpu"
    """What the ranks compute on."""
    max_num_seqs: Count = Field(default=128, le=4096)
    """Sequences that run at a time."""
    max_num_batched_tokens: Count = Field(default=512, le=1 << 20)
    """Tokens that one step computes at most; longer prompts are cut into chunks."""
    block_size: int = Field(default=16, ge=16, le=256, multiple_of=16)
    """Tokens a KV block holds."""
    kv_cache_bytes: int = Field(default=0, ge=0)
    """Memory for the KV cache; 0: what fits this machine."""
    num_kv_blocks: Count | None = None
    """KV blocks to allocate, instead of kv_cache_bytes."""
    enable_prefix_caching: bool = True
    """Whether prompts share the KV blocks of equal beginnings."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads a rank computes with; 0: one per physical core."""
    start_timeout_s: Seconds = 1800.0
    """Time a rank has to load the model."""
    step_timeout_s: Seconds = 120.0
    """Time after which a step counts as stalled and the works are restarted."""
    step_stacks_s: Seconds = 60.0
    """Time after which a slow step makes the ranks write their stacks to the log."""
    max_restarts: int = Field(default=5, ge=0)
    """Restarts of the works within 10 minutes before the server gives up with exit code 70."""


class LimitSettings(SettingsGroup):
    """Limits"""

    max_num_queued_reqs: Count = 1024
    """Sequences that may wait; above it new requests get 429."""
    max_num_queued_tokens: Count = 1 << 20
    """Prompt tokens that may wait; above it new requests get 429."""
    max_body_bytes: Count = 16 << 20
    """Of a request's body; a longer one gets 413."""
    body_timeout_s: Seconds = 60.0
    """Time a client has to send the body."""
    max_messages: Count = 2048
    """Of one chat request."""
    max_n: Count = 128
    """Choices of one request, over all its prompts."""
    max_stop: Count = 16
    """Stop strings of one request."""
    max_stop_chars: Count = 1024
    """Of one stop string."""
    request_timeout_s: Seconds = 3600.0
    """Time a request may take in all; 0: no limit."""


class ServerSettings(SettingsGroup):
    """Server"""

    host: str = "127.0.0.1"
    """Address to listen on. Under ``hypercorn`` its own --bind counts."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one and logs it."""
    backlog: Count = 1024
    """Connections that may wait to be accepted."""
    drain_delay_s: Seconds = 5.0
    """Lame duck: time to go on serving after SIGTERM while /ready says 503, so that balancers notice."""
    drain_timeout_s: Seconds = 300.0
    """Time that running requests have after the lame duck before they are aborted."""
    send_timeout_s: Seconds = 60.0
    """Time after which a client that does not read is dropped."""
    keep_alive_timeout_s: Seconds = 75.0
    """Time an idle connection stays open."""
    sse_keep_alive_s: Seconds = 15.0
    """Silence after which a stream sends a comment, so that proxies keep it open; 0: never."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines of less weight are left out."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, one JSON object a line elsewhere."""


GROUPS: tuple[type[SettingsGroup], ...] = (ModelSettings, EngineSettings, LimitSettings, ServerSettings)


class Settings(BaseSettings, ServerSettings, LimitSettings, EngineSettings, ModelSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens = {self.max_num_batched_tokens} must be at least "
                f"max_num_seqs = {self.max_num_seqs}: every running sequence has one token in a step"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, os.environ.get(CONFIG_VARIABLE, "trioserve.toml"))
        return init_settings, env_settings, toml


def load_settings(**flags: Any) -> Settings:
    """The settings of this process; ``flags`` win over environment and file.

    Raises:
        SettingsError: A value is wrong or a name unknown; one sentence, each fault in it with what to change.
    """
    _refuse_unknown_variables()
    named = os.environ.get(CONFIG_VARIABLE)
    if named is not None and not Path(named).is_file():
        raise SettingsError(
            f"{CONFIG_VARIABLE} names {named!r}, which is not a file: correct the path or unset it."
        )
    try:
        return Settings(**flags)
    except ValidationError as exc:
        faults = "; ".join(_describe(error) for error in exc.errors())
        raise SettingsError(f"Bad settings: {faults}.") from exc
    except ValueError as exc:
        raise SettingsError(f"trioserve.toml cannot be read: {exc}.") from exc


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be ignored without a word."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE, URL_VARIABLE}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX) and name not in known and not _SERVICE_LINK.search(name)
    )
    if unknown:
        raise SettingsError(f"Unknown setting {', '.join(unknown)}: correct the name or unset it.")


def _describe(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if not name:
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return f"{name} is not a setting; correct the name or remove it"
    return f"{name} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
