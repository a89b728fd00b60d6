"""What telling thinking, content and tool calls apart costs for each delta of text.

    python benchmarks/parsers.py [--families NAME ...] [--rounds 15] [--json FILE]

A text of four kinds of passages comes in pieces of four characters, about a token each: thinking, content, calls whose
arguments are long strings, and calls of many short ones. Times are of the thread, per piece.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from trioserve.core.forms import Arguments, JsonArguments, PythonArguments
from trioserve.core.sequence import FinishReason
from trioserve.parsers.dialects import ReasoningDialect, ToolDialect, open_parser
from trioserve.parsers.parser import gather
from trioserve.parsers.registry import Registry
from trioserve.parsers.tools import Tool

PIECE_CHARS: Final = 4
TYPES: Final = {"path": "string", "text": "string", "mode": "integer"}
WRITE: Final = Tool(
    "write_file", {"type": "object", "properties": {name: {"type": kind} for name, kind in TYPES.items()}}
)
PROSE: Final = (
    "The capital of France is Paris; if a < b and b < c, then a < c. Naïve façades cost 3.50 € [see 1].\n"
    * 60
)
CODE: Final = 'def area(radius):\n    return 3.14159 * radius**2  # <br> "quoted" \\ é\n' * 60


def passages(tools: ToolDialect, reasoning: ReasoningDialect) -> Iterator[tuple[str, str, str]]:
    """What a passage is called, the text before it, and the passage."""
    form = tools.format([WRITE])
    assert form is not None
    call = form.calls[0]
    channel = "<|channel|>final<|message|>" if tools.is_channels else ""
    before = f"So.{reasoning.form.forced_end}"

    def written(arguments: dict[str, object]) -> str:
        return form.begin + call.begin + arguments_text(call.arguments, arguments) + call.end + form.end

    yield "thinking", "", PROSE
    yield "content", before + channel, PROSE
    yield "long string", before, written({"path": "area.py", "text": CODE})
    yield "short values", before, written({f"key{i}": i for i in range(300)})


def arguments_text(style: Arguments, arguments: dict[str, object]) -> str:
    """The arguments as the family writes them."""
    if isinstance(style, JsonArguments):
        return json.dumps(arguments, ensure_ascii=False)
    if isinstance(style, PythonArguments):
        return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    tags = style.tags
    return "".join(
        f"{tags.begin}{name}{tags.named if isinstance(value, str) else tags.named_json}{value}{tags.end}"
        for name, value in arguments.items()
    )


def us_per_piece(tools: ToolDialect, reasoning: ReasoningDialect, before: str, text: str) -> float:
    """Microseconds of one round; everything but the passage itself is fed beforehand."""
    parser = open_parser(reasoning, tools, offered=[WRITE], prompt="open")
    pieces = [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]
    events = parser.feed(before)
    began = time.thread_time()
    for piece in pieces:
        events += parser.feed(piece)
    spent = time.thread_time() - began
    events += parser.flush(FinishReason.STOP)
    found = gather(events)
    said = len(found.reasoning) + len(found.content) + sum(len(call.arguments) for call in found.calls)
    assert said > len(text) // 4, f"{tools.name} lost the passage"
    assert all(call.is_whole for call in found.calls)
    return spent / len(pieces) * 1e6


def measured(families: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """The median of each passage, by family."""
    registry = Registry.load()
    results: dict[str, dict[str, float]] = {}
    for name in families:
        tools = registry.tools[name]
        reasoning = registry.reasoning["openai_gptoss" if tools.is_channels else "qwen3"]
        results[name] = {
            kind: statistics.median(us_per_piece(tools, reasoning, before, text) for _ in range(rounds))
            for kind, before, text in passages(tools, reasoning)
        }
    return results


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    default = "hermes qwen3_coder deepseek_v31 pythonic openai".split()
    options.add_argument("--families", nargs="+", default=default, help="names of tool parsers")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--json", type=Path, help="write the results here, too")
    asked = options.parse_args()
    results = measured(asked.families, asked.rounds)
    kinds = list(next(iter(results.values())))
    table = Table(
        "family",
        *kinds,
        title=f"µs for each piece of {PIECE_CHARS} characters, Python {platform.python_version()}",
    )
    for name, times in results.items():
        table.add_row(name, *(f"{times[kind]:.2f}" for kind in kinds))
    Console().print(table)
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
