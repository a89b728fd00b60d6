"""Tiny random checkpoints of every family, made by transformers, which is also what they are compared with."""

import copy
from collections.abc import Callable
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


def _seed_oss(**changes: Any) -> Any:
    return transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**SMALL | changes))


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
    "phi3-sliding": lambda: _phi3(sliding_window=9, num_hidden_layers=3),
    "seed-oss": lambda: _seed_oss(head_dim=32),
    "ernie-biased": lambda: _ernie(head_dim=32, use_bias=True),
}


class Checkpoints:
    """Makes each folder on first use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._models: dict[str, Any] = {}

    def folder(self, name: str, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB") -> Path:
        """The checkpoint ``name`` of MODELS on disk."""
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
            model = MODELS[name]().eval()
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


def prompt_of(length: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
