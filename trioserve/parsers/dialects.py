"""What is known of a family, and the parser of one answer made of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trioserve.core.forms import ToolFormat
from trioserve.parsers.channels import Channels
from trioserve.parsers.formats import ToolShape
from trioserve.parsers.machine import TextParser
from trioserve.parsers.parser import Parser
from trioserve.parsers.reasoning import PromptThinking, ReasoningFormat, ReasoningParser
from trioserve.parsers.tools import Tool, ToolSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDialect:
    """How a family calls tools. A plugin provides one of these."""

    name: str
    open: Callable[[ToolSet], TextParser]
    """Makes the parser of one answer."""
    shape: ToolShape | None = None
    """How calls are written; None: they cannot be required by a grammar."""
    shows_special_tokens: bool = False
    """Whether markers are special tokens, so that the text must not leave those out."""
    is_channels: bool = False
    """Whether calls cannot be told from thinking by themselves: the family's reasoning parser finds them."""

    def format(self, tools: Iterable[Tool], *, parallel: bool = True) -> ToolFormat | None:
        """How calls of ``tools`` are written; to require one of them, give that alone and not ``parallel``."""
        return None if self.shape is None else self.shape.format(tools, parallel=parallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDialect:
    """How a family thinks. A plugin provides one of these."""

    name: str
    form: ReasoningFormat
    open: Callable[[PromptThinking], ReasoningParser]
    """Makes the parser of one answer."""
    is_channels: bool = False
    """Whether the same text tells calls, too."""


@dataclass(frozen=True, slots=True)
class Dialects:
    """How the model that is served calls tools and thinks; None: it does not, or nobody knows how."""

    tools: ToolDialect | None = None
    reasoning: ReasoningDialect | None = None
    opens_thinking: bool = False
    """Whether the model's template begins the thinking itself where it is switched on: where a prompt does not, the
    answer is to do without."""


def open_parser(
    reasoning: ReasoningDialect | None,
    tools: ToolDialect | None,
    *,
    offered: Iterable[Tool] = (),
    prompt: PromptThinking = "unsaid",
) -> Parser:
    """The parser of one answer.

    Args:
        reasoning: None: thinking, if any, stays in the content.
        tools: None: calls, if any, stay in the content, as where a request offers none.
        offered: The tools that may be called.
        prompt: What ``reasoning.form.prompt_thinking`` says of the prompt's end.
    """
    if (reasoning and reasoning.is_channels) or (tools and tools.is_channels):
        called = ToolSet(offered) if tools and tools.is_channels else None
        behind = tools.open(ToolSet(offered)) if tools and not tools.is_channels else None
        return Parser(Channels(called, is_thinking=prompt == "open"), behind)
    return Parser(
        None if reasoning is None else reasoning.open(prompt),
        None if tools is None else tools.open(ToolSet(offered)),
    )
