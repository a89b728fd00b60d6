"""Small model folders, as far as prompts are concerned, written by the tests themselves."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]


def byte_level(*, adds_bos: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer with a few merges, as Qwen and Llama 3 have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in MERGES)]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return backend


def write_folder(
    path: Path, *, backend: tokenizers.Tokenizer | None = None, jinja: str | None = None, **config: Any
) -> Path:
    """A folder with tokenizer.json, tokenizer_config.json and, if given, chat_template.jinja."""
    path.mkdir(parents=True, exist_ok=True)
    (backend or byte_level()).save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        **config,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja)
    return path
