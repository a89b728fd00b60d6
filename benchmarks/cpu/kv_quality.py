"""What a quantized KV cache costs in quality: logits and likeliest tokens of int8 and fp8 against bfloat16, all native.

    python -m benchmarks.cpu.kv_quality [--cases 10] [--tokens 1024] [--skip-random]

On the built-in model: held-out questions of every family with the answers that bfloat16 gives to them; at each token of
these answers, how far the logits are (Kullback-Leibler divergence, nats), and whether the likeliest token is the same.
On random weights of the shape of Qwen2.5-0.5B: the same at every token of a long random prompt; such a model is not
sure of anything, so a likeliest token says little there. A prompt is computed through the codes of its own tokens, as
a decode would be, so one pass over a text shows what an answer token by token would.
"""

import argparse
from collections.abc import Sequence
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.cpu.decoder import _COMMON, BLOCK_SIZE, SHAPES, Cell, make_batch
from trioserve.builtin import MODEL_DIR
from trioserve.builtin.cases import FAMILIES, cases
from trioserve.model.batch import CacheLayout, ForwardBatch, LayerCache
from trioserve.model.config import decoder_config, read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import dummy_weights, load_weights
from trioserve.model.native import Crew

FORMATS: Final = ("bfloat16", "int8", "fp8")
MAX_ANSWER: Final = 96
MAX_TOKENS: Final = 1024


class Reader:
    """A packed decoder with a cache of one format for one sequence."""

    def __init__(self, model: Decoder, name: str, num_tokens: int) -> None:
        layout = CacheLayout(name, model.config.head_dim)
        model.pack(Crew(torch.get_num_threads()), layout=layout)
        self._model = model
        self._caches: list[LayerCache] = [
            layout.empty(-(-num_tokens // BLOCK_SIZE), model.config.num_kv_heads, BLOCK_SIZE)
            for _ in range(model.config.num_hidden_layers)
        ]

    def logits(self, token_ids: Sequence[int], start: int = 0) -> Tensor:
        """Of every token of a text from ``start`` on, [num_tokens, vocab_size]; those before are in the cache."""
        count = len(token_ids) - start
        cell = Cell("", 1, count, len(token_ids))
        step = make_batch(cell, self._model.config.vocab_size)
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids[start:]),
            positions=step.positions,
            slot_mapping=step.slot_mapping,
            cu_seqlens_q=step.cu_seqlens_q,
            seq_lens=step.seq_lens,
            block_tables=step.block_tables,
            sample_rows=torch.arange(count),
        )
        return self._model.compute_logits(self._model(batch, self._caches)).clone()

    def answer(self, prompt: Sequence[int], eos: int) -> list[int]:
        """The prompt with the greedy answer to it."""
        text = list(prompt)
        while len(text) < len(prompt) + MAX_ANSWER and (len(text) == len(prompt) or text[-1] != eos):
            start = 0 if len(text) == len(prompt) else len(text) - 1
            text.append(int(self.logits(text, start)[-1].argmax()))
        return text


def show(table: Table, model: str, name: str, reference: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """A row: how far the distributions are that the logits of each text say."""
    expected, given = (torch.cat(list(logits)).double().log_softmax(-1) for logits in (reference, found))
    kl = (expected.exp() * (expected - given)).sum(-1)
    same = (expected.argmax(-1) == given.argmax(-1)).double().mean()
    numbers = (f"{kl.mean():.1e}", f"{kl.quantile(0.99):.1e}", f"{same:.2%}")
    table.add_row(model, name, str(len(kl)), *numbers)


def builtin(table: Table, num_cases: int) -> None:
    """What the built-in model loses."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    readers = {}
    for name in FORMATS:
        model = Decoder(read_config(MODEL_DIR), torch.bfloat16, num_positions=MAX_TOKENS)
        load_weights(model, MODEL_DIR)
        readers[name] = Reader(model, name, MAX_TOKENS)
    texts = []
    for case in (case for family in FAMILIES for case in cases(family, num_cases)):
        prompt = tokenizer.apply_chat_template(case.messages, add_generation_prompt=True, return_dict=False)
        texts.append((readers["bfloat16"].answer(prompt, tokenizer.eos_token_id)[:-1], len(prompt) - 1))
    logits = {
        name: [reader.logits(text)[first:] for text, first in texts] for name, reader in readers.items()
    }
    for name in FORMATS[1:]:
        show(table, "built-in", name, logits["bfloat16"], logits[name])


def random_weights(table: Table, num_tokens: int) -> None:
    """What a random model of the shape of Qwen2.5-0.5B loses."""
    config = decoder_config({**_COMMON, **SHAPES["M"]})
    prompt = torch.randint(
        config.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(3)
    ).tolist()
    reference: list[Tensor] = []
    for name in FORMATS:
        model = Decoder(config, torch.bfloat16, num_positions=num_tokens)
        dummy_weights(model, seed=0)
        found = [Reader(model, name, num_tokens).logits(prompt)]
        if name == FORMATS[0]:
            reference = found
        else:
            show(table, "random M", name, reference, found)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10, help="of each family of questions")
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS, help="of the random prompt")
    parser.add_argument("--skip-random", action="store_true")
    options = parser.parse_args()
    table = Table(title="against a cache of bfloat16")
    for heading in ("model", "cache", "tokens", "KL, mean", "KL, 99 %", "same likeliest token"):
        table.add_column(heading)
    builtin(table, options.cases)
    if not options.skip_random:
        random_weights(table, options.tokens)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
