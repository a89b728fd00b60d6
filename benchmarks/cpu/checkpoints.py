"""Checkpoints of real shapes with random weights: nothing is downloaded, and every engine gets the same.

    python -m benchmarks.cpu.checkpoints [--shapes S M] [--cache FOLDER]

A checkpoint is a folder in the Hugging Face format with a tokenizer that has every id of the vocabulary. It is made
once and kept; its weights are the same everywhere.
"""

import argparse
import itertools
import json
import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from benchmarks.cpu.decoder import SHAPES

END_OF_TEXT: Final = "<|endoftext|>"
_SEED: Final = 20
_MAX_POSITIONS: Final = 2048
_LAYER_STD: Final = 0.03
_EMBEDDING_STD: Final = 0.1
"""Relative to that of the layers: with more, tied embeddings make the model say its last token for ever; with less, the
likeliest tokens come so close to each other that rounding chooses between them."""
_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def default_cache() -> Path:
    """Where checkpoints are kept: the user's cache folder, outside every repository."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "trioserve" / "benchmarks"


def make_checkpoint(name: str, cache: Path, shape: dict[str, Any] | None = None) -> Path:
    """The folder of checkpoint ``name`` in ``cache``, made now if it is not there.

    ``shape``: of the model; None is that of SHAPES.
    """
    folder = cache / name
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(SHAPES[name] if shape is None else shape)
    save_file(dict(_weights(config)), folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _MAX_POSITIONS,
    }
    _write(folder / "tokenizer_config.json", tokenizer)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    _write(folder / "config.json", config)  # last: a folder that has one is whole
    return folder


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` tokens: bytes, then pieces of words in a fixed order.

    Raises:
        ValueError: There are not so many pieces.
    """
    vocabulary = {END_OF_TEXT: 0}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges = list(itertools.islice(_merges(), vocab_size - len(vocabulary)))
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    if len(vocabulary) != vocab_size:
        raise ValueError(f"a vocabulary of {vocab_size} tokens cannot be made, only one of {len(vocabulary)}")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs to join, the first ones first: a space and a letter, two letters, both, two pairs of letters."""
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    yield from (("Ġ", letter) for letter in letters)
    yield from itertools.product(letters, letters)
    yield from (("Ġ" + letter, pair) for letter in letters for pair in pairs)
    yield from itertools.product(pairs, pairs)


def _config(shape: dict[str, Any]) -> dict[str, Any]:
    """config.json, in the names of transformers."""
    family = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}[shape["architectures"][0]]
    return {
        "model_type": family,
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": _MAX_POSITIONS,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        **shape,
    }


def _weights(config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, bfloat16, in the names of transformers."""
    generator = torch.Generator().manual_seed(_SEED)

    def noise(*shape: int, std: float = _LAYER_STD) -> Tensor:
        return (torch.randn(*shape, generator=generator) * std).bfloat16()

    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size, kv_size = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", noise(config["vocab_size"], hidden, std=_EMBEDDING_STD)
    yield "model.norm.weight", 1 + noise(hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for kind, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            yield f"{prefix}self_attn.{kind}_proj.weight", noise(size, hidden)
            if config["model_type"] == "qwen2":  # which always has these, and no others
                yield f"{prefix}self_attn.{kind}_proj.bias", noise(size)
        yield prefix + "self_attn.o_proj.weight", noise(hidden, q_size)
        yield prefix + "mlp.gate_proj.weight", noise(inner, hidden)
        yield prefix + "mlp.up_proj.weight", noise(inner, hidden)
        yield prefix + "mlp.down_proj.weight", noise(hidden, inner)
        yield prefix + "input_layernorm.weight", 1 + noise(hidden)
        yield prefix + "post_attention_layernorm.weight", 1 + noise(hidden)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["S", "M"])
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="FOLDER")
    options = parser.parse_args()
    for name in options.shapes:
        print(make_checkpoint(name, options.cache))


if __name__ == "__main__":
    main()
