"""Writes the grammars of answers for llguidance."""

from typing import Final, assert_never, final

import llguidance

from trioserve.core.forms import (
    AnswerForm,
    Body,
    CallsForm,
    ChoiceForm,
    GrammarForm,
    JsonForm,
    RegexForm,
    TagsForm,
)
from trioserve.errors import InvalidGrammar
from trioserve.grammars import client_lark, ebnf
from trioserve.grammars.calls import CallsWriter
from trioserve.grammars.lark import LarkWriter, either, escaped, quoted, regex, sequence
from trioserve.grammars.markers import MarkerTokens
from trioserve.grammars.regexes import translated
from trioserve.grammars.schema import parsed, prepared, spaced
from trioserve.grammars.tags import tags

_MAX_SPACE: Final = 4
"""Characters between thinking and body."""


@final
class GuidanceWriter:
    """Forms to llguidance's Lark, for one tokenizer."""

    def __init__(
        self, tokenizer: llguidance.LLTokenizer, *, disable_any_whitespace: bool, max_depth: int
    ) -> None:
        """
        Args:
            tokenizer: Says which markers are tokens of their own.
            disable_any_whitespace: Whether JSON has no white space but one space behind commas and colons, where a
                request does not say otherwise.
            max_depth: Levels of a schema, and groups of a regular expression or grammar, inside each other.
        """
        self._markers = MarkerTokens(tokenizer)
        self._disable_any_whitespace = disable_any_whitespace
        self._max_depth = max_depth

    def write(self, form: AnswerForm) -> str:
        """The grammar of ``form``. Takes time linear in its size, apart from proofs that are bounded.

        Raises:
            InvalidGrammar: It is broken, too deep, or cannot be expressed.
        """
        write = LarkWriter(self._markers)
        try:
            body = self._body(write, form.body)
            text = write.text(body if form.thinking is None else self._thinking(write, form, body))
            text.encode()
        except RecursionError:
            raise InvalidGrammar("what the answer is held to has too many levels") from None
        except UnicodeEncodeError as fault:
            raise InvalidGrammar(
                f"half of a surrogate pair, {fault.object[fault.start]!r}, is no text"
            ) from None
        return text

    # ---- bodies ------------------------------------------------------------------------------------------------------

    def _body(self, write: LarkWriter, body: Body) -> str:
        match body:
            case JsonForm() | GrammarForm():
                return self._inner(write, body)
            case RegexForm(pattern):
                return write.terminal(regex(translated(pattern, max_depth=self._max_depth)))
            case ChoiceForm(choices):
                if not choices:
                    raise InvalidGrammar("there is no choice to choose from")
                return write.terminal(either(map(quoted, choices)))
            case TagsForm():
                return tags(write, body, lambda form: self._inner(write, form), max_depth=self._max_depth)
            case CallsForm():
                return CallsWriter(
                    write,
                    body,
                    disable_any_whitespace=self._disable_any_whitespace,
                    max_depth=self._max_depth,
                ).expression()
            case _:
                assert_never(body)

    def _inner(self, write: LarkWriter, form: JsonForm | GrammarForm) -> str:
        if isinstance(form, GrammarForm):
            text = (
                ebnf.to_lark(form.text, max_depth=self._max_depth) if ebnf.is_ebnf(form.text) else form.text
            )
            return write.nested(client_lark.checked(text, max_depth=self._max_depth))
        options = spaced(
            form.whitespace, disable_any_whitespace=self._disable_any_whitespace, max_depth=self._max_depth
        )
        schema = prepared(parsed(form.schema, max_depth=self._max_depth), max_depth=self._max_depth)
        return write.json(schema.written(schema.root, options))

    # ---- thinking ----------------------------------------------------------------------------------------------------

    def _thinking(self, write: LarkWriter, form: AnswerForm, body: str) -> str:
        thinking = form.thinking
        assert thinking is not None
        behind = write.rule(body)
        is_text = isinstance(form.body, TagsForm) or (
            isinstance(form.body, CallsForm) and not form.body.is_required and form.body.otherwise is None
        )
        if thinking.space and not is_text:  # free text takes the space as its own
            chars = "".join(map(escaped, dict.fromkeys(thinking.space)))
            behind = write.rule(f"{write.terminal(f'/[{chars}]{{0,{_MAX_SPACE}}}/')} {behind}")
        thought = f"{write.until(thinking.ends)} {behind}"
        if thinking.is_open:
            return thought
        begins = either(_begin(write, marker) for marker in thinking.begins)
        return either([f"{begins} {write.rule(thought)}", body])


def _begin(write: LarkWriter, marker: str) -> str:
    """A marker at the beginning of the answer: as a token, or spelled out, which reads the same."""
    before, pieces = write.before_token(marker)
    spelled = write.lazy(f"/{escaped(marker)}/")
    return either(
        [spelled, f"{quoted(before)} {sequence(pieces)}".removeprefix('"" ')] if pieces else [spelled]
    )
