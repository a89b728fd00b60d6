"""How a request speaks of the model's thinking: how much of it, and where it is to be told."""

from collections.abc import Callable
from typing import Any, Final, Literal

from trioserve.errors import InvalidRequest, UnsupportedParameter
from trioserve.protocol.common import WireModel
from trioserve.protocol.fields import CountOrNone

_OFF: Final = "none"
THINKING_SWITCHES: Final = ("enable_thinking", "thinking")
"""Variables by which templates switch thinking on and off."""
_EFFORT: Final = "reasoning_effort"


class LogitsProcessorsArgs(WireModel):
    """``logits_processors_args``, as FastDeploy has it, for the one processor that there is here."""

    thinking_budget: CountOrNone | None = None


class ReasoningFields(WireModel):
    """Fields that speak of thinking; null is the same as absent."""

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """The variable of that name, or one that switches thinking on and off."""
    include_reasoning: bool | None = None
    """Whether the answer tells the thinking; it does by default."""
    separate_reasoning: bool | None = None
    """Whether thinking is told in fields of its own; else it is content, its marks included."""
    stream_reasoning: bool | None = None
    """Whether thinking is streamed as it comes; else it comes in one piece."""
    reasoning_max_tokens: CountOrNone | None = None
    """Tokens of thinking after which the answer must begin."""
    thinking_budget: CountOrNone | None = None
    """Another name of ``reasoning_max_tokens``."""
    thinking_token_budget: CountOrNone | None = None
    """Another name of ``reasoning_max_tokens``."""
    logits_processors_args: LogitsProcessorsArgs | None = None
    enable_thinking: bool | None = None
    """The variable of that name."""

    @property
    def thinking_tokens(self) -> int | None:
        """Tokens of thinking at most; None where the request does not say."""
        return next((count for _, count in self._budgets()), None)

    def check_reasoning(self) -> None:
        """Refuse fields that contradict each other.

        Raises:
            InvalidRequest: Names the field.
            UnsupportedParameter: An argument is for a processor that is not there.
        """
        budgets = self._budgets()
        for name, count in budgets[1:]:
            if count != budgets[0][1]:
                raise InvalidRequest(
                    f"{budgets[0][0]} and {name} say the same, and here {budgets[0][1]} and {count}: give one of them",
                    param=name,
                )
        arguments = self.logits_processors_args
        for name, value in ((arguments and arguments.model_extra) or {}).items():
            if value is not None:
                param = f"logits_processors_args.{name[:64]}"
                raise UnsupportedParameter(
                    f"{param} is not supported by this server; leave it out", param=param
                )

    def check_parser(self, *, has_parser: bool) -> None:
        """Refuse what needs thinking to be told from the rest, where it cannot be.

        Raises:
            UnsupportedParameter: Names the field.
        """
        if has_parser:
            return
        asks = {name: True for name, _ in self._budgets()}
        asks |= {name: getattr(self, name) is False for name in ("include_reasoning", "stream_reasoning")}
        for name, is_asked in asks.items():
            if is_asked:
                raise UnsupportedParameter(
                    f"{name}: this server does not tell the model's thinking from its answer: its setting "
                    "reasoning_parser names no parser, or found none by the chat template",
                    param=name,
                )

    def thinking_variables(
        self, variables: dict[str, Any], *, reads: Callable[[str], bool]
    ) -> dict[str, Any]:
        """What ``reasoning_effort`` adds to the template's ``variables``, which win.

        Args:
            reads: Whether the template reads the variable of a name.

        Raises:
            UnsupportedParameter: An effort is asked for, and the template reads nothing of that kind.
        """
        effort = self.reasoning_effort
        if effort is None:
            return variables
        switches = [name for name in THINKING_SWITCHES if reads(name)]
        if not switches and not reads(_EFFORT) and effort != _OFF:
            raise UnsupportedParameter(
                f"{_EFFORT}: the model's chat template reads neither it nor {' nor '.join(THINKING_SWITCHES)}",
                param=_EFFORT,
            )
        own = {} if switches and effort == _OFF else {_EFFORT: effort}
        return {**own, **dict.fromkeys(switches, effort != _OFF), **variables}

    def _budgets(self) -> list[tuple[str, int]]:
        arguments = self.logits_processors_args
        named = {
            name: getattr(self, name)
            for name in ("reasoning_max_tokens", "thinking_budget", "thinking_token_budget")
        }
        named["logits_processors_args.thinking_budget"] = arguments and arguments.thinking_budget
        return [(name, count) for name, count in named.items() if count is not None]
