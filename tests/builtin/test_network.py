"""The training network computes what transformers' Llama computes, and learns."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from trioserve.builtin import MODEL_DIR
from trioserve.builtin.batches import Encoder, batches
from trioserve.builtin.folder import save_config, save_weights
from trioserve.builtin.network import Block, Network, Shape
from trioserve.builtin.train import Recipe, Trainer, rate_scale

_TINY = Shape(
    vocab_size=4096,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network(_TINY).bfloat16().float()  # what the file can hold
    save_config(_TINY, tmp_path)
    save_weights(network, tmp_path / "model.safetensors")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    token_ids = torch.randint(0, _TINY.vocab_size, (3 * 20 + 300,))
    positions = torch.cat((torch.arange(20).repeat(3), torch.arange(300) + 50))
    blocks = (Block(0, 3, 20), Block(60, 1, 300))
    with torch.no_grad():
        ours = network.logits(network(token_ids, positions, blocks))
        for block in blocks:
            stop = block.start + block.rows * block.length
            rows = (block.rows, block.length)
            wanted = theirs(
                input_ids=token_ids[block.start : stop].view(rows),
                position_ids=positions[block.start : stop].view(rows),
            ).logits
            torch.testing.assert_close(ours[block.start : stop].view(*rows, -1), wanted, atol=1e-4, rtol=1e-4)


def test_a_few_steps_lower_the_loss() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    trainer = Trainer(Recipe(num_steps=30, warmup_steps=2), _TINY, compiled=False)
    source = batches(Encoder(tokenizer), "learning", num_tokens=1024)
    losses = [trainer.step(number, batch) for number, batch in enumerate(itertools.islice(source, 30))]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(("step", "scale"), [(0, 0.1), (9, 1.0), (30, 1.0), (100, 0.0), (65, 0.5)])
def test_the_rates_rise_stay_and_fall(step: int, scale: float) -> None:
    recipe = Recipe(num_steps=100, warmup_steps=10, decay_share=0.7)
    assert rate_scale(recipe, step) == pytest.approx(scale)
