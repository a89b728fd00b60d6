"""All groups in one class."""

from typing import Self

from pydantic import model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from trioserve.settings.access import SECRETS, AccessSettings
from trioserve.settings.engine import EngineSettings
from trioserve.settings.limits import LimitSettings
from trioserve.settings.model import ModelSettings
from trioserve.settings.places import ENV_PREFIX, read_file, read_variables
from trioserve.settings.ranks import RANK_SECRETS, RankSettings
from trioserve.settings.server import ServerSettings
from trioserve.settings.state import StateSettings
from trioserve.settings.values import SettingsGroup

SECRET_VARIABLES = frozenset(ENV_PREFIX + name.upper() for name in SECRETS | RANK_SECRETS)

_MAX_STEP_LOGPROBS_BYTES = 192 << 20
"""What a step may say of prompts: well below the longest frame between front and works."""

GROUPS: tuple[type[SettingsGroup], ...] = (
    ModelSettings,
    EngineSettings,
    RankSettings,
    LimitSettings,
    StateSettings,
    ServerSettings,
    AccessSettings,
)


class Settings(
    BaseSettings,
    AccessSettings,
    ServerSettings,
    StateSettings,
    LimitSettings,
    RankSettings,
    EngineSettings,
    ModelSettings,
):
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
        step_bytes = self.max_num_batched_tokens * 8 * (1 + self.max_logprobs)
        if step_bytes > _MAX_STEP_LOGPROBS_BYTES:
            raise ValueError(
                f"max_logprobs = {self.max_logprobs} with max_num_batched_tokens = {self.max_num_batched_tokens} "
                f"makes {step_bytes} bytes of prompt_logprobs a step, at most {_MAX_STEP_LOGPROBS_BYTES} can be: "
                "lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_joined_ranks(self) -> Self:
        if self.rank_listen is not None and self.num_local_ranks >= self.tensor_parallel_size:
            raise ValueError(
                f"rank_listen = '{self.rank_listen}' with tensor_parallel_size = {self.tensor_parallel_size} and "
                f"{self.num_local_ranks} of them here leaves none to join: raise tensor_parallel_size or leave it out"
            )
        return self

    @property
    def num_local_ranks(self) -> int:
        """Ranks on this machine."""
        return self.tensor_parallel_size if self.rank_listen is None else self.local_ranks or 1

    @model_validator(mode="after")
    def _check_quantization_of_device(self) -> Self:
        if self.quantization == "fp8" and self.device != "cuda":
            raise ValueError(
                "quantization = fp8: a CPU computes with int8 or int4 weights; ask for one of these"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.workers > 1 and self.seed is not None:
            raise ValueError(
                f"workers = {self.workers} and seed = {self.seed}: each process would draw by itself, and an answer "
                "would depend on which one a connection comes to; leave one of them out"
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
        variables, file = read_variables(cls.model_fields), read_file(cls.model_fields)
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = {ENV_PREFIX.lower() + name: value for name, value in variables.values.items()}
        return init_settings, env_settings, InitSettingsSource(settings_cls, dict(file.values))
