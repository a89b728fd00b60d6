"""Tiny random checkpoints of every family, made by transformers, which is also what they are compared with."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers
from torch import Tensor

VOCAB_SIZE: Final = 160
SMALL: Final = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}


def _llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | changes))


def _scaled(kind: str, **parameters: Any) -> Any:
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **parameters}
    return _llama(rope_parameters=rope)


def _mistral(**changes: Any) -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL | changes))


def _qwen2(**changes: Any) -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL | changes))


def _qwen3(**changes: Any) -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL | changes))


def _ernie(**changes: Any) -> Any:
    return transformers.Ernie4_5ForCausalLM(transformers.Ernie4_5Config(**SMALL | changes))


def _phi3(**changes: Any) -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL | {"pad_token_id": 0} | changes))


def _long(original: int, **changes: Any) -> Any:
    """longrope; a sequence is long or short in all tests, for the tables have room for 256 tokens."""
    factors = {"short_factor": [1.0 + i / 9 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": original}
    return _phi3(rope_parameters=rope | factors, original_max_position_embeddings=original, **changes)


def _seed_oss(**changes: Any) -> Any:
    return transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**SMALL | changes))


def _made(family: str, **changes: Any) -> Any:
    """A causal model of ``family`` as transformers spells it."""
    config = getattr(transformers, f"{family}Config")(**SMALL | {"pad_token_id": 0} | changes)
    return getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config)


def _gemma(family: str, **changes: Any) -> Any:
    """Its scores are wide enough for the bounds to tell; attention as the bounds need it."""
    common = {"head_dim": 32, "query_pre_attn_scalar": 20, "attn_implementation": "eager"}
    return _made(family, **common | {"tie_word_embeddings": True} | changes)


def _two_ropes(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    return {"full_attention": plain | full, "sliding_attention": plain | sliding}


MODELS: Final[dict[str, Callable[[], Any]]] = {
    "llama": _llama,
    "llama-odd-heads-tied": lambda: _llama(
        num_attention_heads=9, num_key_value_heads=3, hidden_size=144, head_dim=16, tie_word_embeddings=True
    ),
    "llama-biased": lambda: _llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "llama-odd-width": lambda: _llama(head_dim=20, intermediate_size=90),
    "llama-llama3": lambda: _scaled(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "llama-linear": lambda: _scaled("linear"),
    "llama-yarn": lambda: _scaled("yarn", original_max_position_embeddings=64),
    "mistral": lambda: _mistral(sliding_window=None, head_dim=32),
    "mistral-sliding": lambda: _mistral(sliding_window=7, num_hidden_layers=3),
    "qwen2": lambda: _qwen2(tie_word_embeddings=True),
    "qwen2-sliding": lambda: _qwen2(
        use_sliding_window=True, sliding_window=9, max_window_layers=1, num_hidden_layers=3
    ),
    "qwen3": lambda: _qwen3(head_dim=32),
    "ernie": lambda: _ernie(head_dim=16, tie_word_embeddings=True),
    "phi3": _phi3,
    "phi3-long": lambda: _long(original=8),
    "phi3-short": lambda: _long(original=256, max_position_embeddings=1024),
    "phi3-sliding": lambda: _phi3(sliding_window=9, num_hidden_layers=3),
    "seed-oss": lambda: _seed_oss(head_dim=32),
    "ernie-biased": lambda: _ernie(head_dim=32, use_bias=True),
    "phi3-partial": lambda: _phi3(
        hidden_size=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
    ),
    "gemma": lambda: _made("Gemma", head_dim=32, tie_word_embeddings=True),
    "gemma2": lambda: _gemma(
        "Gemma2",
        num_hidden_layers=3,
        sliding_window=9,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0,
    ),
    "gemma2-untied": lambda: _gemma(
        "Gemma2", tie_word_embeddings=False, attention_bias=True, sliding_window=40
    ),
    "gemma3": lambda: _gemma(
        "Gemma3Text",
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=9,
        rope_parameters=_two_ropes({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, {}),
    ),
    "gemma3-bounded": lambda: _gemma(
        "Gemma3Text", num_hidden_layers=7, sliding_window=30, final_logit_softcapping=3.0
    ),
    "glm": lambda: _made("Glm", head_dim=32),
    "glm4": lambda: _made("Glm4", head_dim=32),
    "glm4-unbiased": lambda: _made("Glm4", head_dim=48, attention_bias=False),
    "granite": lambda: _made(
        "Granite",
        attention_multiplier=0.11,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logits_scaling=1.7,
        attention_bias=True,
        mlp_bias=True,
    ),
    "olmo2": lambda: _made("Olmo2"),
    "olmo3": lambda: _made(
        "Olmo3",
        num_hidden_layers=4,
        sliding_window=9,
        rope_parameters=_two_ropes(
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, {}
        ),
    ),
    "smollm3": lambda: _made("SmolLM3", num_hidden_layers=3, no_rope_layer_interval=2),
    "smollm3-sliding": lambda: _made(
        "SmolLM3",
        num_hidden_layers=3,
        no_rope_layers=[1, 0, 0],
        use_sliding_window=True,
        sliding_window=9,
        tie_word_embeddings=True,
    ),
    "cohere": lambda: _made("Cohere", tie_word_embeddings=True, logit_scale=0.7),
    "cohere2": lambda: _made("Cohere2", num_hidden_layers=4, sliding_window=9, attention_bias=True),
    "stablelm": lambda: _made("StableLm", hidden_size=320, initializer_range=0.07, use_qkv_bias=True),
    "stablelm-parallel": lambda: _made(
        "StableLm",
        use_parallel_residual=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    ),
}


_WIDE: Final = {
    "hidden_size": 256,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "initializer_range": 0.07,
}


def _wide(family: str, **changes: Any) -> Callable[[], Any]:
    """A model of heads of 64."""
    common = {"attn_implementation": "eager"} if family.startswith("Gemma") else {}
    return lambda: _made(family, **_WIDE | common | changes)


def _turned(part: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": part}


WIDE: Final[dict[str, Callable[[], Any]]] = {
    "llama-biased": _wide("Llama", attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "mistral-single": _wide("Mistral", sliding_window=21, head_dim=64, num_key_value_heads=4),
    "qwen3-tied": _wide("Qwen3", head_dim=64, num_key_value_heads=1, tie_word_embeddings=True),
    "phi3-partial": _wide("Phi3", rope_parameters=_turned(0.75)),
    "gemma2": _wide(
        "Gemma2",
        head_dim=64,
        query_pre_attn_scalar=30,
        sliding_window=21,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0,
        tie_word_embeddings=True,
    ),
    "gemma3": _wide(
        "Gemma3Text",
        head_dim=64,
        query_pre_attn_scalar=30,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=21,
        rope_parameters=_two_ropes({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, {}),
        final_logit_softcapping=3.0,
    ),
    "glm4": _wide("Glm4", head_dim=64),
    "granite": _wide(
        "Granite",
        attention_multiplier=0.07,
        embedding_multiplier=6.0,
        residual_multiplier=0.22,
        logits_scaling=1.7,
    ),
    "olmo2": _wide("Olmo2"),
    "olmo3-single": _wide(
        "Olmo3",
        num_key_value_heads=4,
        sliding_window=21,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=_two_ropes(
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, {}
        ),
    ),
    "smollm3": _wide("SmolLM3", no_rope_layers=[1, 0]),
    "cohere": _wide("Cohere", tie_word_embeddings=True, logit_scale=0.7),
    "cohere2": _wide("Cohere2", layer_types=["sliding_attention", "full_attention"], sliding_window=21),
    "stablelm": _wide("StableLm", use_qkv_bias=True),
    "stablelm-parallel": _wide("StableLm", use_parallel_residual=True, rope_parameters=_turned(0.5)),
}
"""A model of each way to depart from Llama, of sizes that GPUs' kernels take."""


class Checkpoints:
    """Makes each folder on first use."""

    def __init__(self, root: Path, models: Mapping[str, Callable[[], Any]] = MODELS) -> None:
        self._root = root
        self._made = models
        self._models: dict[str, Any] = {}

    def folder(self, name: str, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB") -> Path:
        """The checkpoint ``name`` on disk."""
        folder = self._root / f"{name}-{dtype}-{max_shard_size}".replace("torch.", "")
        if not folder.exists():
            model = copy.deepcopy(self.reference(name)).to(dtype)
            model.config.dtype = dtype
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    def reference(self, name: str) -> Any:
        """The same model in transformers, float32; its weights are the same in every run."""
        if name not in self._models:
            torch.manual_seed(sum(name.encode()))
            model = self._made[name]().eval()
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases and norms, which are born as 0 and 1
                    parameter.data += 0.2 * torch.randn_like(parameter)
            self._models[name] = model
        return self._models[name]

    @torch.inference_mode()
    def logits(self, name: str, token_ids: list[int]) -> Tensor:
        """transformers' logits at every position, [num_tokens, vocab_size]."""
        logits: Tensor = self.reference(name)(torch.tensor([token_ids]), use_cache=False).logits[0]
        return logits

    def greedy(self, name: str, prompt: list[int], num_tokens: int) -> list[int]:
        """What transformers appends to ``prompt``."""
        token_ids = list(prompt)
        for _ in range(num_tokens):
            token_ids.append(int(self.logits(name, token_ids)[-1].argmax()))
        return token_ids[len(prompt) :]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Checkpoints of every family, lazily."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # theirs
    torch.set_num_threads(1)  # the matrices are tiny, and the cores are shared
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def wide_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """The same for ``WIDE``."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # theirs
    torch.set_num_threads(1)
    return Checkpoints(tmp_path_factory.mktemp("wide"), WIDE)


def prompt_of(length: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
