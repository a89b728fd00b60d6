"""What quantized weights cost in quality: logits and greedy tokens of int8 and int4 against bf16, all native.

    python -m benchmarks.cpu.quality [--cases 10] [--skip-random] [--json FILE]

On the built-in model: held-out questions of every family, and the answers that bf16 gives to them; at each token of
these answers, how far the logits are (Kullback-Leibler divergence, nats), and whether the likeliest token is the same.
Then each model answers by itself: how many answers are the same, and how many are right. On random weights of the shape
of Qwen2.5-0.5B: the same at every token of random prompts; such a model is not sure of anything, so a likeliest token
says little there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.cpu.decoder import BLOCK_SIZE, SHAPES, make_config
from trioserve.builtin import MODEL_DIR
from trioserve.builtin.cases import FAMILIES, Case, cases
from trioserve.model.batch import ForwardBatch, LayerCache
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import dummy_weights, load_weights
from trioserve.model.native import Crew
from trioserve.model.native_matrices import QUANTIZATIONS, Quantization

MAX_ANSWER: Final = 96
BATCH_SIZE: Final = 32
MAX_TOKENS: Final = 1024
_RANDOM_PROMPTS: Final = 2
_RANDOM_TOKENS: Final = 256


class Distance(NamedTuple):
    """How far a model is from bf16, over all tokens compared."""

    tokens: int
    kl: float
    kl_p99: float
    agreement: float


class Reader:
    """A packed decoder with room for ``BATCH_SIZE`` sequences."""

    def __init__(self, model: Decoder, quantization: Quantization) -> None:
        self.name = model.pack(Crew(torch.get_num_threads()), quantization)
        self._model = model
        config = model.config
        shape = (BATCH_SIZE * MAX_TOKENS // BLOCK_SIZE, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        self._caches = [
            LayerCache(*(torch.zeros(shape, dtype=torch.bfloat16) for _ in "kv"))
            for _ in range(config.num_hidden_layers)
        ]

    def logits(self, token_ids: Sequence[int], first: int) -> Tensor:
        """Of the tokens from ``first`` on, [num_tokens - first, vocab_size]."""
        logits = self._step([token_ids], [0])
        return logits[first:].clone()

    def answer(self, prompts: Sequence[Sequence[int]], eos: int) -> list[list[int]]:
        """Greedy answers to up to ``BATCH_SIZE`` prompts, ended by ``eos`` or after ``MAX_ANSWER`` tokens."""
        answers = [[int(self._step([prompt], [0], slot)[-1].argmax())] for slot, prompt in enumerate(prompts)]
        for _ in range(MAX_ANSWER - 1):
            starts = [len(prompt) + len(answer) - 1 for prompt, answer in zip(prompts, answers, strict=True)]
            logits = self._step([answer[-1:] for answer in answers], starts)
            for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
                answer.append(token)
            if all(eos in answer for answer in answers):
                break
        return [answer[: answer.index(eos) + 1] if eos in answer else answer for answer in answers]

    def _step(self, pieces: Sequence[Sequence[int]], starts: Sequence[int], slot: int = 0) -> Tensor:
        """Logits after every token of ``pieces``, which lie at ``starts`` of the sequences from ``slot`` on."""
        num_blocks = MAX_TOKENS // BLOCK_SIZE
        lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int32)
        positions = [
            torch.arange(start, start + len(piece)) for start, piece in zip(starts, pieces, strict=True)
        ]
        places = [at + (slot + i) * MAX_TOKENS for i, at in enumerate(positions)]
        first = torch.arange(slot, slot + len(pieces), dtype=torch.int32)[:, None] * num_blocks
        batch = ForwardBatch(
            token_ids=torch.tensor([token for piece in pieces for token in piece]),
            positions=torch.cat(positions),
            slot_mapping=torch.cat(places),
            cu_seqlens_q=torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)]),
            seq_lens=torch.tensor(starts, dtype=torch.int32) + lengths,
            block_tables=first + torch.arange(num_blocks, dtype=torch.int32),
            sample_rows=torch.arange(int(lengths.sum())),
        )
        return self._model.compute_logits(self._model(batch, self._caches))


def distance(reference: Sequence[Tensor], found: Sequence[Tensor]) -> Distance:
    """Of the distributions that the logits of each text say."""
    kls, same = [], []
    for mine, theirs in zip(found, reference, strict=True):
        expected, given = theirs.double().log_softmax(-1), mine.double().log_softmax(-1)
        kls.append((expected.exp() * (expected - given)).sum(-1))
        same.append(mine.argmax(-1) == theirs.argmax(-1))
    kl = torch.cat(kls)
    return Distance(
        len(kl), float(kl.mean()), float(kl.quantile(0.99)), float(torch.cat(same).double().mean())
    )


def builtin(num_cases: int) -> dict[str, dict[str, float]]:
    """What the built-in model loses."""
    asked = [case for family in FAMILIES for case in cases(family, num_cases)]
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    prompts = [prompt_of(tokenizer, case) for case in asked]
    readers = {name: Reader(loaded(), name) for name in QUANTIZATIONS}
    answers = {name: answer_all(reader, prompts, tokenizer.eos_token_id) for name, reader in readers.items()}
    texts = [
        (prompt + answer[:-1], len(prompt) - 1)
        for prompt, answer in zip(prompts, answers["none"], strict=True)
    ]
    logits = {name: [reader.logits(*text) for text in texts] for name, reader in readers.items()}
    found: dict[str, dict[str, float]] = {}
    for name in readers:
        told = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers[name]]
        same = [mine == theirs for mine, theirs in zip(answers[name], answers["none"], strict=True)]
        right = [case.is_right(text) for case, text in zip(asked, told, strict=True)]
        found[name] = {
            **distance(logits["none"], logits[name])._asdict(),
            "same answers": sum(same) / len(same),
            "right answers": sum(right) / len(right),
        }
    return found


def random_weights() -> dict[str, dict[str, float]]:
    """What a random model of the shape of Qwen2.5-0.5B loses."""
    config = make_config("M")
    generator = torch.Generator().manual_seed(3)
    shape = (_RANDOM_PROMPTS, _RANDOM_TOKENS)
    prompts = torch.randint(config.vocab_size, shape, generator=generator).tolist()
    reference: list[Tensor] = []
    found: dict[str, dict[str, float]] = {}
    for name in QUANTIZATIONS:
        model = Decoder(config, torch.bfloat16, num_positions=MAX_TOKENS)
        dummy_weights(model, seed=0)
        reader = Reader(model, name)
        logits = [reader.logits(prompt, 0) for prompt in prompts]
        reference = reference or logits
        found[name] = distance(reference, logits)._asdict()
    return found


def prompt_of(tokenizer: Any, case: Case) -> list[int]:
    text = tokenizer.apply_chat_template(
        case.messages,
        tools=case.tools or None,
        add_generation_prompt=True,
        enable_thinking=case.thinking,
        tokenize=False,
    )
    token_ids: list[int] = tokenizer(text).input_ids
    return token_ids


def loaded() -> Decoder:
    model = Decoder(read_config(MODEL_DIR), torch.bfloat16, num_positions=MAX_TOKENS)
    load_weights(model, MODEL_DIR)
    return model


def answer_all(reader: Reader, prompts: list[list[int]], eos: int) -> list[list[int]]:
    batches = [prompts[at : at + BATCH_SIZE] for at in range(0, len(prompts), BATCH_SIZE)]
    return [answer for batch in batches for answer in reader.answer(batch, eos)]


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    table = Table("weights", *next(iter(found.values())), title=title)
    for name, numbers in found.items():
        cells = [f"{value:.4g}" for value in numbers.values()]
        table.add_row("bf16" if name == "none" else name, *cells)
    Console().print(table)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10, help="questions of each family")
    parser.add_argument("--skip-random", action="store_true", help="leave the random model out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    options = parser.parse_args()
    found = {"built-in": builtin(options.cases)}
    show("The built-in model", found["built-in"])
    if not options.skip_random:
        found["random"] = random_weights()
        show(f"Random weights, {SHAPES['M']['num_hidden_layers']} layers", found["random"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
