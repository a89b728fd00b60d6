"""Checkpoints of others: a Hugging Face folder is served as transformers computes it."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from tests.e2e.harness import TRIOSERVE, running_server
from trioserve.builtin import MODEL_DIR

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 in two shards, with the built-in tokenizer and without a chat template."""
    path = tmp_path_factory.mktemp("qwen3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    model = transformers.Qwen3ForCausalLM(config)
    model.save_pretrained(path, max_shard_size="600KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, path / name)
    return path


def test_greedy_tokens_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0)
    expected_text = tokenizer.decode(expected[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    settings = {"model": folder, "dtype": "float32", "served_model_name": "fox"}
    with running_server(tmp_path / "log", settings=settings) as server:
        answer = httpx.post(
            server.url + "/v1/completions",
            json={"model": "fox", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True},
        )
        assert answer.json()["choices"][0]["text"] == expected_text
        assert answer.json()["model"] == "fox"
        chat = httpx.post(
            server.url + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}
        )
        assert (chat.status_code, chat.json()["error"]["code"]) == (400, "no_chat_template")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [("truncate", "model-00001"), ("remove", "holds no weights"), ("pickle", "safetensors")],
)
def test_a_damaged_folder_stops_the_start_with_its_reason(
    folder: Path, tmp_path: Path, damage: str, sentence: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    first = min(broken.glob("*.safetensors"))
    if damage == "truncate":
        first.write_bytes(first.read_bytes()[:-1000])
    else:
        for path in [*broken.glob("*.safetensors"), broken / "model.safetensors.index.json"]:
            path.unlink()
    if damage == "pickle":
        (broken / "pytorch_model.bin").write_bytes(b"anything")
    with running_server(
        tmp_path / "log", command=TRIOSERVE, settings={"model": broken}, wait_ready=False
    ) as server:
        assert server.wait(30) == 78
    assert sentence in server.log
