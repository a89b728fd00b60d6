"""What turning a token into text costs, against `tokenizers`' DecodeStream and two ways in pure Python.

    python benchmarks/detokenizer.py [--tokenizer FILE] [--rounds 31] [--json FILE]

Every way decodes the same tokens in turn, and is checked to give the same text. `prefix offsets` decodes a short
window of tokens twice for each new one and shows the difference, as most servers do; `byte table` looks pieces up in
a list and feeds Python's incremental UTF-8 decoder.
"""

import argparse
import codecs
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

import trioserve
from trioserve._speedups.detokenizer import Detokenizer, Vocabulary, feed_batch
from trioserve.output.vocabulary import load_vocabulary

BUILT_IN: Final = Path(trioserve.__file__).parent / "builtin" / "model" / "tokenizer.json"
TEXT: Final = (
    "The capital of France is Paris, and the capital of Japan is Tokyo.\n\n"
    '1. **Weather**: about 21 °C, "partly cloudy"; wind 12 km/h.\n'
    "2. Naïve façades, Straße, żółć; Привет, мир. 日本語のテキスト 🙂🚀\n"
    '```python\ndef area(radius: float) -> float:\n    return 3.14159 * radius**2\n```\n{"ok": true, "n": [1, 2, 3]}\n'
)
STOPS: Final = ("</answer>", "\n\n\n", "User:", "<|end|>")
NUM_STREAMS: Final = 256
TARGET_US: Final = 0.3
TARGET_RATIO: Final = 10

Feed = Callable[[int], str | None]


# ---- the ways --------------------------------------------------------------------------------------------------------


class PrefixOffsets:
    """Shows what a window of tokens adds to the text of the window without the new ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._prefix_at = 0
        self._read_at = 0

    def feed(self, token_id: int) -> str:
        self._token_ids.append(token_id)
        before = self._tokenizer.decode(self._token_ids[self._prefix_at : self._read_at])
        after = self._tokenizer.decode(self._token_ids[self._prefix_at :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._prefix_at, self._read_at = self._read_at, len(self._token_ids)
        return after[len(before) :]


class ByteTable:
    """A list of pieces and an incremental decoder, with a search for stop strings behind them."""

    def __init__(self, pieces: list[bytes], stops: tuple[str, ...] = ()) -> None:
        self._pieces = pieces
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = stops
        self._held = ""
        self._beginnings = {stop[:size] for stop in stops for size in range(1, len(stop))}
        self._longest = max(map(len, stops), default=1) - 1

    def feed(self, token_id: int) -> str:
        text = self._decode(self._pieces[token_id])
        if not self._stops:
            return text
        self._held += text
        for stop in self._stops:
            if stop in self._held:
                raise NotImplementedError("the text of this benchmark has no stop string")
        for size in range(min(self._longest, len(self._held)), 0, -1):
            if self._held[-size:] in self._beginnings:
                shown, self._held = self._held[:-size], self._held[-size:]
                return shown
        shown, self._held = self._held, ""
        return shown


def decode_stream(tokenizer: Tokenizer) -> Feed:
    stream = DecodeStream(skip_special_tokens=True)
    return lambda token_id: stream.step(tokenizer, token_id)


def ways(tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Callable[[], Feed]]:
    """Each way of decoding: a call begins a text and returns its feed."""
    pieces = [vocabulary.piece(token_id) for token_id in range(vocabulary.size)]
    return {
        "DecodeStream": lambda: decode_stream(tokenizer),
        "prefix offsets": lambda: PrefixOffsets(tokenizer).feed,
        "byte table": lambda: ByteTable(pieces).feed,
        "byte table, 4 stops": lambda: ByteTable(pieces, STOPS).feed,
        "feed": lambda: Detokenizer(vocabulary).feed,
        "feed, 4 stops": lambda: Detokenizer(vocabulary, stop=STOPS).feed,
    }


# ---- what is measured ------------------------------------------------------------------------------------------------


def time_feed(feed: Feed, token_ids: list[int]) -> tuple[float, str]:
    """Microseconds a token, and the text."""
    start = time.perf_counter()
    shown = [feed(token_id) for token_id in token_ids]
    us = (time.perf_counter() - start) / len(token_ids) * 1e6
    return us, "".join(text or "" for text in shown)


def time_batch(vocabulary: Vocabulary, stop: tuple[str, ...], token_ids: list[int]) -> tuple[float, str]:
    """The same for 256 streams that each get every token; the text is that of the first."""
    streams = [Detokenizer(vocabulary, stop=stop) for _ in range(NUM_STREAMS)]
    steps = [[token_id] * NUM_STREAMS for token_id in token_ids]
    start = time.perf_counter()
    shown = [feed_batch(streams, step)[0] for step in steps]
    us = (time.perf_counter() - start) / len(token_ids) / NUM_STREAMS * 1e6
    return us, "".join(shown)


def compare(tokenizer: Tokenizer, vocabulary: Vocabulary, rounds: int) -> dict[str, float]:
    """The median microseconds a token of each way, run in turn."""
    token_ids = tokenizer.encode(TEXT * 5 + "That is all.").ids  # an end that no way holds back
    whole = tokenizer.decode(token_ids)
    runs: dict[str, Callable[[], tuple[float, str]]] = {
        name: lambda begin=begin: time_feed(begin(), token_ids)  # type: ignore[misc]
        for name, begin in ways(tokenizer, vocabulary).items()
    }
    runs["feed_batch of 256"] = lambda: time_batch(vocabulary, (), token_ids)
    runs["feed_batch of 256, 4 stops"] = lambda: time_batch(vocabulary, STOPS, token_ids)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            us, text = run()
            taken[name].append(us)
            if text != whole:
                raise SystemExit(f"{name} gives another text than decoding the whole")
    return {name: statistics.median(each) for name, each in taken.items()}


def grow(tokenizer: Tokenizer, vocabulary: Vocabulary, rounds: int) -> dict[str, dict[int, float]]:
    """The median microseconds a token of 100 tokens after the first 100 and after the first 10,000."""
    token_ids = tokenizer.encode(TEXT * 200).ids
    result: dict[str, dict[int, float]] = {}
    for name, begin in ways(tokenizer, vocabulary).items():
        taken: dict[int, list[float]] = {100: [], 10_000: []}
        for _ in range(rounds):
            feed = begin()
            at = 0
            for length, each in taken.items():
                for token_id in token_ids[at:length]:
                    feed(token_id)
                at = length + 100
                each.append(time_feed(feed, token_ids[length:at])[0])
        result[name] = {length: statistics.median(each) for length, each in taken.items()}
    return result


# ---- the report ------------------------------------------------------------------------------------------------------


def show(costs: dict[str, float], growth: dict[str, dict[int, float]], console: Console) -> None:
    table = Table(title="one token to text; the speedup is over DecodeStream")
    for heading in ("way", "us a token", "speedup", "after 100", "after 10,000"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, us in costs.items():
        lengths = [f"{us:.3f}" for us in growth.get(name, {}).values()] or ["", ""]
        table.add_row(name, f"{us:.3f}", f"{costs['DecodeStream'] / us:.1f}x", *lengths)
    console.print(table)
    console.print(f"aimed at: {TARGET_US} us a token, {TARGET_RATIO}x DecodeStream")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", default=BUILT_IN, help="a tokenizer.json")
    parser.add_argument("--rounds", type=int, default=31, help="alternating runs of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    start = time.perf_counter()
    vocabulary = load_vocabulary(tokenizer)
    load_ms = (time.perf_counter() - start) * 1e3
    costs = compare(tokenizer, vocabulary, arguments.rounds)
    growth = grow(tokenizer, vocabulary, min(arguments.rounds, 5))
    console = Console()
    show(costs, growth, console)
    console.print(f"load_vocabulary of {vocabulary.size:,} tokens: {load_ms:.0f} ms")
    if arguments.json:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        numbers = {"us_a_token": costs, "us_a_token_at_length": growth, "load_ms": load_ms}
        arguments.json.write_text(json.dumps(machine | numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
