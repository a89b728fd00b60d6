"""The chat template, rendered as the server and transformers render it."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trioserve.builtin import MODEL_DIR

TEMPLATE_PATH: Final = MODEL_DIR / "chat_template.jinja"


def render(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    *,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
) -> str:
    """The prompt text of a conversation."""
    return _template().render(
        messages=messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
    )


@cache
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE_PATH.read_text())


def _to_json(value: object) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML, which no model writes."""
    return json.dumps(value, ensure_ascii=False)
