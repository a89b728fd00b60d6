"""Fields that OpenAI, vLLM, FastDeploy or LMDeploy define and that are not obeyed here.

Nothing is merely accepted: such a field is refused by name, unless its value asks for nothing. Fields that
nobody defines are ignored, and so are hints that change no answer, such as ``prompt_cache_key`` and
``safety_identifier``. A field that becomes obeyed leaves this table for its request model.
"""

from collections.abc import Mapping
from typing import Any, Final

from trioserve.errors import UnsupportedParameter

_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})
"""Values with which any field asks for nothing."""

_TEXT_FORMAT: Final = {"type": "text"}

NOT_OBEYED: Final[Mapping[str, tuple[Any, ...]]] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": (_TEXT_FORMAT,),
    "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": (),
    # structured outputs
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "structured_outputs": (),
    # the prompt
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (),
    "disable_chat_template": (),
    "documents": (),
    "mm_processor_kwargs": (),
    "prompt_embeds": (),
    "prompt_token_ids": (),
    "truncate_prompt_tokens": (),
    # reasoning
    "enable_thinking": (),
    "include_reasoning": (True,),
    "reasoning_max_tokens": (),
    "thinking_budget": (),
    "thinking_token_budget": (),
    # sampling
    "allowed_token_ids": (),
    "bad_words": (),
    "bad_words_token_ids": (),
    "early_stopping": (),
    "length_penalty": (1.0,),
    "logits_processors": (),
    "logits_processors_args": (),
    "min_new_tokens": (),
    "repetition_detection": (),
    "temp_scaled_logprobs": (),
    "top_p_normalized_logprobs": (),
    "use_beam_search": (),
    # the answer
    "prompt_logprobs": (),
    "return_arrival_time": (),
    "return_token_ids": (),
    "return_tokens_as_token_ids": (),
    "spaces_between_special_tokens": (True,),
    "kv_transfer_params": (),
}

COMPLETIONS_NOT_OBEYED: Final[Mapping[str, tuple[Any, ...]]] = {"store": ()}
"""Of text completions only: chat obeys it."""

STREAM_OPTIONS_NOT_OBEYED: Final[Mapping[str, tuple[Any, ...]]] = {
    "continuous_usage_stats": (),
    "include_obfuscation": (),
}


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
            raise UnsupportedParameter(
                f"{prefix}{name} is not supported by this server; leave it out", param=prefix + name
            )
