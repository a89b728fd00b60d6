"""What the answer to a conversation must look like: from the tools, the form and the thinking of its request."""

from collections.abc import Mapping
from typing import Any, Final

from trioserve.core.forms import AnswerForm, Body, CallsForm, GrammarForm, JsonForm, ThinkingForm, ToolFormat
from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.parsers.custom_input import INPUT
from trioserve.parsers.dialects import ToolDialect
from trioserve.parsers.reasoning import PromptThinking, ReasoningFormat
from trioserve.parsers.tools import Tool
from trioserve.protocol.tools import OfferedTool, ToolOffer

Asked = tuple[Body, str]
"""A form, and the field of the request that asks for it."""
_LARK: Final = "lark"


def answer_form(
    asked: Asked | None,
    offer: ToolOffer | None,
    dialect: ToolDialect | None,
    thinking: ThinkingForm | None,
) -> tuple[AnswerForm, str] | None:
    """The form that the answer must have, and the field that says what it is; None for any text.

    Args:
        asked: What the request's own fields of that kind ask for.
        offer: The tools that the answer may call.
        dialect: How the model calls them; there is one where there is an offer.

    Raises:
        InvalidRequest: The fields do not go together.
        UnsupportedParameter: The model's family has no form of calls that can be required.
    """
    wanted = asked if offer is None else _calls(asked, offer, dialect)
    if wanted is None:
        return None
    body, param = wanted
    return AnswerForm(body=body, thinking=thinking), param


def thinking_form(form: ReasoningFormat, prompt: PromptThinking) -> ThinkingForm | None:
    """How the answer may think before all else; None where the prompt has left the thinking behind."""
    if prompt == "closed":
        return None
    is_open = prompt == "open" or form.is_inside
    return ThinkingForm(begins=form.begins, ends=form.ends, is_open=is_open, space=form.space)


def given_input(offer: ToolOffer | None) -> OfferedTool | None:
    """The custom tool whose input the whole answer is: the only one that may be called, with a grammar of its own."""
    if offer is None or not offer.is_required or len(offer.callable) != 1:
        return None
    (tool,) = offer.callable
    return tool if _has_own_grammar(tool) else None


def parsed_tools(offer: ToolOffer) -> list[Tool]:
    """The tools as the parsers of calls want them."""
    return [Tool(tool.name, tool.parameters) for tool in offer.tools]


def _calls(asked: Asked | None, offer: ToolOffer, dialect: ToolDialect | None) -> Asked | None:
    if (only := given_input(offer)) is not None and only.grammar is not None:
        return GrammarForm(only.grammar.definition), f"{only.param}.format.grammar.definition"
    for tool in offer.callable:
        if _has_own_grammar(tool):
            param = f"{tool.param}.format.grammar.syntax"
            raise UnsupportedParameter(
                f"{param}: a {_LARK} grammar is kept to where tool_choice requires this one tool; "
                "elsewhere use regex",
                param=param,
            )
    otherwise = None if offer.is_required else _otherwise(asked)
    reason = _reason(offer) if otherwise is None or asked is None else asked[1]
    if reason is None:
        return None
    form = CallsForm(
        format=_format(offer, dialect, reason), is_required=offer.is_required, otherwise=otherwise
    )
    return form, _place(offer) if otherwise is None or asked is None else asked[1]


def _place(offer: ToolOffer) -> str:
    """The field that is at fault where the form of the calls cannot be used."""
    if len(offer.callable) > 1:
        return "tools"
    (tool,) = offer.callable
    return f"{tool.param}.{'format' if tool.is_custom else 'parameters'}"


def _otherwise(asked: Asked | None) -> JsonForm | None:
    """What an answer that calls nothing is.

    Raises:
        InvalidRequest: Something else than JSON.
    """
    if asked is None:
        return None
    body, param = asked
    if not isinstance(body, JsonForm):
        raise InvalidRequest(f"{param}: beside tools an answer is free text or JSON", param=param)
    return body


def _reason(offer: ToolOffer) -> str | None:
    """The field for which calls are to be kept to a form; None where the model may write them as it likes."""
    if offer.is_required or offer.is_restricted:
        return "tool_choice"
    if not offer.is_parallel:
        return "parallel_tool_calls"
    bound = (f"{tool.param}.{_bound_by(tool)}" for tool in offer.callable if _bound_by(tool))
    return next(bound, None)


def _bound_by(tool: OfferedTool) -> str:
    """The field that says how the arguments must look; empty where they are the model's own affair."""
    return "strict" if tool.is_strict else "format" if tool.grammar is not None else ""


def _format(offer: ToolOffer, dialect: ToolDialect | None, param: str) -> ToolFormat:
    tools = [Tool(tool.name, _schema(tool)) for tool in offer.callable]
    is_parallel = offer.is_parallel and not offer.is_named
    found = None if dialect is None else dialect.format(tools, parallel=is_parallel)
    if dialect is None or found is None or (not found.triggers and not offer.is_required):
        name = "none" if dialect is None else dialect.name
        raise UnsupportedParameter(
            f"{param}: the calls of this model (tool_call_parser {name}) cannot be kept to a form"
            + ("" if offer.is_required else ", unless tool_choice requires them"),
            param=param,
        )
    return found


def _schema(tool: OfferedTool) -> Mapping[str, Any]:
    """The schema that the arguments keep to."""
    if not tool.is_custom:
        return {"type": "object", **tool.parameters}
    text: dict[str, Any] = {"type": "string"}
    if tool.grammar is not None:
        text["pattern"] = f"^(?:{tool.grammar.definition})$"
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}


def _has_own_grammar(tool: OfferedTool) -> bool:
    return tool.grammar is not None and tool.grammar.syntax == _LARK
