"""The body of a request is one, or is refused in a sentence; never anything else."""

# ruff: noqa: E501  # many words stand on few lines

import json
from typing import Any

from tests.fuzz.source import Source
from trioserve.errors import RequestError
from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.common import parse
from trioserve.protocol.completion import CompletionRequest
from trioserve.protocol.structured import check_lengths
from trioserve.settings import Settings

_SETTINGS = Settings()
_MODELS = (ChatCompletionRequest, CompletionRequest)
_FIELDS = sorted({name for model in _MODELS for name in model.model_fields} | {"zzz"})
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 300, 2**31, 2**63, -(2**63), 10**30, 0.5, -1.5, 1e308, "", "a", "auto", "none", "json"),
    *("\0", "é", "required", "text", "json_object", "json_schema", "function", "user", "assistant", "system", "tool", "1", "low"),
)  # fmt: skip
_NAMES = (
    *("role", "content", "type", "text", "function", "name", "parameters", "arguments", "id", "tool_calls", "json_schema", "schema"),
    *("include_usage", "regex", "choice", "grammar", "structures", "begin", "end", "triggers", "format", "1", "50", "strategy"),
)  # fmt: skip
SEEDS = (
    b'\0\0{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}',
    b'\0\0{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"tools":[{"type":"function"}]}',
    b'\0\1{"prompt":["a",[1,2]],"logit_bias":{"1":2},"stop":["a"]}',
    b'\0\0{"messages":"\xff"}',
    *(bytes([1, kind, *range(kind, 120, 7)]) for kind in range(6)),
)


def check(data: bytes) -> None:
    """Parse, check and read all that a handler reads before the engine is asked."""
    source = Source(data)
    is_made = source.flag()
    model: Any = source.pick(_MODELS)
    body = json.dumps(_body(source)).encode() if is_made else source.rest()
    refusal = "-"
    try:
        check_lengths(body, _SETTINGS)
        asked: Any = parse(model, body)
        asked.check(_SETTINGS)
        asked = asked.resolved()
        asked.asked_form()
        if isinstance(asked, ChatCompletionRequest):
            asked.tool_offer()
            if asked.prompt_ids is None:
                asked.template_messages()
    except RequestError as exc:
        refusal = str(exc)
    assert 0 < len(refusal) < 5000


def _body(source: Source) -> dict[str, Any]:
    given: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    for _ in range(source.byte() % 6):
        given[source.pick(_FIELDS)] = _value(source, 0)
    return given


def _value(source: Source, depth: int) -> Any:
    kind = source.byte() % 6
    if depth > 4 or source.is_empty or kind < 3:
        return source.pick(_VALUES)
    count = source.byte() % 4
    if kind == 3:
        return [_value(source, depth + 1) for _ in range(count)]
    return {source.pick(_NAMES): _value(source, depth + 1) for _ in range(count)}
