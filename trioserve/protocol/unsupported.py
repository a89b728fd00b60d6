"""Fields that OpenAI, vLLM, SGLang, FastDeploy or LMDeploy define and that are not obeyed here.

Nothing is merely accepted: such a field is refused by name, unless its value asks for nothing. Fields that
nobody defines are ignored, or refused where the setting ``strict_requests`` says so. A field that becomes obeyed
leaves this table for its request model.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from trioserve.errors import UnsupportedParameter

_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})
"""Values with which any field asks for nothing."""

NOT_OBEYED: Final[Mapping[str, tuple[Any, ...]]] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "modalities": (["text"],),
    "moderation": (),
    "web_search_options": (),
    # the prompt
    "mm_processor_kwargs": (),
    "prompt_embeds": (),
    # sampling
    "early_stopping": (),
    "length_penalty": (1.0,),
    "logits_processors": (),
    "use_beam_search": (),
    # the answer
    "kv_transfer_params": (),
    # SGLang's; its router names them all in what it passes on
    "custom_logit_processor": (),
    "lora_path": (),
    "no_stop_trim": (),
    "return_hidden_states": (),
    "session_params": (),
    "stop_regex": (),
}

TOOLS_AND_THINKING: Final[Mapping[str, tuple[Any, ...]]] = {
    "include_reasoning": (True,),
    "logits_processors_args": (),
    "parallel_tool_calls": (True,),
    "reasoning_effort": ("none",),
    "reasoning_max_tokens": (),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "thinking_budget": (),
    "thinking_token_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
}
"""What only chat completions have, as text completions and sessions see it."""

CHAT_ONLY: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (),
    "disable_chat_template": (True,),
    "documents": (),
    "enable_thinking": (),
    "max_completion_tokens": (),
    "prediction": (),
    "store": (),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    **TOOLS_AND_THINKING,
}
"""What only conversations have, as text completions see it."""

STRUCTURED: Final[Mapping[str, tuple[Any, ...]]] = {
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": ("auto",),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "structured_outputs": (),
    "ebnf": (),
    "json_schema": (),
    "regex": (),
}
"""What asks for a form of the answer, as sessions see it."""

COMPLETIONS_ONLY: Final[Mapping[str, tuple[Any, ...]]] = {"best_of": (1,), "suffix": ()}
"""And the other way round."""

INJECTED: Final = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "data_parallel_rank",
        "request_id",
        "rid",
        "routed_dp_rank",
        "session_id",
        "trace_context",
    }
)
"""What routers in front of servers add to the requests that pass them; it asks for nothing here."""

_INSTEAD: Final = {"functions": "tools", "function_call": "tool_choice"}
"""What does the same here."""
_MAX_NAMES_TOLD: Final = 5
_MAX_NAME_CHARS: Final = 64


def refuse_unsupported(
    extra: Mapping[str, Any] | None,
    *,
    table: Mapping[str, tuple[Any, ...]] = NOT_OBEYED,
    prefix: str = "",
) -> None:
    """Refuse the first field of ``extra`` that ``table`` names and that asks for something.

    Raises:
        UnsupportedParameter: Names the field.
    """
    for name, value in (extra or {}).items():
        harmless = table.get(name)
        if harmless is not None and value not in _NOTHING and value not in harmless:
            advice = f"use {_INSTEAD[name]}" if name in _INSTEAD else "leave it out"
            raise UnsupportedParameter(
                f"{prefix}{name} is not supported by this server; {advice}", param=prefix + name
            )


def refuse_unknown(
    extra: Mapping[str, Any] | None, *, prefix: str = "", also_known: Collection[str] = ()
) -> None:
    """Refuse what no server defines, in ``extra``, the fields that a request model does not have.

    Args:
        also_known: Names that are defined for this request alone.
    Raises:
        UnsupportedParameter: Names the first few.
    """
    known = {*NOT_OBEYED, *CHAT_ONLY, *COMPLETIONS_ONLY, *INJECTED, *also_known}
    unknown = [
        prefix + name[:_MAX_NAME_CHARS]
        for name, value in (extra or {}).items()
        if name not in known and value is not None
    ]
    if unknown:
        more = f" and {len(unknown) - _MAX_NAMES_TOLD} more" if len(unknown) > _MAX_NAMES_TOLD else ""
        raise UnsupportedParameter(
            f"no such field: {', '.join(unknown[:_MAX_NAMES_TOLD])}{more}; this server refuses unknown fields",
            param=unknown[0],
        )
