"""A template that came with a request has a text or a reason, whatever it is; what it takes is the kernel's to bound."""

# ruff: noqa: E501  # many words stand on few lines

from tests.fuzz.source import Source
from trioserve.prompt.sandbox import Job, render
from trioserve.prompt.template import Conversation

_WORDS = (
    *("{{ ", " }}", "{% ", " %}", "{# ", " #}", "{%- ", " -%}", "if ", "else", "elif ", "endif", "for m in messages", "endfor"),
    *("set x = ", "macro f(a)", "endmacro", "f(1)", "call f(1)", "endcall", "filter upper", "endfilter", "break", "continue"),
    *("messages", "m", "x", "tools", "name", "namespace()", "x.a", "loop.index", "range(3)", "raise_exception('x')", "strftime_now('%Y')"),
    *(".role", ".content", "[0]", "[-1]", "['role']", ".items()", ".__class__", "|attr('__class__')", ".format", "('{0.__class__}')"),
    *(" | tojson", " | upper", " | join(',')", " | length", " | map(attribute='role')", " | selectattr('x')", " | int", " | trim"),
    *(" + ", " - ", " * 3", " / 0", " % ", " ~ ", " == ", " in ", " is defined", " is string", " not ", " and ", "(", ")", "[", "]", "{", "}", ",", ":"),
    *("'a'", '"b"', "1", "0", "-1", "1e308", "none", "true", "'\\x00'", "'é🌍'", "\n", "raw", "endraw", "generation", "endgeneration", "include 'x'", "import 'x' as y", "extends 'x'", "do x", "autoescape true", "endautoescape"),
)  # fmt: skip
_CONVERSATION = Conversation(
    messages=[{"role": "user", "content": "hi ü"}, {"role": "assistant", "content": "\0"}],
    variables={"name": "x"},
)
SEEDS = (
    b"\0{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}{% endfor %}",
    b"\0{{ raise_exception('no') }}",
    b"\0{{ ''.__class__.__mro__ }}",
    b"\0{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1) }}",
    b"\0{% set ns = namespace(x=1) %}{{ ns.x }}{{ '%s' % ns }}{{ '{0.__class__}'.format(1) }}",
    b"\1\x20\x80\xa1\x81",
    b"\1\x20\x82\x8c\x83\x80\xa2\xa9\x81\x82\x8d\x83",
)


def check(data: bytes) -> None:
    """Render a text of any bytes, or one of words that templates are made of."""
    source = Source(data)
    is_made = source.flag()
    text = source.text(_WORDS[:128], 40) if is_made else source.rest().decode("utf-8", "replace")
    if any(digits > 4 for digits in map(len, "".join(c if c.isdigit() else " " for c in text).split())):
        return  # sizes are what the kernel bounds in the process that renders
    outcome = render(
        Job(source=text, conversation=_CONVERSATION, timeout_s=1, memory_bytes=1 << 20, max_bytes=10_000)
    )
    assert outcome.refusal is None or (outcome.refusal and not outcome.text)
    assert "object at 0x" not in (outcome.refusal or "")
