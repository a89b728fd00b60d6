"""Chat answers put together again, and rooms of the house where the rank thinks and calls."""

import json
from typing import Any

from trioserve.parsers.dialects import Dialects
from trioserve.parsers.registry import Registry

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.reasoning_content or '' }}"
    "{{ message.content or '' }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
THINKING = "assistant\n<think>\n"
"""How prompts end that open the thinking."""
_REGISTRY = Registry.load()


def dialects(tools: str = "hermes", reasoning: str = "qwen3") -> Dialects:
    return Dialects(_REGISTRY.tool_dialect(tools), _REGISTRY.reasoning_dialect(reasoning))


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def custom(name: str) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": name}}


def call(name: str, **arguments: Any) -> str:
    """As the hermes family writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def choices(chunks: list[Any], index: int = 0) -> list[Any]:
    """What the chunks of a stream say of one choice."""
    return [choice for chunk in chunks[:-1] for choice in chunk["choices"] if choice["index"] == index]


def rebuilt(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """A choice's message, the sum of what a stream says; ids of calls are numbers."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for choice in choices(chunks, index):
        delta = dict(choice["delta"])
        for part in delta.pop("tool_calls", []):
            _add(calls.setdefault(part.pop("index"), {}), part)
        _add(message, delta)
    if calls:
        assert list(calls) == list(range(len(calls)))
        message["tool_calls"] = list(calls.values())
    return numbered(message)


def numbered(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what is null, random or empty."""
    kept = {name: value for name, value in message.items() if value not in (None, "")}
    for number, made in enumerate(kept.get("tool_calls", [])):
        assert made["id"].startswith("call_") and len(made["id"]) == 37
        made["id"] = number
    return kept


def _add(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            _add(whole.setdefault(name, {}), value)
        else:
            assert (
                name in ("content", "reasoning", "reasoning_content", "arguments", "input")
                or name not in whole
            )
            whole[name] = (whole.get(name) or "") + value if isinstance(value, str) else whole.get(name)
