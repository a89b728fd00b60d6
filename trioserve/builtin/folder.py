"""Writing the model folder that transformers, and the server, load."""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from trioserve.builtin.network import Network, Shape

_END_OF_TEXT_ID: Final = 0
_TURN_END_ID: Final = 2


def save_config(shape: Shape, folder: Path) -> None:
    """Write config.json and generation_config.json."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.max_position_embeddings,
        "initializer_range": 0.03,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": _TURN_END_ID,
        "pad_token_id": _END_OF_TEXT_ID,
        "torch_dtype": "bfloat16",
    }
    _write(folder / "config.json", config)
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "eos_token_id": [_TURN_END_ID, _END_OF_TEXT_ID],
        "pad_token_id": _END_OF_TEXT_ID,
    }
    _write(folder / "generation_config.json", generation)


def save_weights(network: Network, path: Path) -> None:
    """Write the parameters in bfloat16, in place of an older file at once or not at all."""
    weights: dict[str, Tensor] = {
        name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in network.named_parameters()
    }
    draft = path.with_suffix(".draft")
    save_file(weights, draft, metadata={"format": "pt"})
    draft.chmod(0o644)
    draft.replace(path)


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
