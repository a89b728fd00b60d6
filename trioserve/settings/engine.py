"""Settings of the engine and its works."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from trioserve.settings.gpus import find_gpus
from trioserve.settings.values import ByDevice, Count, JsonObject, Seconds, SettingsGroup

_GPU_MEMORY_UTILIZATION = 0.9
"""What GPUs are used to; on a CPU nothing else can be asked for."""
_LOOKUP = (2, 4)
"""Tokens to look for: fewer find what happens to be equal, more find too little."""


class EarlyStopConfig(JsonObject):
    """When to end a sequence that goes round in circles; the names of FastDeploy."""

    enable_early_stop: bool = False
    strategy: Literal["repetition"] = "repetition"
    window_size: Count = 3000
    """Tokens in a row that must have been certain."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Probability above which a token is certain."""


class SpeculativeConfig(JsonObject):
    """How to guess the next tokens; the names of vLLM."""

    method: Literal["ngram"]
    """What followed the last tokens where they stood before is what follows now; the only method."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=16)] = 4
    """Tokens to guess for a sequence in one step at most."""
    prompt_lookup_max: Annotated[int, Field(ge=1, le=32)] | None = None
    """Last tokens to look for at most; by default 4, or prompt_lookup_min where that is more."""
    prompt_lookup_min: Annotated[int, Field(ge=1, le=32)] | None = None
    """Last tokens that must be found at least; by default 2, or prompt_lookup_max where that is less."""

    @property
    def lookup(self) -> tuple[int, int]:
        """The fewest and the most tokens to look for."""
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if most is None:
            most = max(_LOOKUP[1], least or 0)
        return min(_LOOKUP[0], most) if least is None else least, most

    @model_validator(mode="after")
    def _check_lookup(self) -> Self:
        least, most = self.lookup
        if least > most:
            raise ValueError(
                f"prompt_lookup_min = {least} is more than prompt_lookup_max = {most}: lower it or raise the other"
            )
        return self


class EngineSettings(SettingsGroup):
    """Engine"""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the ranks compute on; auto is cuda where there is an NVIDIA GPU that can be used, else cpu."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """Ranks that share a model's layers and its KV cache: a GPU for each, or the cores of a CPU. One rank uses all
    cores, so more of them gain where memory is in several parts (NUMA) and cost elsewhere."""
    max_num_seqs: Count = Field(default_factory=ByDevice(128, 256), le=4096)
    """Sequences that run at a time."""
    max_num_batched_tokens: Count = Field(default_factory=ByDevice(512, 2048), le=1 << 20)
    """Tokens that one step computes at most; longer prompts are cut into chunks."""
    inter_token_target_ms: float | None = Field(default=None, ge=0, le=60_000, allow_inf_nan=False)
    """Milliseconds between two tokens of an answer that prompts of others should not make longer: while answers are
    under way, a step takes the tokens of prompts that it has time for by what the last steps took, and at least 32. By
    default 50, or where the model is slow four times what a step for one answer takes, so that prompts do not wait too
    long. 0: as many as max_num_batched_tokens lets it."""
    enable_chunked_prefill: bool = True
    """Whether prompts may be cut. Without it max_num_batched_tokens must be at least max_model_len, and a prompt waits
    for a step that has room for all of it."""
    block_size: int = Field(default=16, ge=16, le=256, multiple_of=16)
    """Tokens a KV block holds."""
    kv_cache_bytes: int = Field(default=0, ge=0)
    """Memory for the KV cache; 0: what fits this machine."""
    num_kv_blocks: Count | None = None
    """KV blocks to allocate, instead of kv_cache_bytes."""
    cache_max_entry_count: float | None = Field(default=None, gt=0, lt=1)
    """Share of the memory that is free once the weights are loaded, for the KV cache, instead of kv_cache_bytes. By
    default as much as max_num_seqs sequences can use, at most 0.4; on a GPU as gpu_memory_utilization says."""
    kv_cache_dtype: Literal["auto", "bfloat16", "int8", "fp8"] = "auto"
    """What keys and values are kept in; auto is the weights' type. int8 and fp8 (e4m3) have a scale for each token and
    KV head and hold nearly twice as many tokens; of decoders on a CPU only the native one reads them, and a GPU reads
    fp8 alone."""
    kv_cache_ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the KV blocks that prompts may take while others run; the rest is kept for answers. By default one block
    for each that runs is kept, at most a sixteenth of all."""
    gpu_memory_utilization: float = Field(default=_GPU_MEMORY_UTILIZATION, gt=0, le=1)
    """Share of each GPU's memory that is used in all; what weights and the largest step leave of it is the KV cache. On
    a CPU nothing else than 0.9 may be asked for."""
    swap_space: float = Field(default=0.0, ge=0, le=1 << 20)
    """GiB of host memory for each GPU, to which prefixes move that its KV cache has no room for any more; a prompt that
    begins with one takes it from there. On a CPU: 0."""
    enforce_eager: bool = False
    """Whether a GPU is told every kernel of every step, instead of graphs that were captured before. On a CPU there are
    no graphs."""
    batch_invariant: bool = False
    """Whether what a sequence computes may not depend on what is computed beside it, to the last bit. The native
    decoder of a CPU always keeps to that; on a GPU it costs time; torch's layers cannot."""
    enable_prefix_caching: bool = True
    """Whether prompts share the KV blocks of equal beginnings."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads a rank computes with, at most as many as can run at once; 0: one per physical core, as far as the quota
    of the control group goes, or its share of these where there are several ranks."""
    pin_threads: bool | None = None
    """Whether each thread keeps to a core of its own while a step runs. By default it does where there are as many
    threads as physical cores."""
    use_warmup: bool = False
    """Whether the ranks compute a prompt of max_num_batched_tokens and decodes before /ready says 200; torch's layers
    those of every batch size up to 64."""
    start_timeout_s: Seconds = 1800.0
    """Time a rank has to load the model."""
    enable_early_stop: bool = False
    """Whether to end sequences that are certain of every token for too long, as those that repeat themselves are."""
    early_stop_config: Annotated[EarlyStopConfig, NoDecode, BeforeValidator(EarlyStopConfig.read)] = (
        EarlyStopConfig()
    )
    """When that is, as a JSON object; its own enable_early_stop turns it on too."""
    speculative_config: Annotated[
        SpeculativeConfig | None, NoDecode, BeforeValidator(SpeculativeConfig.read_if_any)
    ] = None
    """How to guess tokens that are then verified in one step, as a JSON object such as {"method": "ngram",
    "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}. Faster where answers repeat themselves
    or their prompts, at most a few percent slower elsewhere, the same tokens always. By default nothing is guessed."""
    step_timeout_s: Seconds = 120.0
    """Time after which a step counts as stalled and the works are restarted."""
    step_stacks_s: Seconds = 60.0
    """Time after which a slow step makes the ranks write their stacks to the log."""
    guided_decoding_backend: Literal["auto", "guidance", "xgrammar", "off"] = "auto"
    """What keeps answers to schemas, regular expressions and grammars; auto is guidance, off refuses them."""
    guided_decoding_disable_any_whitespace: bool = False
    """Whether JSON answers have one space behind commas and colons and no other white space between their parts, unless
    a request says otherwise."""
    max_restarts: int = Field(default=5, ge=0)
    """Restarts of the works within 10 minutes before the server gives up with exit code 70."""

    @field_validator("device")
    @classmethod
    def _find_device(cls, value: str) -> str:
        if value == "cpu":
            return value
        gpus = find_gpus()
        if value == "cuda" and not gpus.count:
            raise ValueError(f"{gpus.missing}, or leave device out to compute on a CPU")
        return "cuda" if gpus.count else "cpu"

    @field_validator("kv_cache_dtype", mode="before")
    @classmethod
    def _spell_kv_cache_dtype(cls, value: Any) -> Any:
        return "fp8" if value == "fp8_e4m3" else value

    @property
    def early_stop(self) -> EarlyStopConfig | None:
        """When to end a sequence early, or None for never."""
        config = self.early_stop_config
        return config if self.enable_early_stop or config.enable_early_stop else None

    @model_validator(mode="after")
    def _check_cpu(self) -> Self:
        if self.device == "cuda":
            return self
        if self.gpu_memory_utilization != _GPU_MEMORY_UTILIZATION:
            raise ValueError(
                f"gpu_memory_utilization = {self.gpu_memory_utilization}: no GPU is computed on; give the KV cache its "
                "share of the free memory by cache_max_entry_count"
            )
        if self.swap_space:
            raise ValueError(
                f"swap_space = {self.swap_space}: the KV cache lies in the host's memory already; leave it at 0"
            )
        return self

    @model_validator(mode="after")
    def _check_gpu(self) -> Self:
        if self.device != "cuda":
            return self
        if self.kv_cache_dtype == "int8":
            raise ValueError(
                "kv_cache_dtype = int8: a GPU keeps codes of keys and values as fp8; ask for that"
            )
        if self.pin_threads:
            raise ValueError("pin_threads = true: a GPU computes the steps, not threads; leave it out")
        if self.swap_space and not self.enable_prefix_caching:
            raise ValueError(
                f"swap_space = {self.swap_space} and enable_prefix_caching = false: what moves to the host is found as "
                "a prefix; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _check_kv_cache(self) -> Self:
        sizes = ("num_kv_blocks", "kv_cache_bytes", "cache_max_entry_count")
        given = [f"{name} = {getattr(self, name)}" for name in sizes if getattr(self, name)]
        if self.gpu_memory_utilization != _GPU_MEMORY_UTILIZATION:
            given.append(f"gpu_memory_utilization = {self.gpu_memory_utilization}")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} all size the KV cache: leave only one")
        return self
