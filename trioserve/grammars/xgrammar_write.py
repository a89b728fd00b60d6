"""Writes the grammars of answers for xgrammar: each is one structural tag."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, assert_never, final

import xgrammar

from trioserve.core.forms import (
    AnswerForm,
    Body,
    CallsForm,
    ChoiceForm,
    FreeForm,
    GrammarForm,
    JsonForm,
    RegexForm,
    TagForm,
    TagsForm,
    ThinkingForm,
)
from trioserve.errors import InvalidGrammar
from trioserve.grammars.schema import parsed
from trioserve.grammars.xgrammar_calls import CallsWriter
from trioserve.grammars.xgrammar_formats import (
    TIGHT,
    Format,
    Markers,
    constant,
    either,
    grammar,
    json_text,
    optional,
    printed,
    reason,
    regex,
    repeated,
    sequence,
    text_without,
)
from trioserve.grammars.xgrammar_regex import literal, translated
from trioserve.grammars.xgrammar_schema import narrowed

_MAX_SPACE: Final = 4
"""Characters between thinking and body."""
_EBNF: Final = re.compile(r"^[ \t]*[A-Za-z_][\w.\-]*[ \t]*::=", re.MULTILINE)
_LITERALS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|/(?:[^/\\\n]|\\.)+/|#.*|//.*')
_MAX_SHOWN: Final = 80


@final
class XgrammarWriter:
    """Forms to structural tags, for one tokenizer."""

    def __init__(
        self,
        special_tokens: Mapping[str, int],
        ends: Sequence[int],
        *,
        disable_any_whitespace: bool,
        max_depth: int,
    ) -> None:
        """
        Args:
            special_tokens: Ids by text.
            ends: Those that end an answer.
            disable_any_whitespace: Whether JSON has no white space but one space behind commas and colons, where a
                request does not say otherwise.
            max_depth: Levels of a schema, and groups of a regular expression or grammar, inside each other.
        """
        self._markers = Markers(special_tokens, ends)
        self._disable_any_whitespace = disable_any_whitespace
        self._max_depth = max_depth

    def write(self, form: AnswerForm) -> str:
        """The grammar of ``form``.

        Raises:
            InvalidGrammar: It is broken, too deep, or cannot be expressed.
        """
        thinking = form.thinking
        outside = () if thinking is None or thinking.is_open else thinking.begins
        try:
            body = self._body(form.body, outside)
            whole = body if thinking is None else self._thinking(thinking, form.body, body)
            text = json.dumps({"type": "structural_tag", "format": whole}, ensure_ascii=False)
            text.encode()
        except RecursionError:
            raise InvalidGrammar("what the answer is held to has too many levels") from None
        except UnicodeEncodeError as fault:
            raise InvalidGrammar(
                f"half of a surrogate pair, {fault.object[fault.start]!r}, is no text"
            ) from None
        return text

    # ---- bodies ------------------------------------------------------------------------------------------------------

    def _body(self, body: Body, outside: tuple[str, ...]) -> Format:
        match body:
            case JsonForm() | RegexForm() | GrammarForm():
                return self._inner(body)
            case ChoiceForm(choices):
                if not choices:
                    raise InvalidGrammar("there is no choice to choose from")
                return either(map(constant, choices))
            case TagsForm():
                return self._tags(body, outside)
            case CallsForm():
                otherwise = None if body.otherwise is None else self._inner(body.otherwise)
                calls = CallsWriter(self._markers, body, outside=outside, max_depth=self._max_depth)
                return calls.written(otherwise)
            case _:
                assert_never(body)

    def _inner(self, form: JsonForm | RegexForm | GrammarForm) -> Format:
        match form:
            case JsonForm(schema=schema, whitespace=whitespace):
                document = narrowed(parsed(schema, max_depth=self._max_depth), max_depth=self._max_depth)
                return json_text(document, self._separators(whitespace))
            case RegexForm(pattern):
                return regex(translated(pattern, max_depth=self._max_depth))
            case GrammarForm(text):
                return grammar(self._ebnf(text))

    def _separators(self, whitespace: str | None) -> tuple[str, str] | None:
        if whitespace is None:
            return TIGHT if self._disable_any_whitespace else None
        if whitespace == "":
            return ",", ":"
        raise InvalidGrammar(
            f"the white space {whitespace[:_MAX_SHOWN]!r} of a JSON answer is not supported by xgrammar, which takes "
            "an empty one or none named; the backend guidance does"
        )

    def _ebnf(self, text: str) -> str:
        """A grammar as EBNF, whatever it was written in."""
        depth = deepest = 0
        for char in _LITERALS.sub("", text):
            depth += (char == "(") - (char == ")")
            deepest = max(depth, deepest)
        if deepest > self._max_depth:
            raise InvalidGrammar(f"the grammar has more than {self._max_depth} groups inside each other")
        try:
            if _EBNF.search(text) is None:
                return printed(xgrammar.Grammar.from_lark(text))
            xgrammar.Grammar.from_ebnf(text)
        except RuntimeError as exc:
            raise InvalidGrammar(f"the grammar: {reason(exc)}") from None
        return text

    # ---- tags --------------------------------------------------------------------------------------------------------

    def _tags(self, form: TagsForm, outside: tuple[str, ...]) -> Format:
        self._check_tags(form)
        text = text_without([*form.triggers, *outside])
        tag = either(map(self._tag, form.tags))
        if form.stop_after_first:
            return tag if form.at_least_one else sequence(text, optional(tag))
        more = repeated(sequence(tag, text))
        return sequence(tag, text, more) if form.at_least_one else sequence(text, more)

    def _check_tags(self, form: TagsForm) -> None:
        if not form.tags:
            raise InvalidGrammar("structural tags need at least one tag")
        for trigger in form.triggers:
            if not trigger or not any(tag.begin.startswith(trigger) for tag in form.tags):
                raise InvalidGrammar(f"no structural tag begins with the trigger {trigger[:_MAX_SHOWN]!r}")
        for tag in form.tags:
            if not any(tag.begin.startswith(trigger) for trigger in form.triggers):
                raise InvalidGrammar(
                    f"the structural tag {tag.begin[:_MAX_SHOWN]!r} begins with none of the triggers"
                )
        self._markers.check_triggers(form.triggers)

    def _tag(self, tag: TagForm) -> Format:
        if not isinstance(tag.content, FreeForm):
            content = self._inner(tag.content)
        elif tag.end:
            content = text_without([tag.end])
        else:
            raise InvalidGrammar(
                f"the structural tag {tag.begin[:_MAX_SHOWN]!r} holds any text and has no end"
            )
        return sequence(self._markers.marked(tag.begin), content, self._markers.marked(tag.end))

    # ---- thinking ----------------------------------------------------------------------------------------------------

    def _thinking(self, thinking: ThinkingForm, form: Body, body: Format) -> Format:
        thought = [text_without(thinking.ends), either(map(self._markers.marked, thinking.ends))]
        if thinking.space and not _begins_with_text(form):  # free text takes the space as its own
            thought.append(regex(f"[{literal(thinking.space)}]{{0,{_MAX_SPACE}}}"))
        if thinking.is_open:
            return sequence(*thought, body)
        begins = either(map(self._markers.marked, thinking.begins))
        return sequence(optional(sequence(begins, *thought)), body)


def _begins_with_text(form: Body) -> bool:
    if isinstance(form, TagsForm):
        return not form.at_least_one
    return isinstance(form, CallsForm) and not form.is_required and form.otherwise is None
