"""How families write calls, as data: what a grammar needs to make a model write them."""

import json
from collections.abc import Iterable

from msgspec import Struct

from trioserve.core.forms import (
    Arguments,
    ArgumentTags,
    CallFormat,
    JsonArguments,
    PythonArguments,
    TaggedArguments,
    ToolFormat,
)
from trioserve.parsers.tools import Tool


class ToolShape(Struct, frozen=True, kw_only=True):
    """A ToolFormat without tools; ``NAME`` stands for a tool's name."""

    call: str
    """Up to the arguments."""
    call_end: str
    begin: str = ""
    separator: str = ""
    end: str = ""
    triggers: tuple[str, ...] = ()
    tags: ArgumentTags | None = None
    is_python: bool = False
    is_parallel: bool = True
    """Whether the family writes several calls in one answer."""

    def format(self, tools: Iterable[Tool], *, parallel: bool) -> ToolFormat:
        """The format of these tools; of one call in all unless ``parallel``."""
        return ToolFormat(
            calls=tuple(self._call(tool) for tool in tools),
            begin=self.begin,
            separator=self.separator,
            end=self.end,
            triggers=self.triggers,
            max_calls=None if parallel and self.is_parallel else 1,
        )

    def _call(self, tool: Tool) -> CallFormat:
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1]
        return CallFormat(tool.name, self.call.replace("NAME", name), self._arguments(tool), self.call_end)

    def _arguments(self, tool: Tool) -> Arguments:
        schema = tool.parameters or {"type": "object"}
        if self.tags is not None:
            return TaggedArguments(schema, self.tags)
        return PythonArguments(schema) if self.is_python else JsonArguments(schema)
