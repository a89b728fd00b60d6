"""Answers with structural tags: free text in which triggers begin stretches that are held to a form."""

from collections.abc import Callable
from typing import Final

from trioserve.core.forms import FreeForm, GrammarForm, JsonForm, RegexForm, TagForm, TagsForm
from trioserve.errors import InvalidGrammar
from trioserve.grammars.heads import Heads
from trioserve.grammars.lark import LarkWriter, either, escaped, sequence
from trioserve.grammars.regexes import translated

_MAX_SHOWN: Final = 80
WriteInner = Callable[[JsonForm | GrammarForm], str]


def tags(write: LarkWriter, form: TagsForm, inner: WriteInner, *, max_depth: int) -> str:
    """The expression of an answer with tags.

    Args:
        inner: Writes JSON and grammars inside a tag.

    Raises:
        InvalidGrammar: A tag begins with no trigger, or a trigger begins no tag.
    """
    _check(form)
    heads = Heads(write)
    first = []
    for tag in form.tags:
        following = write.rule(_behind_begin(write, tag, inner, max_depth))
        first.append(f"{write.marked(tag.begin)} {following}")
        for trigger in form.triggers:
            if tag.begin.startswith(trigger):
                heads.add(trigger, tag.begin, following)
    text = write.free_text()
    if form.at_least_one:
        begin = write.rule(either(first))
        return begin if form.stop_after_first else f"{begin} ({heads.behind_text()})* {text}"
    if form.stop_after_first:
        return either([text, heads.behind_text()])
    return f"({heads.behind_text()})* {text}"


def _check(form: TagsForm) -> None:
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


def _behind_begin(write: LarkWriter, tag: TagForm, inner: WriteInner, max_depth: int) -> str:
    match tag.content:
        case FreeForm():
            if not tag.end:
                raise InvalidGrammar(
                    f"the structural tag {tag.begin[:_MAX_SHOWN]!r} holds any text and has no end"
                )
            return write.until([tag.end])
        case RegexForm(pattern):
            return _regex_up_to(write, translated(pattern, max_depth=max_depth), tag.end)
        case content:
            return f"{inner(content)} {write.marked(tag.end)}"


def _regex_up_to(write: LarkWriter, pattern: str, end: str) -> str:
    """What ``pattern`` matches and the end behind it, at the first place where that is both."""
    before, pieces = write.before_token(end)
    if pieces:
        return f"{write.terminal(f'/{pattern}{escaped(before)}/')} {sequence(pieces)}"
    return write.lazy(f"/{pattern}{escaped(end)}/") if end else write.terminal(f"/{pattern}/")
