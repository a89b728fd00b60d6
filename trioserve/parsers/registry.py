"""Finds parsers: by name, by what a model's chat template writes, and in other packages."""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, TypeVar, final

from trioserve.errors import SettingsError
from trioserve.parsers.dialects import Dialects, ReasoningDialect, ToolDialect
from trioserve.parsers.reasoning_dialects import REASONING_ALIASES, REASONING_DIALECTS
from trioserve.parsers.tool_dialects import TOOL_ALIASES, TOOL_DIALECTS

TOOL_PLUGINS: Final = "trioserve.tool_parsers"
REASONING_PLUGINS: Final = "trioserve.reasoning_parsers"
_NOTHING: Final = frozenset({"", "none"})

Rules = tuple[tuple[str, tuple[str, ...]], ...]

TOOL_RULES: Final[Rules] = (
    ("openai", ("<|channel|>", "functions.")),
    ("deepseek_v32", ("｜DSML｜",)),
    ("deepseek_v3", ("<｜tool▁sep｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁sep｜>",)),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("kimi_k2", ("<|im_middle|>", "tool_declare")),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("seed_oss", ("<seed:tool_call>",)),
    ("glm45", ("<arg_key>",)),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("internlm", ("<|action_start|>",)),
    ("mistral_v11", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("lfm2", ("<|tool_list_start|>",)),
    ("olmo3", ("<function_calls>",)),
    ("longcat", ("<longcat_tool_call>",)),
    ("nemotron_json", ("<TOOLCALL>",)),
    ("phi4_mini_json", ("<|tool|>",)),
    ("phi4_mini_json", ("functools[",)),
    ("granite", ("<|tool_call|>",)),
    ("hunyuan_a13b", ("<tool_calls>",)),
    ("ernie45", ("<tool_call>", "<response>")),
    ("hermes", ("<tool_call>",)),
    ("pythonic", ("[func_name1(",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('{"name": function name, "parameters"',)),
)
"""A family, and what its templates contain; the first whose texts are all there is chosen."""

REASONING_RULES: Final[Rules] = (
    ("openai_gptoss", ("<|channel|>", "analysis")),
    ("mistral", ("[THINK]",)),
    ("seed_oss", ("<seed:think>",)),
    ("granite", ("Here is my thought process:",)),
    ("hunyuan_a13b", ("</think>", "<answer>")),
    ("granite33", ("<think>", "<response>", "<|start_of_role|>")),
    ("ernie45", ("</think>", "<response>", "<tool_output>")),
    ("ernie45", ("</think>", "<|begin_of_sentence|>")),
    ("glm45", ("</think>", "[gMASK]")),
    ("qwen3", ("</think>",)),
)
"""As ``TOOL_RULES``."""

_TOOLS_OF_MODEL_TYPE: Final[Mapping[str, str]] = {
    "gpt_oss": "openai",
    "kimi_k2": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "glm4_moe": "glm45",
    "seed_oss": "seed_oss",
    "internlm2": "internlm",
    "phi3": "phi4_mini_json",
}
"""Where a template shows tools and says nothing of how to call them."""

Dialect = TypeVar("Dialect", ToolDialect, ReasoningDialect)


@final
class Registry:
    """All parsers that a server may use."""

    def __init__(self, tools: Mapping[str, ToolDialect], reasoning: Mapping[str, ReasoningDialect]) -> None:
        self.tools = tools
        """By name, without aliases."""
        self.reasoning = reasoning

    @classmethod
    def load(cls) -> "Registry":
        """Those of this package, and those of installed packages. Blocks.

        Raises:
            SettingsError: A package's parser cannot be loaded.
        """
        return cls(
            {**TOOL_DIALECTS, **_plugins(TOOL_PLUGINS, ToolDialect, TOOL_DIALECTS, TOOL_ALIASES)},
            {
                **REASONING_DIALECTS,
                **_plugins(REASONING_PLUGINS, ReasoningDialect, REASONING_DIALECTS, REASONING_ALIASES),
            },
        )

    def dialects(
        self,
        tool_call_parser: str,
        reasoning_parser: str,
        *,
        tools_template: str,
        template: str,
        model_type: str,
    ) -> Dialects:
        """What two settings choose for a model.

        Args:
            tools_template: Source of the model's chat template for conversations with tools.
            template: Of the one for all others; often the same.
            model_type: As the model's configuration says it.

        Raises:
            SettingsError: A name is not known.
        """
        return Dialects(
            self.tool_dialect(tool_call_parser, template=tools_template, model_type=model_type),
            self.reasoning_dialect(reasoning_parser, template=template),
        )

    def tool_dialect(self, name: str, *, template: str = "", model_type: str = "") -> ToolDialect | None:
        """The tool parser of that name, of the model's family for ``auto``, None for ``none``.

        Args:
            template: Source of the model's chat template.
            model_type: As the model's configuration says it.

        Raises:
            SettingsError: There is none of that name.
        """
        if _key(name) != "auto":
            return _named("tool_call_parser", name, self.tools, TOOL_ALIASES)
        chosen = _chosen(TOOL_RULES, template)
        if chosen is None and "tools" in template:
            chosen = _TOOLS_OF_MODEL_TYPE.get(model_type)
        return None if chosen is None else self.tools[chosen]

    def reasoning_dialect(self, name: str, *, template: str = "") -> ReasoningDialect | None:
        """The reasoning parser of that name; arguments and errors as of ``tool_dialect``."""
        if _key(name) != "auto":
            return _named("reasoning_parser", name, self.reasoning, REASONING_ALIASES)
        chosen = _chosen(REASONING_RULES, template)
        return None if chosen is None else self.reasoning[chosen]


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _named(
    setting: str, name: str, dialects: Mapping[str, Dialect], aliases: Mapping[str, str]
) -> Dialect | None:
    key = _key(name)
    if key in _NOTHING:
        return None
    found = dialects.get(key) or dialects.get(name) or dialects.get(aliases.get(key, ""))
    if found is None:
        known = ", ".join(sorted(dialects))
        raise SettingsError(f"{setting} = {name!r} is not known: give auto, none, or one of {known}.")
    return found


def _chosen(rules: Rules, template: str) -> str | None:
    return next((name for name, texts in rules if all(text in template for text in texts)), None)


def _plugins(
    group: str, kind: type[Dialect], own: Mapping[str, Dialect], aliases: Iterable[str]
) -> Mapping[str, Dialect]:
    """The parsers that installed packages bring, by the names of their entry points."""
    found: dict[str, Dialect] = {}
    for entry in entry_points(group=group):
        if _key(entry.name) in {"auto", *_NOTHING, *own, *aliases} or entry.name in found:
            raise SettingsError(
                f"The {group} plugin {_shown(entry)} has a name that is taken: rename it, or uninstall its package."
            )
        found[entry.name] = _loaded(entry, group, kind)
    return found


def _loaded(entry: EntryPoint, group: str, kind: type[Dialect]) -> Dialect:
    try:
        dialect = entry.load()
    except Exception as exc:  # foreign code may raise anything
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise SettingsError(
            f"The {group} plugin {_shown(entry)} cannot be loaded ({reason}): repair it, or uninstall its package."
        ) from exc
    if not isinstance(dialect, kind):
        raise SettingsError(
            f"The {group} plugin {_shown(entry)} is a {type(dialect).__name__}, not a {kind.__name__}: "
            "repair it, or uninstall its package."
        )
    return dialect


def _shown(entry: EntryPoint) -> str:
    return f"{entry.name} = {entry.value}"
