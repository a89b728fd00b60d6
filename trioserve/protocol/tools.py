"""The tools of a request: what may be called, what must be, and how the model is shown them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag

from trioserve.errors import InvalidRequest
from trioserve.protocol.common import FAIL_FAST, WireModel, refuse, shown
from trioserve.settings import LimitSettings

_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_ONE_TEXT: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}
"""The parameters of a custom tool, as models see it."""
_NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}

# ---- the wire --------------------------------------------------------------------------------------------------------


class FunctionDefinition(WireModel):
    """``function`` of a tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of an object."""
    strict: bool | None = None
    """Whether every call keeps to the schema."""


class GrammarDefinition(WireModel):
    """``grammar`` of a custom tool's format."""

    definition: str
    syntax: Literal["lark", "regex"]


class CustomFormat(WireModel):
    """``format`` of a custom tool."""

    type: Literal["text", "grammar"]
    grammar: GrammarDefinition | None = None
    """For the type grammar."""


class CustomDefinition(WireModel):
    """``custom`` of a tool: one that takes a text."""

    name: str
    description: str | None = None
    format: CustomFormat | None = None
    """Any text by default."""

    @property
    def grammar(self) -> GrammarDefinition | None:
        """What the text must be, where not any will do."""
        return self.format.grammar if self.format is not None and self.format.type == "grammar" else None


class ChatTool(WireModel):
    """A tool that the model may call; the field that is named as the type is."""

    type: Literal["function", "custom"]
    function: FunctionDefinition | None = None
    custom: CustomDefinition | None = None


class NamedTool(WireModel):
    """A tool's name."""

    name: str


class ToolReference(WireModel):
    """One of the request's tools."""

    type: Literal["function", "custom"]
    function: NamedTool | None = None
    custom: NamedTool | None = None


class AllowedTools(WireModel):
    """``allowed_tools`` of a choice."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], FAIL_FAST, Field(min_length=1)]


class NamedToolChoice(WireModel):
    """``tool_choice`` as an object: the one tool to call, or those that may be called."""

    type: Literal["function", "custom", "allowed_tools"]
    function: NamedTool | None = None
    custom: NamedTool | None = None
    allowed_tools: AllowedTools | None = None


def _kind_of_choice(value: Any) -> str | None:
    return "$word" if isinstance(value, str) else "$object" if isinstance(value, dict) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("$word")] | Annotated[NamedToolChoice, Tag("$object")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="tool_choice_type",
        custom_error_message="Input should be none, auto, required or an object that names tools",
    ),
]

# ---- what it comes to ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedTool:
    """A tool, whatever its kind."""

    name: str
    param: str
    """Its path in the request."""
    description: str | None
    parameters: Mapping[str, Any]
    """The schema of an object; of a custom tool, one with the property ``input``."""
    further: Mapping[str, Any]
    """Fields of its definition that nobody defines: the template gets them."""
    is_strict: bool = False
    is_custom: bool = False
    grammar: GrammarDefinition | None = None
    """What the input of a custom tool must be."""

    @property
    def for_template(self) -> dict[str, Any]:
        """As chat templates want it: always a function."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.parameters, **self.further}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOffer:
    """The tools of a request, and which of them the answer may call or must."""

    tools: tuple[OfferedTool, ...]
    """All that the model is shown, at least one."""
    callable: tuple[OfferedTool, ...]
    """Those that may be called, at least one."""
    is_required: bool
    """Whether the answer is a call."""
    is_named: bool
    """Whether the request names the one tool to call."""
    is_parallel: bool
    """Whether the answer may have several calls."""

    @property
    def is_restricted(self) -> bool:
        """Whether some tools are shown and may not be called."""
        return len(self.callable) < len(self.tools)


class ToolFields(WireModel):
    """Fields that speak of tools; null is the same as absent."""

    tools: Annotated[list[ChatTool], FAIL_FAST] | None = None
    tool_choice: ToolChoice | None = None
    """auto by default, where there are tools."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may have several calls; it may by default."""

    def check_tools(self, limits: LimitSettings) -> None:
        """Refuse tools that cannot be offered, and a choice that is none of theirs.

        Raises:
            InvalidRequest: Names the field.
        """
        tools = self.tools or []
        if len(tools) > limits.max_tools:
            raise InvalidRequest(
                f"tools: at most max_tools = {limits.max_tools}, not {len(tools)}", param="tools"
            )
        if not tools and self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice is only allowed when tools are specified", param="tool_choice")
        self.tool_offer()

    def tool_offer(self) -> ToolOffer | None:
        """What is offered; None where there are no tools, or none may be called.

        Raises:
            InvalidRequest: A tool or the choice is not what it should be.
        """
        tools = tuple(_offered(tool, f"tools.{i}") for i, tool in enumerate(self.tools or []))
        seen: set[str] = set()
        for tool in tools:
            if tool.name in seen:
                refuse(f"{tool.param}.name", "should be the only tool of its name", tool.name)
            seen.add(tool.name)
        choice = self.tool_choice
        if not tools or choice == "none":
            return None
        named = choice if isinstance(choice, NamedToolChoice) else None
        return ToolOffer(
            tools=tools,
            callable=tools if named is None else tuple(_chosen(named, tools)),
            is_required=choice == "required" or (named is not None and _requires(named)),
            is_named=named is not None and named.allowed_tools is None,
            is_parallel=self.parallel_tool_calls is not False,
        )


def _offered(tool: ChatTool, param: str) -> OfferedTool:
    definition = _of_its_type(tool, param)
    param = f"{param}.{tool.type}"
    if not _NAME.fullmatch(definition.name):
        refuse(f"{param}.name", "should be 1 to 64 letters, digits, _, - and .", definition.name)
    further = definition.model_extra or {}
    common = {"name": definition.name, "param": param, "description": definition.description}
    if isinstance(definition, CustomDefinition):
        if (
            definition.format is not None
            and definition.format.type == "grammar"
            and definition.grammar is None
        ):
            raise InvalidRequest(
                f"{param}.format.grammar: field required where the type is grammar",
                param=f"{param}.format.grammar",
            )
        return OfferedTool(
            **common, parameters=_ONE_TEXT, further=further, is_custom=True, grammar=definition.grammar
        )
    parameters = definition.parameters or _NO_PARAMETERS
    if parameters.get("type", "object") != "object":
        refuse(f"{param}.parameters.type", "the arguments of a call are an object", parameters["type"])
    return OfferedTool(**common, parameters=parameters, further=further, is_strict=bool(definition.strict))


def _of_its_type(part: Any, param: str) -> Any:
    """The field that is named as the type of ``part`` is.

    Raises:
        InvalidRequest: It is missing.
    """
    value = getattr(part, part.type)
    if value is None:
        raise InvalidRequest(
            f"{param}.{part.type}: field required where the type is {part.type}",
            param=f"{param}.{part.type}",
        )
    return value


def _requires(choice: NamedToolChoice) -> bool:
    return choice.allowed_tools is None or choice.allowed_tools.mode == "required"


def _chosen(choice: NamedToolChoice, tools: tuple[OfferedTool, ...]) -> Iterator[OfferedTool]:
    """The tools that the choice names, in the order of the request."""
    named: dict[tuple[str, bool], str] = {}
    for reference, param in _references(choice):
        name = _of_its_type(reference, param).name
        named[name, reference.type == "custom"] = f"{param}.{reference.type}.name"
    known = {(tool.name, tool.is_custom) for tool in tools}
    for (name, is_custom), param in named.items():
        if (name, is_custom) not in known:
            kind = "custom tool" if is_custom else "function"
            raise InvalidRequest(f"{param}: no {kind} {shown(name)} is among tools", param=param)
    yield from (tool for tool in tools if (tool.name, tool.is_custom) in named)


def _references(choice: NamedToolChoice) -> Iterator[tuple[Any, str]]:
    """What names a tool, each with its path in the request."""
    if choice.type != "allowed_tools":
        yield choice, "tool_choice"
        return
    allowed: AllowedTools = _of_its_type(choice, "tool_choice")
    for i, reference in enumerate(allowed.tools):
        yield reference, f"tool_choice.allowed_tools.tools.{i}"
