"""CTranslate2's. VARIANT is one of its quantizations; its tokens are the decimal digits of ids."""

import sys
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

from benchmarks.cpu.peers.formats.reading import Weights, read_config, read_weights


class _Checkpoint(ctranslate2.converters.Converter):  # type: ignore[misc]  # untyped where it is installed at all
    """A folder of ours, as its converter wants it."""

    def __init__(self, folder: Path) -> None:
        self._config, self._weights = read_config(folder), read_weights(folder)

    def _load(self) -> Any:
        config, weights = self._config, self._weights
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            config["num_hidden_layers"],
            config["num_attention_heads"],
            activation=common_spec.Activation.SWISH,
            pre_norm=True,
            ffn_glu=True,
            rms_norm=True,
            rotary_dim=0,
            rotary_interleave=False,
            rotary_base=config["rope_theta"],
            num_heads_kv=config["num_key_value_heads"],
        )
        spec.decoder.scale_embeddings = False
        spec.decoder.embeddings.weight = weights["model.embed_tokens.weight"]
        spec.decoder.projection.weight = weights["model.embed_tokens.weight"]
        spec.decoder.layer_norm.gamma = weights["model.norm.weight"]
        for number, layer in enumerate(spec.decoder.layer):
            _fill_layer(layer, f"model.layers.{number}.", weights)
        spec.register_vocabulary([str(token_id) for token_id in range(config["vocab_size"])])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
        spec.config.layer_norm_epsilon = config["rms_norm_eps"]
        return spec


def _fill_layer(layer: Any, prefix: str, weights: Weights) -> None:
    attention, mlp = layer.self_attention, layer.ffn
    attention.layer_norm.gamma = weights[prefix + "input_layernorm.weight"]
    mlp.layer_norm.gamma = weights[prefix + "post_attention_layernorm.weight"]
    for part in ("weight", "bias"):
        names = [f"{prefix}self_attn.{kind}_proj.{part}" for kind in "qkv"]
        if names[0] in weights:
            setattr(attention.linear[0], part, np.concatenate([weights[name] for name in names]))
    attention.linear[1].weight = weights[prefix + "self_attn.o_proj.weight"]
    mlp.linear_0.weight = weights[prefix + "mlp.gate_proj.weight"]
    mlp.linear_0_noact.weight = weights[prefix + "mlp.up_proj.weight"]
    mlp.linear_1.weight = weights[prefix + "mlp.down_proj.weight"]


if __name__ == "__main__":
    _Checkpoint(Path(sys.argv[1])).convert(sys.argv[2], quantization=sys.argv[3], force=True)
