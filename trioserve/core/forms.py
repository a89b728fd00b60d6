"""What an answer must look like, as requests ask for it: free of how a grammar is written and of who enforces it.

A form is plain data that crosses to other processes as JSON. ``grammars/`` makes a backend's grammar of it.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

# ---- whole answers ---------------------------------------------------------------------------------------------------


class JsonForm(Struct, frozen=True, tag="json", kw_only=True):
    """One JSON value."""

    schema: str
    """JSON text of the schema; ``{"type": "object"}`` where any object will do."""
    whitespace: str | None = None
    """A regular expression of the white space between its parts; None: the server's own choice."""


class RegexForm(Struct, frozen=True, tag="regex"):
    """Text that a regular expression matches from end to end."""

    pattern: str


class ChoiceForm(Struct, frozen=True, tag="choice"):
    """One of these texts."""

    choices: tuple[str, ...]


class GrammarForm(Struct, frozen=True, tag="grammar"):
    """Text of a context-free grammar: EBNF in the manner of GBNF (``root ::= ...``) or Lark (``start: ...``)."""

    text: str


class TagForm(Struct, frozen=True):
    """A stretch of an answer: ``begin``, then what ``content`` says, then ``end``."""

    begin: str
    content: "JsonForm | RegexForm | GrammarForm | FreeForm"
    end: str


class FreeForm(Struct, frozen=True, tag="free"):
    """Any text; inside a tag, up to the tag's end."""


class TagsForm(Struct, frozen=True, tag="tags", kw_only=True):
    """Free text in which each of ``triggers`` begins a tag."""

    tags: tuple[TagForm, ...]
    triggers: tuple[str, ...]
    """Each tag begins with one of them."""
    at_least_one: bool = False
    """Whether the answer begins with a tag at once."""
    stop_after_first: bool = False
    """Whether the answer ends with its first tag."""


# ---- tool calls ------------------------------------------------------------------------------------------------------


class JsonArguments(Struct, frozen=True, tag="json"):
    """The arguments are one JSON object."""

    schema: Mapping[str, Any]


class PythonArguments(Struct, frozen=True, tag="python"):
    """The arguments are ``name=literal``, joined by ", "; literals are Python's."""

    schema: Mapping[str, Any]


class ArgumentTags(Struct, frozen=True):
    """What stands around each argument that is written between tags.

    A string stands as it is, and does not contain ``end``; any other value is JSON.
    """

    begin: str
    """Before the name."""
    named: str
    """Between the name and a string."""
    named_json: str
    """Between the name and any other value."""
    end: str


class TaggedArguments(Struct, frozen=True, tag="tagged"):
    """The arguments follow each other between tags, in the order of the schema's properties."""

    schema: Mapping[str, Any]
    tags: ArgumentTags


Arguments = JsonArguments | PythonArguments | TaggedArguments


class CallFormat(Struct, frozen=True):
    """How a call of one tool is written: ``begin``, the arguments, ``end``."""

    name: str
    begin: str
    arguments: Arguments
    end: str


class ToolFormat(Struct, frozen=True):
    """How calls of some tools are written: ``begin call (separator call)* end``.

    Where a call is required, this is all that the model writes when it has thought. Where it may choose, it writes
    freely up to one of ``triggers``, each a beginning of what a call begins with; from there on it writes a call.
    """

    calls: tuple[CallFormat, ...]
    """One for each tool that may be called."""
    begin: str
    separator: str
    end: str
    triggers: tuple[str, ...]
    """Empty where free text cannot be told from a call before it is one."""
    max_calls: int | None
    """None: as many as the model likes."""


class CallsForm(Struct, frozen=True, tag="calls", kw_only=True):
    """Tool calls."""

    format: ToolFormat
    is_required: bool
    """Whether the answer is calls and nothing else; otherwise it is free text up to a trigger, and again behind
    calls."""
    otherwise: JsonForm | None = None
    """What the answer is where it is no call and calls are not required; None: free text."""


Body = JsonForm | RegexForm | ChoiceForm | GrammarForm | TagsForm | CallsForm


# ---- thinking --------------------------------------------------------------------------------------------------------


class ThinkingForm(Struct, frozen=True, kw_only=True):
    """Thinking that may come before the body."""

    begins: tuple[str, ...]
    """What begins it, where the prompt has not begun it."""
    ends: tuple[str, ...]
    is_open: bool
    """Whether the answer begins inside the thinking; otherwise it thinks or does not, as it likes."""
    space: str = "\n"
    """Characters between the end of the thinking and the body that belong to neither."""


class AnswerForm(Struct, frozen=True, kw_only=True):
    """A whole answer."""

    body: Body
    thinking: ThinkingForm | None = None
    """None: the body begins at once."""
