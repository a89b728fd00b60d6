"""How well the built-in model answers: ``python -m trioserve.builtin.evaluate [MODEL_DIR]``.

Greedy answers, by transformers, to held-out phrasings; an answer counts when it is exactly right.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from trioserve.builtin import MODEL_DIR
from trioserve.builtin.cases import FAMILIES, Case, cases, exactly, is_list_of

_BATCH_SIZE: Final = 50
_MAX_NEW_TOKENS: Final = 400

PINNED: Final = (
    Case(
        [{"role": "user", "content": "What is the capital of France?"}],
        exactly("The capital of France is Paris."),
        "Paris",
    ),
    Case(
        [{"role": "user", "content": "List 3 countries and their capitals."}],
        is_list_of("capitals", 3),
        "3 pairs",
    ),
)
"""Questions from the quickstart that must always be answered right."""


@dataclass(frozen=True, slots=True)
class Score:
    """What came of one family."""

    family: str
    wanted: float
    num_right: int
    num_cases: int
    wrong: tuple[tuple[Case, str], ...]
    """Cases answered wrong, with the answers."""

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_cases


class Model:
    """A Hugging Face folder that answers conversations in batches."""

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    @torch.inference_mode()
    def answers(self, batch: Sequence[Case]) -> list[str]:
        """Greedy answers, special tokens removed, markers of thinking and tool calls kept."""
        prompts = [
            self._tokenizer.apply_chat_template(
                case.messages,
                tools=case.tools or None,
                add_generation_prompt=True,
                enable_thinking=case.thinking,
                tokenize=False,
            )
            for case in batch
        ]
        inputs = self._tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        outputs = self._model.generate(
            **inputs, do_sample=False, temperature=None, top_p=None, max_new_tokens=_MAX_NEW_TOKENS
        )
        new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
        return list(self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True))


def score(model: Model, family: str, count: int) -> Score:
    """Ask ``count`` held-out cases of a family."""
    asked = list(cases(family, count))
    answered = [
        (case, answer)
        for batch in _batched(asked)
        for case, answer in zip(batch, model.answers(batch), strict=True)
    ]
    wrong = tuple((case, answer) for case, answer in answered if not case.is_right(answer))
    return Score(family, FAMILIES[family][0], count - len(wrong), count, wrong)


def report(scores: Sequence[Score]) -> Table:
    """The table that is printed."""
    table = Table("held-out family", "accuracy", "right", "wanted", title="Exact answers, greedy decoding")
    for each in scores:
        style = "green" if each.accuracy >= each.wanted else "red"
        accuracy = f"[{style}]{each.accuracy:.1%}[/{style}]"
        table.add_row(each.family, accuracy, f"{each.num_right}/{each.num_cases}", f"{each.wanted:.0%}")
    return table


def _batched(asked: Sequence[Case]) -> Iterator[list[Case]]:
    rest = iter(asked)
    while batch := list(itertools.islice(rest, _BATCH_SIZE)):
        yield batch


def _print_wrong(console: Console, scores: Sequence[Score], limit: int) -> None:
    for each in scores:
        for case, answer in each.wrong[:limit]:
            console.print(f"{each.family}: {case.messages[-1]['content']!r}", markup=False)
            console.print(f"  wanted {case.expected!r}\n  got    {answer!r}", markup=False)


def main() -> None:
    """Parse the arguments, ask, print; exits with 1 when a family misses its mark."""
    parser = argparse.ArgumentParser(description="Held-out accuracy of the built-in model.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=MODEL_DIR, help="model folder (default: the package's)"
    )
    parser.add_argument("--count", type=int, default=200, help="cases per family (default: %(default)s)")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="only these (default: all)")
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="print N wrong answers per family")
    args = parser.parse_args()
    console = Console()
    model = Model(args.folder)
    families = args.family or list(FAMILIES)
    scores = [score(model, family, args.count) for family in track(families, console=console, transient=True)]
    _print_wrong(console, scores, args.wrong)
    console.print(report(scores))
    pinned_right = True
    for case, answer in zip(PINNED, model.answers(PINNED), strict=True):
        pinned_right &= case.is_right(answer)
        console.print(f"{case.messages[0]['content']}\n{answer}", markup=False)
    raise SystemExit(0 if pinned_right and all(each.accuracy >= each.wanted for each in scores) else 1)


if __name__ == "__main__":
    main()
