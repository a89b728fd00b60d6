"""Checkpoints of others: a folder of Hugging Face is served as transformers computes it, quantized or not."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.e2e.harness import TRIOSERVE, running_server
from tests.model.quantized import FORMS, Form, exact_int8, is_matrix_or_head, quantize_folder, write_twin
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


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one file."""
    path = tmp_path_factory.mktemp("single")
    tensors = {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}
    save_file(tensors, path / "model.safetensors")
    shutil.copy(folder / "config.json", path)
    return path


def greedy_text(log: Path, **settings: object) -> tuple[str, str]:
    """What a server with these settings appends to PROMPT, and the line of its log that says what computes."""
    with running_server(log, settings={"served_model_name": "fox", **settings}) as server:
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(server.url + "/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        lines = [line for line in server.log.splitlines() if "decoder " in line]
        return answer.json()["choices"][0]["text"], lines[0]


@pytest.mark.parametrize(
    ("form", "settings", "of_twin", "said"),
    [
        (
            exact_int8(),
            {},
            {"quantization": "int8", "dtype": "bfloat16"},
            "compressed-tensors int8 kept as it is",
        ),
        (FORMS["awq"], {"dtype": "float32"}, {"dtype": "float32"}, "awq int4 as float32"),
    ],
    ids=["int8", "awq"],
)
def test_a_quantized_folder_answers_as_its_dense_twin(
    single: Path,
    folder: Path,
    tmp_path: Path,
    form: Form,
    settings: dict[str, str],
    of_twin: dict[str, str],
    said: str,
) -> None:
    truth = quantize_folder(single, tmp_path / "quantized", form, which=is_matrix_or_head)
    write_twin(single, tmp_path / "twin", truth)
    for path in (tmp_path / "quantized", tmp_path / "twin"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, path / name)
    text, line = greedy_text(tmp_path / "log", model=tmp_path / "quantized", **settings)
    assert said in line
    assert text == greedy_text(tmp_path / "log2", model=tmp_path / "twin", **of_twin)[0]


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


def test_a_quantization_that_is_not_served_stops_the_start(
    single: Path, folder: Path, tmp_path: Path
) -> None:
    form = Form(
        {"quant_method": "gptq", "bits": 3, "group_size": 128}, FORMS["gptq"].write, None, has_packed=False
    )
    quantize_folder(single, tmp_path / "quantized", form)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "quantized" / name)
    settings = {"model": tmp_path / "quantized"}
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings, wait_ready=False) as server:
        assert server.wait(30) == 78
    assert "quantization_config.bits 3 is not served; served are 4, 8" in server.log
