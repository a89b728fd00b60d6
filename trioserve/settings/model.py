"""Settings of what is served."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from trioserve.settings.values import Count, JsonObject, Names, SettingsGroup, Share

BUILTIN_MODEL = "builtin"


class GenerationOverrides(JsonObject):
    """Sampling defaults that win over the model's; the names of generation_config.json."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    max_new_tokens: Count | None = None
    """Also the most that a request may ask for."""


class ModelSettings(SettingsGroup):
    """Model"""

    model: str = BUILTIN_MODEL
    """A Hugging Face repository, a local folder, or "builtin"."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    tokenizer: str | None = None
    """Where the tokenizer comes from, if not from the model."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer's repository."""
    download_dir: Path | None = None
    """The hub's cache folder, if not the usual one."""
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """auto is safetensors, the only format that is read; dummy makes random weights of the seed, and needs none."""
    served_model_name: Names = ()
    """Names that answers and /v1/models give; by default the model's."""
    chat_template: str | None = None
    """A Jinja template, or the path of one, instead of the model's."""
    tool_call_parser: str = "auto"
    """How the model writes tool calls; auto goes by its chat template, none looks for no calls. See docs/tools.md."""
    reasoning_parser: str = "auto"
    """How the model marks its thinking; auto goes by its chat template, none leaves it in the content. See
    docs/reasoning.md."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer together; by default the model's."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and KV cache; auto takes the checkpoint's. half and float are float16 and float32."""
    quantization: Literal["auto", "none", "int8", "int4", "fp8"] = "auto"
    """What weights are brought to at load, fp8 (e4m3) on GPUs alone; auto keeps those of a quantized checkpoint in as
    few bits as it has, and leaves others alone. docs/quantization.md says how, docs/performance.md what each brings."""
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Once given, requests without a seed of their own draw from it: the same requests in the same order get the same
    answers. Dummy weights are made from it too."""
    generation_config: str = "auto"
    """Sampling defaults: auto takes the model's generation_config.json, none our own; or a folder that has one."""
    override_generation_config: Annotated[
        GenerationOverrides, NoDecode, BeforeValidator(GenerationOverrides.read)
    ] = GenerationOverrides()
    """Sampling defaults that win over those, as a JSON object such as {"temperature": 0.5}."""

    @field_validator("served_model_name", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str | list) and all(isinstance(part, str) for part in value):
            return " ".join([value] if isinstance(value, str) else value).replace(",", " ").split()
        return value

    @field_validator("quantization", mode="before")
    @classmethod
    def _check_quantization(cls, value: Any) -> Any:
        if value in ("auto", "none", "int8", "int4", "fp8"):
            return value
        raise ValueError(
            "weights are quantized at load, to int8, int4 or on a GPU fp8, or with none not at all; leave it out for a "
            "quantized checkpoint, whose config.json says what it is"
        )

    @field_validator("dtype", mode="before")
    @classmethod
    def _spell_dtype(cls, value: Any) -> Any:
        return {"half": "float16", "float": "float32"}.get(value, value) if isinstance(value, str) else value
