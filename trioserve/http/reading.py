"""How the answers to one conversation are read: which parsers find what in the model's text."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from trioserve.core.forms import ThinkingForm
from trioserve.core.sampling import ThinkingBudget
from trioserve.errors import UnsupportedParameter
from trioserve.http.answer_form import given_input, parsed_tools, thinking_form
from trioserve.http.services import ServedModel
from trioserve.parsers.custom_input import GivenCall
from trioserve.parsers.dialects import ReasoningDialect, ToolDialect, open_parser
from trioserve.parsers.parser import Parser
from trioserve.parsers.reasoning import PromptThinking, ReasoningFormat
from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.tools import ToolOffer

_NUM_LAST_TOKENS: Final = 64
"""Of a prompt: they tell whether it ends inside the thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of the answers before there are any."""

    reasoning: ReasoningDialect | None
    """None: thinking stays in the content."""
    tools: ToolDialect | None
    """None: calls, if any, stay in the content."""
    offer: ToolOffer | None
    prompt: PromptThinking
    tells_reasoning: bool
    """Whether the client is told what the model thought."""
    streams_reasoning: bool
    """Whether it is told piece by piece."""
    thinking: ThinkingForm | None
    """How an answer may think before it must have a form."""
    budget: ThinkingBudget | None

    @property
    def needs_special_tokens(self) -> bool:
        """Whether the text must not leave special tokens out, because they mark its parts."""
        form = None if self.reasoning is None else self.reasoning.form
        return bool(form and form.shows_special_tokens) or bool(
            self.tools and self.tools.shows_special_tokens
        )

    def parser(self) -> Parser:
        """The parser of one answer."""
        tool = given_input(self.offer)
        if tool is not None:
            reasoning = None if self.reasoning is None else self.reasoning.open(self.prompt)
            return Parser(reasoning, GivenCall(tool.name))
        offered = [] if self.offer is None else parsed_tools(self.offer)
        return open_parser(self.reasoning, self.tools, offered=offered, prompt=self.prompt)


def check_offer(
    served: ServedModel, asked: ChatCompletionRequest, *, has_own_template: bool
) -> ToolOffer | None:
    """The tools that the request offers, if the model can be shown them and its calls be read.

    Args:
        has_own_template: Whether the request brings the template that shows them.

    Raises:
        UnsupportedParameter: It cannot.
    """
    offer = asked.tool_offer()
    if offer is None:
        return None
    if served.dialects.tools is None:
        raise UnsupportedParameter(
            "tools: this server cannot read the model's calls: its setting tool_call_parser names no parser, "
            "or found none by the chat template",
            param="tools",
        )
    if asked.uses_template and not has_own_template and not served.renderer.reads("tools", has_tools=True):
        raise UnsupportedParameter("tools: the model's chat template does not show tools", param="tools")
    return offer


def reading_of(
    asked: ChatCompletionRequest, offer: ToolOffer | None, served: ServedModel, prompt: list[int]
) -> Reading:
    """How the answers to ``prompt`` are read."""
    dialects, renderer = served.dialects, served.renderer
    is_separate = asked.separate_reasoning is not False
    where: PromptThinking = "unsaid"
    thinking = budget = None
    if dialects.reasoning is not None:
        form = dialects.reasoning.form
        where = prompt_thinking(
            form, renderer.ends_with(prompt, num_tokens=_NUM_LAST_TOKENS), continued=asked.continued
        )
        thinking = thinking_form(form, where)
        encode = partial(renderer.tokenizer.encode, add_special_tokens=False)
        if thinking is not None:
            budget = _budget(form, thinking, asked.thinking_tokens, encode)
            if dialects.opens_thinking and not (thinking.is_open or asked.chat_template):
                thinking = None  # it may come all the same where nothing is asked for, but no form leaves room for it
    return Reading(
        reasoning=dialects.reasoning if is_separate else None,
        tools=None if offer is None else dialects.tools,
        offer=offer,
        prompt=where,
        tells_reasoning=asked.include_reasoning is not False,
        streams_reasoning=asked.stream_reasoning is not False,
        thinking=thinking,
        budget=budget,
    )


def prompt_thinking(form: ReasoningFormat, prompt_end: str, *, continued: str | None) -> PromptThinking:
    """Whether the answer begins inside the thinking.

    Args:
        continued: What the assistant has said already of the message that the answer goes on with.
    """
    if not continued:
        return form.prompt_thinking(prompt_end)
    last_begin = max(continued.rfind(begin) for begin in form.begins)
    last_end = max(continued.rfind(end) for end in form.ends)
    return "open" if last_begin > last_end else "closed"


def _budget(
    form: ReasoningFormat,
    thinking: ThinkingForm,
    max_tokens: int | None,
    encode: Callable[[str], list[int]],
) -> ThinkingBudget:
    return ThinkingBudget(
        begins=thinking.begins,
        ends=thinking.ends,
        is_open=thinking.is_open,
        max_tokens=max_tokens,
        forced_end=tuple(encode(form.forced_end)),
    )
