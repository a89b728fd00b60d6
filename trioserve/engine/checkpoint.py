"""Finds the folder of the model to serve and reads what the front needs to know of it; no weights, no torch."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trioserve.builtin import MODEL_DIR
from trioserve.errors import ModelError, PromptTooLong, SettingsError
from trioserve.settings import BUILTIN_MODEL, Settings

_WANTED_FILES: Final = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A checkpoint in the Hugging Face format, as the front sees it."""

    name: str
    """The id that answers and /v1/models give; the first of ``names``."""
    names: tuple[str, ...]
    path: Path
    tokenizer_path: Path
    max_model_len: int
    """Tokens of prompt and answer together."""
    vocab_size: int
    """Rows of the embedding: every token id must be below it."""
    eos_token_ids: tuple[int, ...]
    generation_config: Mapping[str, Any]
    """Sampling defaults, in the names of generation_config.json."""
    created: int
    """Unix time, in seconds, at which this server took it up."""
    model_type: str = ""
    """As config.json says it."""

    def room_for(self, num_prompt_tokens: int) -> int:
        """Tokens that an answer to such a prompt may have, at least 1.

        Raises:
            PromptTooLong: There is no room.
        """
        limit = self.max_model_len
        if num_prompt_tokens >= limit:
            raise PromptTooLong(
                f"the prompt has {num_prompt_tokens} tokens; the model takes {limit} tokens, prompt and answer together"
            )
        return limit - num_prompt_tokens


def open_model(settings: Settings) -> ModelFolder:
    """Find the model that the settings name, downloading it if it is a hub repository not yet in the cache. Blocks.

    Raises:
        ModelError: No such folder or repository, or its config.json is missing or damaged.
        SettingsError: ``generation_config`` names nothing, or ``max_model_len`` is more than the model was made for, or
            than a step takes in one piece where prompts may not be cut.
    """
    path = _folder(settings.model, settings.revision, settings)
    config = _read_json(path / "config.json", required=True)
    models_own = _read_json(path / "generation_config.json")
    names = settings.served_model_name or (settings.model,)
    return ModelFolder(
        name=names[0],
        names=names,
        path=path,
        tokenizer_path=_tokenizer_folder(settings) or path,
        max_model_len=_max_model_len(config, settings),
        vocab_size=_count(config, "vocab_size"),
        eos_token_ids=_eos_token_ids(models_own, config),
        generation_config=_generation_config(settings.generation_config, models_own),
        created=int(time.time()),
        model_type=str(config.get("model_type") or ""),
    )


def _tokenizer_folder(settings: Settings) -> Path | None:
    if settings.tokenizer is None and settings.tokenizer_revision is None:
        return None
    return _folder(settings.tokenizer or settings.model, settings.tokenizer_revision, settings)


def _folder(name: str, revision: str | None, settings: Settings) -> Path:
    if name == BUILTIN_MODEL:
        return MODEL_DIR
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"model {name!r} is neither a folder nor a Hugging Face repository: correct --model."
        )
    return _download(name, revision, settings)


def _download(name: str, revision: str | None, settings: Settings) -> Path:
    from huggingface_hub import snapshot_download  # half a second of imports that a local folder does without

    try:
        folder = snapshot_download(
            name, revision=revision, cache_dir=settings.download_dir, allow_patterns=_WANTED_FILES
        )
    except Exception as exc:  # the hub's client raises whatever its transport does
        raise ModelError(f"model {name!r} could not be fetched from the hub: {_first_line(exc)}") from exc
    return Path(folder)


def _generation_config(wanted: str, models_own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sampling defaults that the setting names; "vllm" is vLLM's word for "none"."""
    if wanted == "auto":
        return models_own
    if wanted in ("none", "vllm"):
        return {}
    path = Path(wanted).expanduser() / "generation_config.json"
    if not path.is_file():
        raise SettingsError(
            f'generation_config = {wanted!r} is neither "auto" nor "none" nor a folder with a generation_config.json: '
            "correct it."
        )
    return _read_json(path)


def _max_model_len(config: Mapping[str, Any], settings: Settings) -> int:
    limit = _count(config, "max_position_embeddings")
    asked = settings.max_model_len
    if asked is not None and asked > limit:
        raise SettingsError(f"max_model_len = {asked} is more than the model's {limit}: lower it.")
    max_model_len, budget = asked or limit, settings.max_num_batched_tokens
    if not settings.enable_chunked_prefill and budget < max_model_len:
        raise SettingsError(
            f"enable_chunked_prefill = false: a step of max_num_batched_tokens = {budget} has no room for a prompt of "
            f"max_model_len = {max_model_len}: raise the one or lower the other."
        )
    return max_model_len


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json says {name} = {value!r}, which is no count.")
    return value


def _eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    for config in configs:
        eos = config.get("eos_token_id")
        if isinstance(eos, int):
            return (eos,)
        if isinstance(eos, list) and all(isinstance(token_id, int) for token_id in eos):
            return tuple(eos)
    return ()


def _read_json(path: Path, *, required: bool = False) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ModelError(f"{path.parent} has no {path.name}: is it a model folder?") from None
        return {}
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read: {_first_line(exc)}") from exc
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.")
    return value


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
