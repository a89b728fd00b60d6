"""Chat templates: Jinja in a sandbox, rendered as transformers' ``apply_chat_template`` renders them."""

import json
import re
import secrets
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trioserve.errors import InvalidRequest, ModelError, NoChatTemplate, SettingsError
from trioserve.prompt.files import read_json

_MAX_REASON_CHARS: Final = 300
_NO_VARIABLES: Final[Mapping[str, Any]] = {}
_MARKER: Final = "3f9c1d"
_PROBED: Final[Mapping[str, Any]] = {"tools": None, "documents": None, "add_generation_prompt": False}
_THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")
"""Names that templates have for what the assistant thought in an earlier turn."""
TEMPLATE_FAULTS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template can raise while it renders, apart from our bugs and the machine's limits."""

Message = Mapping[str, Any]


class ChatTemplate:
    """One compiled template. Rendering is sync and may run in any thread."""

    def __init__(self, source: str, *, name: str = "the model's chat template") -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._variables = meta.find_undeclared_variables(environment.parse(source))
        except (SyntaxError, *TEMPLATE_FAULTS) as exc:  # Jinja lets Python find some of them
            raise ModelError(f"{name} does not compile: {exc}") from exc
        self.source = source
        self._name = name
        self._thoughts = tuple(name for name in _THOUGHTS if _mentions(source, name))
        self._roles = _replacements(source)
        self._reads_parts = self._shows([{"type": "text", "text": _MARKER}])
        self._reads_text = self._shows(_MARKER)

    def reads(self, variable: str) -> bool:
        """Whether the template names ``variable`` at all."""
        return variable in self._variables

    def render(
        self,
        messages: SequenceOf[Message],
        *,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        documents: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] = _NO_VARIABLES,
    ) -> str:
        """The conversation as the model wants to read it; ``variables`` are what else the template may name.

        With ``continue_final_message`` the text ends where the last message does, before the end of its turn.

        Raises:
            InvalidRequest: The template refuses the messages or cannot render them; the message says its reason.
        """
        prepared = [self._prepare(message) for message in messages]
        given = {
            **variables,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        if continue_final_message:
            return self._render_open(prepared, given)
        return self._render_checked(prepared, given)

    def _render_open(self, messages: SequenceOf[Message], variables: Mapping[str, Any]) -> str:
        """As transformers does it: a mark after the last message shows where the template put its end."""
        mark = f"mark{secrets.token_hex(8)} "  # templates that strip messages take its space away
        *others, last = messages
        content = last.get("content") or ""
        marked: Any
        if isinstance(content, str):
            said, marked = content, content + mark
        else:
            said = content[-1]["text"]
            marked = [*content[:-1], {"type": "text", "text": said + mark}]
        text = self._render_checked([*others, {**last, "content": marked}], variables)
        at = text.rfind(mark.strip())
        if at < 0 or said.strip() not in text[:at]:
            raise InvalidRequest(
                f"{self._name} does not show the last message as it is, so nothing can go on with it",
                param="continue_final_message",
            )
        return text[:at] if text.startswith(mark, at) else text[:at].rstrip()

    def _render_checked(self, messages: SequenceOf[Message], variables: Mapping[str, Any]) -> str:
        try:
            return self._render(messages, variables)
        except _Refusal as exc:
            reason = str(exc.message)[:_MAX_REASON_CHARS]
            raise InvalidRequest(f"{self._name} says: {reason}", param="messages") from None
        except TEMPLATE_FAULTS as exc:
            reason = f"{type(exc).__name__}: {exc}"[:_MAX_REASON_CHARS]
            raise InvalidRequest(
                f"{self._name} cannot render these messages: {reason}", param="messages"
            ) from exc

    def _render(self, messages: SequenceOf[Message], variables: Mapping[str, Any]) -> str:
        return self._template.render({**variables, "messages": messages})

    def _prepare(self, message: Message) -> Message:
        """Roles and thoughts under the names that the template knows, content in the form that it reads."""
        prepared = {name: value for name, value in message.items() if value is not None}
        role, content = prepared["role"], prepared.get("content")
        prepared["role"] = self._roles.get(role, role)
        thought = next((prepared[name] for name in _THOUGHTS if name in prepared), None)
        if isinstance(thought, str):
            prepared |= {name: thought for name in self._thoughts if name not in prepared}
        if isinstance(content, str) and self._reads_parts and not self._reads_text:
            prepared["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not self._reads_parts:
            prepared["content"] = "\n".join(part["text"] for part in content)
        return prepared

    def _shows(self, content: Any) -> bool:
        """Whether ``content`` comes through as text, and not as Python's notation of a list."""
        try:
            text = self._render([{"role": "user", "content": content}], _PROBED)
        except TEMPLATE_FAULTS:
            return False
        return _MARKER in text and "'text'" not in text


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """All that a template is given, of one request."""

    messages: SequenceOf[Message]
    tools: SequenceOf[Mapping[str, Any]] | None = None
    documents: SequenceOf[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def rendered_by(self, template: ChatTemplate) -> str:
        """The text; errors as of ``ChatTemplate.render``."""
        return template.render(
            self.messages,
            tools=self.tools,
            documents=self.documents,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=self.variables,
        )


class ChatTemplates:
    """The templates of a model: one for conversations, perhaps another for those with tools."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._templates = {name: ChatTemplate(source) for name, source in sources.items()}

    def source(self, *, has_tools: bool) -> str:
        """The text of the template for a conversation; empty where the model has none."""
        try:
            return self.choose(has_tools=has_tools).source
        except NoChatTemplate:
            return ""

    def choose(self, *, has_tools: bool) -> ChatTemplate:
        """The template for a conversation.

        Raises:
            NoChatTemplate: The model has none.
        """
        names = ("tool_use", "default") if has_tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        raise NoChatTemplate(
            "the model has no chat template: use /v1/completions, or give the server a --chat-template"
        )


def load_templates(path: Path, *, override: str | None = None) -> ChatTemplates:
    """The templates of the model folder ``path``, or ``override``: a template or the path of one. Blocks.

    Raises:
        SettingsError: ``override`` is neither.
        ModelError: A template does not compile, or the folder's files are damaged.
    """
    if override is not None:
        return ChatTemplates({"default": _override(override)})
    return ChatTemplates(_sources(path))


def _override(text: str) -> str:
    if "{" in text or "\n" in text:
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise SettingsError(
            f"chat_template = {text!r} is neither a Jinja template nor a file that can be read: correct it."
        ) from exc


def _sources(path: Path) -> dict[str, str]:
    """By name; files of their own win over the tokenizer's configuration."""
    try:
        extra = sorted((path / "additional_chat_templates").glob("*.jinja"))
        sources = {file.stem: file.read_text(encoding="utf-8") for file in extra}
        sources["default"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
        return sources
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} has a chat template that cannot be read: {exc}") from exc
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(path / name).get("chat_template")
        if isinstance(template, str):
            return {"default": template}
        if template is not None:
            return _named(template, path / name)
    return {}


def _named(templates: Any, file: Path) -> dict[str, str]:
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in templates}
    except (LookupError, TypeError):
        raise ModelError(
            f"{file} has a chat_template that is neither a text nor a list of named ones."
        ) from None


def _replacements(source: str) -> dict[str, str]:
    """For roles that the template does not name: the nearest that it must know."""
    quoted = {role for role in ("developer",) if f"'{role}'" in source or f'"{role}"' in source}
    replacements = {"developer": "system", "function": "tool"}
    return {role: nearest for role, nearest in replacements.items() if role not in quoted}


def _mentions(source: str, attribute: str) -> bool:
    return re.search(rf"""\.{attribute}\b|['"]{attribute}['"]""", source) is not None


class _Refusal(jinja2.TemplateError):
    """A template called ``raise_exception``."""


class _GenerationBlock(Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise _Refusal(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002  # templates may name it
    return datetime.now().strftime(format)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment
