"""The families whose calls are understood, by the names that other servers give their parsers."""

from collections.abc import Callable, Mapping
from typing import Final

from trioserve.core.forms import ArgumentTags
from trioserve.parsers import tagged
from trioserve.parsers.calls import CallReader
from trioserve.parsers.channels import Channels
from trioserve.parsers.dialects import ToolDialect
from trioserve.parsers.envelope import EnvelopeReader
from trioserve.parsers.formats import ToolShape
from trioserve.parsers.machine import TextParser
from trioserve.parsers.named import DeepSeekReader, DeepSeekV3Reader, KimiReader, MistralReader
from trioserve.parsers.pythonic import LinedPythonicReader, MarkedPythonicReader, PythonicReader
from trioserve.parsers.tagged import TaggedReader, Tags
from trioserve.parsers.tools import ToolSet


def _opener(reader: type[CallReader], **marks: object) -> Callable[[ToolSet], TextParser]:
    def open_reader(tools: ToolSet) -> TextParser:
        return reader(tools, **marks).machine()

    return open_reader


def _tagged(tags: Tags) -> Callable[[ToolSet], TextParser]:
    return lambda tools: TaggedReader(tools, tags).machine()


def _marked(begin: str, end: str, *, names: str = "arguments") -> ToolShape:
    """One object between each pair of marks."""
    call = f'{begin}\n{{"name": "NAME", "{names}": '
    return ToolShape(call=call, call_end=f"}}\n{end}", separator="\n", triggers=(begin,))


def _listed(begin: str, end: str = "]") -> ToolShape:
    """A list of objects."""
    call = '{"name": "NAME", "arguments": '
    return ToolShape(
        begin=begin, call=call, call_end="}", separator=", ", end=end, triggers=(begin[:-1].rstrip(),)
    )


def _called(begin: str, end: str, separator: str = ", ") -> ToolShape:
    """Calls in Python's notation."""
    triggers = (begin[:-1],) if begin[:-1] else ()
    return ToolShape(
        begin=begin,
        call="NAME(",
        call_end=")",
        separator=separator,
        end=end,
        triggers=triggers,
        is_python=True,
    )


_TOOL_CALL: Final = ("<tool_call>", "</tool_call>")
_HERMES: Final = ToolDialect(
    name="hermes",
    open=_opener(EnvelopeReader, begins=_TOOL_CALL[:1], ends=_TOOL_CALL[1:]),
    shape=_marked(*_TOOL_CALL),
)

_TOOLS: Final = (
    _HERMES,
    ToolDialect(name="ernie45", open=_HERMES.open, shape=_HERMES.shape),
    ToolDialect(
        name="longcat",
        open=_opener(EnvelopeReader, begins=("<longcat_tool_call>",), ends=("</longcat_tool_call>",)),
        shape=_marked("<longcat_tool_call>", "</longcat_tool_call>"),
    ),
    ToolDialect(
        name="qwen3_coder",
        open=_tagged(tagged.QWEN3_CODER),
        shape=ToolShape(
            call="<tool_call>\n<function=NAME>\n",
            call_end="</function>\n</tool_call>",
            separator="\n",
            triggers=("<tool_call>",),
            tags=ArgumentTags("<parameter=", ">\n", ">\n", "\n</parameter>\n"),
        ),
    ),
    ToolDialect(
        name="seed_oss",
        open=_tagged(tagged.SEED_OSS),
        shape=ToolShape(
            call="<seed:tool_call>\n<function=NAME>\n",
            call_end="</function>\n</seed:tool_call>",
            separator="\n",
            triggers=("<seed:tool_call>",),
            tags=ArgumentTags("<parameter=", ">", ">", "</parameter>\n"),
        ),
    ),
    ToolDialect(
        name="minimax_m2",
        open=_tagged(tagged.MINIMAX_M2),
        shape=ToolShape(
            begin="<minimax:tool_call>\n",
            call='<invoke name="NAME">\n',
            call_end="</invoke>",
            separator="\n",
            end="\n</minimax:tool_call>",
            triggers=("<minimax:tool_call>",),
            tags=ArgumentTags('<parameter name="', '">', '">', "</parameter>\n"),
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="glm45",
        open=_tagged(tagged.GLM45),
        shape=ToolShape(
            call="<tool_call>NAME\n",
            call_end="</tool_call>",
            separator="\n",
            triggers=("<tool_call>",),
            tags=ArgumentTags(
                "<arg_key>", "</arg_key>\n<arg_value>", "</arg_key>\n<arg_value>", "</arg_value>\n"
            ),
        ),
    ),
    ToolDialect(
        name="deepseek_v32",
        open=_tagged(tagged.DEEPSEEK_V32),
        shape=ToolShape(
            begin="<｜DSML｜function_calls>\n",
            call='<｜DSML｜invoke name="NAME">\n',
            call_end="</｜DSML｜invoke>",
            separator="\n",
            end="\n</｜DSML｜function_calls>",
            triggers=("<｜DSML｜function_calls>",),
            tags=ArgumentTags(
                '<｜DSML｜parameter name="', '" string="true">', '" string="false">', "</｜DSML｜parameter>\n"
            ),
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="deepseek_v31",
        open=_opener(DeepSeekReader),
        shape=ToolShape(
            begin="<｜tool▁calls▁begin｜>",
            call="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
            call_end="<｜tool▁call▁end｜>",
            end="<｜tool▁calls▁end｜>",
            triggers=("<｜tool▁calls▁begin｜>",),
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="deepseek_v3",
        open=_opener(DeepSeekV3Reader),
        shape=ToolShape(
            begin="<｜tool▁calls▁begin｜>",
            call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
            call_end="\n```<｜tool▁call▁end｜>",
            separator="\n",
            end="<｜tool▁calls▁end｜>",
            triggers=("<｜tool▁calls▁begin｜>",),
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="kimi_k2",
        open=_opener(KimiReader),
        shape=ToolShape(
            begin="<|tool_calls_section_begin|>",
            call="<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>",
            call_end="<|tool_call_end|>",
            end="<|tool_calls_section_end|>",
            triggers=("<|tool_calls_section_begin|>",),
            is_parallel=False,  # calls are numbered
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="llama3_json",
        open=_opener(
            EnvelopeReader, begins=("<|python_tag|>", "<|python_start|>"), ends=("<|python_end|>",), bare="{"
        ),
        shape=ToolShape(
            call='{"name": "NAME", "parameters": ', call_end="}", separator="; ", triggers=('{"name": "',)
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="pythonic", open=_opener(PythonicReader), shape=_called("[", "]"), shows_special_tokens=True
    ),
    ToolDialect(
        name="lfm2",
        open=_opener(MarkedPythonicReader),
        shape=_called("<|tool_call_start|>[", "]<|tool_call_end|>"),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="olmo3",
        open=_opener(LinedPythonicReader),
        shape=_called("<function_calls>\n", "\n</function_calls>", "\n"),
    ),
    ToolDialect(
        name="mistral",
        open=_opener(MistralReader),
        shape=_listed("[TOOL_CALLS] ["),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="mistral_v11",
        open=_opener(MistralReader),
        shape=ToolShape(call="[TOOL_CALLS]NAME[ARGS]", call_end="", triggers=("[TOOL_CALLS]",)),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="internlm",
        open=_opener(
            EnvelopeReader,
            begins=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"),
            ends=("<|action_end|>",),
        ),
        shape=ToolShape(
            call='<|action_start|><|plugin|>\n{"name": "NAME", "parameters": ',
            call_end="}<|action_end|>",
            triggers=("<|action_start|><|plugin|>",),
            is_parallel=False,
        ),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="granite",
        open=_opener(
            EnvelopeReader, begins=("<|tool_call|>", "<tool_call>"), ends=("</tool_call>",), bare="["
        ),
        shape=_listed("<|tool_call|>["),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="phi4_mini_json",
        open=_opener(EnvelopeReader, begins=("functools", "<|tool_call|>"), ends=("<|/tool_call|>",)),
        shape=_listed("functools["),
        shows_special_tokens=True,
    ),
    ToolDialect(
        name="hunyuan_a13b",
        open=_opener(EnvelopeReader, begins=("<tool_calls>",), ends=("</tool_calls>",)),
        shape=_listed("<tool_calls>[", "]</tool_calls>"),
    ),
    ToolDialect(
        name="nemotron_json",
        open=_opener(EnvelopeReader, begins=("<TOOLCALL>",), ends=("</TOOLCALL>",)),
        shape=_listed("<TOOLCALL>[", "]</TOOLCALL>"),
    ),
    ToolDialect(
        name="openai",
        open=lambda tools: Channels(tools, is_thinking=False),
        shape=ToolShape(
            call="<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>",
            call_end="<|call|>",
            triggers=("<|channel|>commentary to=",),
            is_parallel=False,
        ),
        shows_special_tokens=True,
        is_channels=True,
    ),
)

TOOL_DIALECTS: Final[Mapping[str, ToolDialect]] = {dialect.name: dialect for dialect in _TOOLS}

TOOL_ALIASES: Final[Mapping[str, str]] = {
    alias: name
    for name, aliases in {
        "hermes": "builtin qwen qwen25 qwen2d5 qwen3 granite4",
        "qwen3_coder": "qwen3coder qwen3_xml step3p5 mimo",
        "glm45": "glm glm47",
        "deepseek_v3": "deepseekv3 deepseek_r1",
        "deepseek_v31": "deepseekv31",
        "deepseek_v32": "deepseekv32",
        "llama3_json": "llama3 llama4_json",
        "pythonic": "llama4_pythonic llama4",
        "internlm": "internlm2 intern_s1 interns1",
        "ernie45": "ernie ernie_45 ernie_x1 ernie_45_vl_thinking",
        "hunyuan_a13b": "hunyuan jamba",
        "minimax_m2": "minimax",
        "openai": "gpt_oss",
        "phi4_mini_json": "phi4_mini phi",
    }.items()
    for alias in aliases.split()
}
"""Other names, with underscores for hyphens."""
